"""Errors about the search file: one line per mistake, with its place and what to write instead."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date
from typing import Any, TypeAlias

from pydantic import BaseModel, ValidationError

from evomerge.config.schema import (
    Hint,
    Section,
    alternatives,
    bare,
    choices,
    described,
    hint_of,
    kind_of,
    listed,
    sections_for,
    step,
)
from evomerge.files.messages import counted, nearest, printable

Key: TypeAlias = str | int
Keys: TypeAlias = tuple[Key, ...]

_NO_KIND = ("unknown_kind", "union_tag_invalid", "union_tag_not_found")
"""Types of the reports that a section's `kind` is not a known one, or missing."""
NAME = "[key]"
"""In a report's location: the name of an entry is wrong, and not what stands under it."""
LONGEST_SHOWN = 60
"""Characters of a wrong value that an error repeats."""
MOST_PLACES = 2
"""Other places of an unknown key that an error names; a key that more have says little."""
MOST_MISTAKES = 25
"""Mistakes that are explained at once."""
DEEPEST = 4
"""Levels of sections that are searched for the place where a misplaced key belongs."""


class ConfigError(ValueError):
    """A search file that cannot be used; one line that names the file, the key and what to type instead."""


def explain(error: ValidationError, section: Section, values: Mapping[str, Any], origin: Callable[[Keys], str]) -> str:
    """Return one line per mistake.

    A validator reports each branch of a union by itself, under names of its own that are not keys of the file. So what
    counts of a report is the place, followed through the values that were checked; what to write there is read from
    the section's types.

    Parameters
    ----------
    error
        What validating `values` has raised.
    section
        The config class of the whole file.
    values
        What was read from the file, with the command line's changes.
    origin
        Names the file and line, or the command line's option, that a key comes from.
    """
    places: dict[Keys, list[Any]] = {}
    for details in error.errors(include_url=False):
        places.setdefault(_place(details, values), []).append(details)
    # A list that lost a wrong entry is reported as too short, too: only the innermost mistake counts.
    outer = {keys[:depth] for keys in places for depth in range(len(keys))}
    inner = [(keys, found) for keys, found in places.items() if keys not in outer]
    lines = [
        _line(keys, _message(found, keys, section, values), section, origin) for keys, found in inner[:MOST_MISTAKES]
    ]
    if len(inner) > MOST_MISTAKES:
        lines.append(f"... and {counted(len(inner) - MOST_MISTAKES, 'more mistake')}")
    return "\n".join(dict.fromkeys(lines))


def truth_values(section: Section, values: Mapping[str, Any], origin: Callable[[Keys], str]) -> str:
    """Return one line per truth value that stands for a number, which a validator takes for 0 or 1; empty: none.

    YAML reads yes, no, on and off as truth values. Parameters are those of `explain`.
    """
    lines = []
    for keys, value in _leaves(values, ()):
        hint = _at(keys, section, values)[0] if isinstance(value, bool) else None
        kinds = {bare(member) for member in alternatives(hint)}
        if kinds & {int, float} and bool not in kinds:
            lines.append(_line(keys, f"write {described(hint)} (got {shown(value)})", section, origin))
    return "\n".join(lines)


def _leaves(value: Any, keys: Keys) -> Iterator[tuple[Keys, Any]]:
    """Yield what is neither a mapping nor a list, with its place."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, (*keys, key))
    elif isinstance(value, list):
        for at, inner in enumerate(value):
            yield from _leaves(inner, (*keys, at))
    else:
        yield keys, value


def _line(keys: Keys, message: str, section: Section, origin: Callable[[Keys], str]) -> str:
    """Return an error's line; an error about several sections names the first of them itself."""
    if keys:
        return f"{origin(keys)}: {'.'.join(map(_key, keys))}: {message}"
    return f"{origin(named_first(message, section))}: {message}"


def _key(key: Key) -> str:
    """Return a key as an error names it, cut short."""
    return printable(str(key), LONGEST_SHOWN)


def named_first(message: str, section: Section) -> Keys:
    """Return the key that a message begins with, such as `fitness.held_out: ...`; nothing if it begins otherwise."""
    found = re.match(r"[a-z_]+(?:\.[\w-]+)*(?=: )|[a-z_]+(?:\.[\w-]+)+(?= )", message)
    keys = tuple(found[0].split(".")) if found else ()
    return keys if keys and keys[0] in section.model_fields else ()


def _place(details: Any, values: Any) -> Keys:
    """Return the keys of a report's location that can be followed in the file; a missing key is the last one."""
    keys: list[Key] = []
    parts = [part for part in details["loc"] if details["type"] != "unknown_kind" or part != "kind"]
    if parts[-1:] == [NAME]:
        parts = parts[:-2]
    for part in parts:
        if (isinstance(values, Mapping) and part in values) or (
            isinstance(values, list | tuple) and isinstance(part, int) and part < len(values)
        ):
            values = values[part]
        else:
            continue
        keys.append(part)
    if details["type"] == "missing":
        keys.append(parts[-1])
    elif details["type"] in _NO_KIND:
        keys.append("kind")
    return tuple(keys)


