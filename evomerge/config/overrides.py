"""Changes to a search file on the command line: `--set key.path=value`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from evomerge.config.errors import ConfigError
from evomerge.config.shorthands import MAIN_KEYS
from search_spaces.recipes.yaml_text import load_yaml
from search_spaces.yaml_lines import misread_numbers


def listed(overrides: Sequence[str]) -> list[str]:
    """Return the overrides that a program has given, as a list.

    Raises
    ------
    ConfigError
        If they are one text, or a mapping, or not texts.
    """
    if isinstance(overrides, str | Mapping) or not all(isinstance(wanted, str) for wanted in overrides):
        raise ConfigError(
            f"overrides: give a list of texts such as ['budget.evaluations=100', 'seed=1'] (got {overrides!r})"
        )
    return list(overrides)


def setting(key: str, value: str | int | None) -> str:
    """Return the override that gives a key a value, whatever marks of YAML are in it."""
    return f"{key}={json.dumps(value, ensure_ascii=False)}"


def override(values: dict[str, Any], text: str) -> None:
    """Change one key of `values`, in place.

    Parameters
    ----------
    values
        The search file, short forms written out.
    text
        `key.path=value`, the value in YAML; a number after `=+` is added to the one that is there.

    Raises
    ------
    ConfigError
        If the text or the place is not valid.
    """
    key, equals, wanted = text.partition("=")
    if not equals or not all(key.split(".")):
        raise ConfigError(f"--set {text}: write it as key.path=value, such as budget.evaluations=100")
    *parents, last = key.split(".")
    target: Any = values
    for part in parents:
        target = _section(target, part, text)
    if not isinstance(target, dict | list):
        raise ConfigError(f"--set {text}: {'.'.join(parents)} has no keys; set it as a whole")
    value = _value(text, wanted)
    if wanted.startswith("+"):
        value = _added(text, target, last, value)
    if isinstance(target, list):
        if not last.isdecimal() or int(last) >= len(target):
            raise ConfigError(f"--set {text}: name a list entry from 0 to {len(target) - 1}")
        target[int(last)] = value
    else:
        target[last] = value


def _section(target: Any, part: str, text: str) -> Any:
    """Return the mapping or list under a key, made where there is none; a range of two numbers becomes a mapping."""
    if isinstance(target, list) and part.isdecimal() and int(part) < len(target):
        return target[int(part)]
    if not isinstance(target, dict):
        raise ConfigError(f"--set {text}: the file has no `{part}` to set a key in; name a key that it has")
    if not isinstance(target.get(part), dict | list):
        target[part] = {}
    if _is_range(target[part]) and text.partition("=")[0].rpartition(".")[2] in ("low", "high", "start", "std"):
        low, high = target[part]
        target[part] = {"low": low, "high": high}
    return target[part]


def _is_range(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(bound, int | float) for bound in value)


def _value(text: str, wanted: str) -> Any:
    try:
        value = load_yaml(wanted)
    except (yaml.YAMLError, ValueError, TypeError):
        raise ConfigError(f"--set {text}: {wanted!r} is not a valid YAML value; quote it") from None
    for misread in misread_numbers(wanted):
        raise ConfigError(f"--set {text}: {misread}")
    return value


def _added(text: str, target: Any, key: str, more: Any) -> Any:
    """Return what `key=+more` means: that much more than the file says."""
    present = target.get(key) if isinstance(target, dict) else None
    main = MAIN_KEYS.get((key,)) if text.startswith(f"{key}=") else None
    if isinstance(present, dict) and main is not None:
        return present | {main: _added(text, present, main, more)}
    if not isinstance(more, int | float):
        raise ConfigError(f"--set {text}: {more!r} after =+ is not a number; write one such as 100 or 0.5")
    if not isinstance(present, int | float) or isinstance(present, bool):
        raise ConfigError(f"--set {text}: the file has no number to add to; give the value itself, without +")
    return present + more
