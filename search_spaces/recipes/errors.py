"""The error that a wrong recipe or search space raises, and checks of plain data that raise it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from search_spaces.registry import nearest


class RecipeError(ValueError):
    """A recipe or search space that cannot be used; the text is one line that says what to write instead."""


def did_you_mean(name: object, valid: Iterable[str]) -> str:
    """Return the end of an error about an unknown name: the nearest valid one, or all if none is near."""
    choices = sorted(valid)
    near = nearest(name, choices)
    return f"use one of {', '.join(choices)}" if near is None else f"did you mean '{near}'?"


# --- checks of plain data, as YAML gives it; `place` is the path in the document ---


def mapping(
    value: Any, place: str, valid: Sequence[str], *, required: Sequence[str] = (), owner: str = "key"
) -> dict[str, Any]:
    """Return `value` if it is a mapping with `valid` keys only and all `required` ones; `owner` is the keys' noun."""
    if not isinstance(value, dict):
        raise RecipeError(f"{place}: {shown(value)} is not a mapping; write pairs such as {valid[0]}: ...")
    for key in value:
        if key not in valid:
            raise RecipeError(f"{place}: unknown {owner} '{key}'; {did_you_mean(key, valid)}")
    for key in required:
        if value.get(key) is None:
            raise RecipeError(f"{place}: '{key}' is missing; write {key}: ...")
    return value


def entries_of(value: Any, place: str, limit: int) -> list[Any]:
    """Return `value` if it is a list of at most `limit` entries."""
    if not isinstance(value, list):
        raise RecipeError(f"{place}: {shown(value)} is not a list; begin each entry with '- '")
    if len(value) > limit:
        raise RecipeError(f"{place}: {len(value)} entries are too many; write at most {limit}")
    return value


def text_of(value: Any, place: str) -> str:
    """Return `value` if it is text."""
    if not isinstance(value, str):
        raise RecipeError(f"{place}: {shown(value)} is not text; put it in quotes")
    return value


def shown(value: Any) -> str:
    """Return a value as errors show it, shortened."""
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
