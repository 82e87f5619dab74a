"""Reading search files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from evomerge.config.errors import ConfigError, Keys, explain
from evomerge.config.overrides import override
from evomerge.config.paths import resolve_paths
from evomerge.config.search_file import SearchConfig
from evomerge.config.shorthands import expand
from search_spaces.recipes.mergekit_yaml import load_yaml
from search_spaces.recipes.plain_data import line_of

MAX_BYTES = 1_000_000


def load(path: Path, overrides: Sequence[str] = ()) -> SearchConfig:
    """Read a search file.

    Parameters
    ----------
    path
        The YAML file; relative folders in it are relative to its own folder.
    overrides
        `key.path=value` strings, the value in YAML: `space.weight.high=2`.

    Raises
    ------
    ConfigError
        With one line per mistake: the file and line, the key and what to type instead.
    """
    text, values = _read(path)
    values = expand(values)
    changed: dict[Keys, str] = {}
    for wanted in overrides:
        changed[override(values, wanted)] = wanted
        values = expand(values)
    resolve_paths(values, path.resolve().parent)
    try:
        return SearchConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(
            explain(error, SearchConfig, values, lambda keys: _origin(path, text, changed, keys))
        ) from None


def load_recorded(run: Path, overrides: Sequence[str] = ()) -> SearchConfig:
    """Read the resolved search file of a run directory, which may come from a stranger.

    lm-eval's task files can hold Python code. Those of a search file are named by its author; a run directory is
    data, so it must not bring any of its own.

    Raises
    ------
    ConfigError
        As `load`; or if a folder of tasks lies inside the run directory.
    """
    config = load(run / "config.yaml", overrides)
    for folder in config.fitness.include_path:
        if Path(folder).resolve().is_relative_to(run.resolve()):
            raise ConfigError(
                f"{run / 'config.yaml'}: fitness.include_path: {folder} lies inside the run directory, and task "
                "files can hold code; look at them, and move them elsewhere if you trust them"
            )
    return config


def _read(path: Path) -> tuple[str, dict[str, Any]]:
    """Return a file's text, and what it says."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(f"{path}: larger than {MAX_BYTES:,} bytes; is this a search file?")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"{path}: {error.strerror or error}; `evomerge init` writes a search file to start from"
        ) from None
    except ValueError:
        raise ConfigError(f"{path}: is not text in UTF-8; is this a search file?") from None
    try:
        values = load_yaml(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = "" if mark is None else f":{mark.line + 1}"
        raise ConfigError(f"{path}{line}: not valid YAML: {error.problem or error.context}") from None
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected keys such as `models:` and `fitness:`; see `evomerge init`")
    return text, values


def _origin(path: Path, text: str, changed: dict[Keys, str], keys: Keys) -> str:
    """Return where a key comes from: a line of the file, or the command line."""
    for place, wanted in reversed(changed.items()):
        if keys[: len(place)] == place:
            return f"--set {wanted}"
    line = line_of(text, keys)
    return str(path) if line is None else f"{path}:{line}"