def _message(found: Sequence[Any], keys: Keys, section: Section, values: Mapping[str, Any]) -> str:
    """Return what is wrong at one place, and what to write there."""
    types = [details["type"] for details in found]
    if "extra_forbidden" in types:
        return f"unknown key; {_where_it_belongs(keys, section, values)}"
    own = next((details for details in found if details["type"] in ("value_error", "assertion_error")), None)
    if own is not None:
        text = " ".join(str(own["ctx"]["error"]).split())
        return text[:1].lower() + text[1:] if text[:2].istitle() else text
    hint, value = _at(keys, section, values)
    if any(details["loc"][-1] == NAME for details in found):
        name = next(name for name in value if not isinstance(name, str))
        return f"the name {shown(name)} is not text; put it in quotes, or write another"
    if "missing" in types:
        return f"missing; write {described(hint)} (`evomerge init` writes an example)"
    if any(type in types for type in _NO_KIND):
        hint, _ = _at(keys[:-1], section, values)
        kinds = [kind for found in sections_for(hint, {}) if (kind := kind_of(found))]
        return f"missing; write {listed(kinds)}" if value is None else unknown("kind", value, kinds)
    near = nearest(value, choices(hint))
    if near is not None:
        return f"{shown(value)} is not a choice here; did you mean `{near}`?"
    if types == ["too_short"]:
        return f"write {described(hint)} (got {len(value)})"
    if isinstance(value, bool | float | int | date) and {bare(member) for member in alternatives(hint)} == {str}:
        return f"write {described(hint)} in quotes (got {shown(value)})"  # which YAML has read as something else
    return f"write {described(hint)} (got {shown(value)})"


def unknown(noun: str, name: object, known: Sequence[str]) -> str:
    """Return the error for a name that is not among the known ones."""
    near = nearest(name, known)
    hint = f"did you mean `{near}`?" if near is not None else f"write {listed(sorted(known))}"
    return f"{noun} {shown(name)} is unknown; {hint}"


def shown(value: Any) -> str:
    """Return a wrong value as an error repeats it, cut short."""
    if value is None:
        return "nothing"
    if isinstance(value, Mapping):
        return "a section"
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, int) and abs(value) >= 10**LONGEST_SHOWN:
        return "a number of more digits"  # Python refuses to write out the longest ones
    text = repr(value[: LONGEST_SHOWN + 1]) if isinstance(value, str) else str(value)
    text = text.lower() if isinstance(value, bool) else text
    return text if len(text) <= LONGEST_SHOWN else text[: LONGEST_SHOWN - 3] + "..."


def _at(keys: Keys, section: Section, values: Any) -> tuple[Hint, Any]:
    """Return the type and the value at a place."""
    hint: Hint = section
    for key in keys:
        hint = step(hint, key, values)
        if isinstance(values, Mapping):
            values = values.get(key)
        elif isinstance(values, list | tuple) and isinstance(key, int) and key < len(values):
            values = values[key]
    return hint, values


def _where_it_belongs(keys: Keys, section: Section, values: Mapping[str, Any]) -> str:
    """Return the hint for an unknown key: where it belongs, or the nearest valid key here."""
    *parents, last = keys
    key = str(last)
    hint, value = _at(tuple(parents), section, values)
    places = list(_owners(key, hint, value, tuple(parents))) or list(_owners(key, section, values, ()))
    if 0 < len(places) <= MOST_PLACES:
        return "it belongs elsewhere: write " + listed([".".join(map(str, place)) for place in places])
    valid = sorted({name for owner in sections_for(hint, value) for name in owner.model_fields})
    near = nearest(key, valid)
    return f"did you mean `{near}`?" if near is not None else f"valid here: {', '.join(valid)}"


def _owners(key: str, hint: Hint, value: Any, place: Keys) -> Iterator[Keys]:
    """Yield the places in a section, nested ones included, where `key` is valid."""
    if len(place) > DEEPEST:
        return
    for section in sections_for(hint, value):
        belongs: Callable[[str, Any], Sequence[str]] | None = getattr(section, "places_of", None)
        if belongs is not None:
            yield from ((*place, name, key) for name in belongs(key, value))
        for name, field in section.model_fields.items():
            if name == "kind":
                continue
            inner = value.get(name) if isinstance(value, Mapping) else None
            for found in sections_for(hint_of(field), inner if isinstance(inner, Mapping) else _default(field)):
                if key in found.model_fields and key != "kind":
                    yield (*place, name, key)
                yield from _owners(key, found, inner, (*place, name))


def _default(field: Any) -> Any:
    """Return a section's default as a mapping, so that its `kind` can be read."""
    default = field.get_default(call_default_factory=True)
    return {"kind": getattr(default, "kind", None)} if isinstance(default, BaseModel) else None
