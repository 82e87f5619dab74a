"""Reading search files."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np
import yaml
from pydantic import ValidationError

from evomerge.config.errors import MOST_MISTAKES, ConfigError, Keys, explain, named_first, truth_values
from evomerge.config.overrides import override
from evomerge.config.paths import resolve_paths
from evomerge.config.search_file import SearchConfig
from evomerge.config.shorthands import expand
from evomerge.plugins import load_plugins
from search_spaces.recipes.yaml_text import load_yaml
from search_spaces.yaml_lines import line_of, misread_numbers

MAX_BYTES = 1_000_000

_MERGEKITS = {
    "genome": "a genome of mergekit-evolve; write a search file with `evomerge init --from {path}`",
    "merge_method": "a recipe; merge it with `evomerge merge {path} OUT`, or write a search file with `evomerge init`",
}
"""Keys of mergekit's files, which no search file has at its top, and what to do with these."""


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
    return _validated(values, overrides, path.resolve().parent, lambda keys: _origin(path, text, overrides, keys))


@contextmanager
def located(path: Path, overrides: Sequence[str] = ()) -> Iterator[None]:
    """Add file and line to errors about a search file's keys that are raised inside the block, while it is used.

    Raises
    ------
    ConfigError
        In place of a `ValueError` whose text begins with a key, such as `fitness.held_out: ...`.
    """
    try:
        yield
    except ValueError as error:
        keys = named_first(str(error), SearchConfig)
        if not keys or not path.is_file():
            raise
        raise ConfigError(f"{_origin(path, _read(path)[0], overrides, keys)}: {error}") from error


def load_mapping(values: Mapping[str, Any], overrides: Sequence[str] = ()) -> SearchConfig:
    """Return the config that a search file with these contents stands for; relative folders are relative to here.

    Paths may be `Path` objects, and numbers numpy's.

    Raises
    ------
    ConfigError
        As `load`, without lines; or if `values` is not a mapping.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"config: give the path of a search file, or a mapping with its keys (got {values!r})")
    return _validated(_plain(values), overrides, Path.cwd(), lambda keys: "config")


def _plain(value: Any) -> Any:
    """Return a deep copy made of what a YAML file holds."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value.item() if isinstance(value, np.generic) else copy.deepcopy(value)


def _validated(
    values: dict[str, Any], overrides: Sequence[str], folder: Path, origin: Callable[[Keys], str]
) -> SearchConfig:
    load_plugins()
    values = expand(values)
    for wanted in overrides:
        override(values, wanted)
        values = expand(values)
    resolve_paths(values, folder)
    mistaken = truth_values(SearchConfig, values, origin)
    if mistaken:
        raise ConfigError(mistaken)
    try:
        return SearchConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(explain(error, SearchConfig, values, origin)) from None


def load_recorded(run: Path, overrides: Sequence[str] = ()) -> SearchConfig:
    """Read the resolved search file of a run directory, which may come from an untrusted source.

    lm-eval's task files can hold Python code. Those of a search file are named by its author; a run directory is
    data, so it must not bring any of its own.

    Raises
    ------
    ConfigError
        As `load`; or if a folder of tasks, or a function, is inside the run directory.
    """
    config = load(run / "config.yaml", overrides)
    for folder in config.fitness.include_path:
        if Path(folder).resolve().is_relative_to(run.resolve()):
            raise ConfigError(
                f"{run / 'config.yaml'}: fitness.include_path: {folder} is inside the run directory, and task "
                "files can hold code; look at them, and move them elsewhere if you trust them"
            )
    for key, reference in (("function", config.fitness.function), ("function_items", config.fitness.function_items)):
        place = (reference or "").rpartition(":")[0]
        if place.endswith(".py") and Path(place).resolve().is_relative_to(run.resolve()):
            raise ConfigError(
                f"{run / 'config.yaml'}: fitness.{key}: {place} is inside the run directory and is code; look at it, "
                "and move it elsewhere if you trust it"
            )
    return config


def _read(path: Path) -> tuple[str, dict[str, Any]]:
    """Return a file's text, and what it says."""
    try:
        if path.exists() and not path.is_file():
            raise ConfigError(f"{path}: is not a regular file; name a search file")
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(f"{path}: larger than {MAX_BYTES:,} bytes; is this a search file?")
        text = path.read_text(encoding="utf-8")
    except ConfigError:
        raise
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
        place = _place(path, None if mark is None else mark.line + 1)
        raise ConfigError(f"{place}: not valid YAML: {_problem(error)}") from None
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    misread = [f"{path}:{found.line}: {'.'.join(map(str, found.keys))}: {found}" for found in misread_numbers(text)]
    if misread:
        raise ConfigError("\n".join(misread[:MOST_MISTAKES]))
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected keys such as `models:` and `fitness:`; see `evomerge init`")
    for key, what in _MERGEKITS.items():
        if key in values:
            raise ConfigError(f"{path}: is {what.format(path=quote(str(path)))}")
    return text, values


def _problem(error: yaml.MarkedYAMLError) -> str:
    return str(error.problem or error.context).replace("found unexpected", "there is a misplaced")


def _origin(path: Path, text: str, overrides: Sequence[str], keys: Keys) -> str:
    """Return where a key was set: the option of the command line, or the file and line, with an option inside it."""
    names = [str(key) for key in keys]
    inside = ""
    for wanted in reversed(overrides):
        place = wanted.partition("=")[0].split(".")
        if names[: len(place)] == place:
            return f"--set {wanted}"
        if not inside and names and names == place[: len(names)]:
            inside = f" with --set {wanted}"
    return f"{_place(path, line_of(text, keys))}{inside}"


def _place(path: Path, line: int | None) -> str:
    return str(path) if line is None else f"{path}:{line}"
