"""What is valid at a place of the search file, read from the type hints of its sections."""

from __future__ import annotations

import operator
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, TypeAlias

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from search_spaces.kinds import ByKind

Hint: TypeAlias = Any
"""A type hint, such as a field's annotation."""
Section: TypeAlias = type[BaseModel]


def hint_of(field: FieldInfo) -> Hint:
    """Return a field's type with its constraints."""
    return _constrained(field.annotation, tuple(field.metadata))


def alternatives(hint: Hint) -> list[Hint]:
    """Return the members of a union without None, each with the constraints around it; of another type, itself."""
    constraints: tuple[Any, ...] = ()
    while typing.get_origin(hint) is Annotated:
        constraints = (*typing.get_args(hint)[1:], *constraints)
        hint = typing.get_args(hint)[0]
    registered = next((entry for entry in constraints if isinstance(entry, ByKind)), None)
    if registered is not None:
        return list(registered.classes)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return [
            member for argument in typing.get_args(hint) for member in alternatives(_constrained(argument, constraints))
        ]
    return [] if hint is type(None) else [_constrained(hint, constraints)]


def _constrained(hint: Hint, constraints: tuple[Any, ...]) -> Hint:
    return operator.getitem(typing.cast(Any, Annotated), (hint, *constraints)) if constraints else hint


def bare(hint: Hint) -> Hint:
    """Return a type without its constraints."""
    return typing.get_args(hint)[0] if typing.get_origin(hint) is Annotated else hint


def sections(hint: Hint) -> list[Section]:
    """Return the config sections that a type mentions, at any depth, each once."""
    return list(dict.fromkeys(_sections(hint)))


def _sections(hint: Hint) -> Iterator[Section]:
    for member in alternatives(hint):
        plain = bare(member)
        if _is_section(plain):
            yield plain
        for argument in typing.get_args(plain):
            yield from _sections(argument)


def _is_section(plain: Hint) -> bool:
    return isinstance(plain, type) and issubclass(plain, BaseModel)


def kind_of(section: Section) -> str | None:
    """Return the `kind` that names a section among several; None where there is only one, whose `kind` has choices."""
    field = section.model_fields.get("kind")
    return None if field is None or len(typing.get_args(field.annotation)) > 1 else str(field.default)


def sections_for(hint: Hint, value: Any) -> list[Section]:
    """Return the section that the `kind` of `value` names, or all sections of the type if it names none."""
    found = [
        plain for plain in map(bare, alternatives(hint)) if isinstance(plain, type) and issubclass(plain, BaseModel)
    ]
    kind = value.get("kind") if isinstance(value, Mapping) else None
    named = [section for section in found if kind_of(section) == kind]
    return named if kind is not None and named else found


def step(hint: Hint, key: str | int, value: Any) -> Hint | None:
    """Return the type of a key of `value`; None if it has no such key."""
    fields = [section.model_fields.get(str(key)) for section in sections_for(hint, value)]
    hints = [hint_of(field) for field in fields if field is not None]
    for member in map(bare, alternatives(hint)):
        origin, arguments = typing.get_origin(member), typing.get_args(member)
        if origin is dict:
            hints.append(arguments[1])
        elif origin in (tuple, list) and (isinstance(key, int) or key.isdecimal()):
            hints.append(arguments[0])
    return typing.Union[tuple(hints)] if hints else None  # noqa: UP007


def choices(hint: Hint) -> list[str]:
    """Return the words that a type accepts."""
    return [word for member in alternatives(hint) for word in _words(member)]


def _words(member: Hint) -> Sequence[str]:
    """Return the words of a Literal, or of text that is one of some registered names."""
    if typing.get_origin(bare(member)) is typing.Literal:
        return typing.get_args(bare(member))
    return next((entry.choices for entry in _constraints(member) if hasattr(entry, "choices")), ())


def described(hint: Hint) -> str:
    """Return in words what may be written: `a number above 0 and below 1, or train, validation or test`."""
    members = alternatives(hint)
    kinds = [kind for section in sections_for(hint, None) if (kind := kind_of(section)) is not None]
    if len(members) > 1 and len(kinds) == len(members):
        return f"a kind ({listed(kinds)}) or a section with `kind:`"
    others = [part for part in dict.fromkeys(map(_described, members)) if part is not None]
    words = choices(hint)
    return ", or ".join([*others, listed(words)] if words else others)


def listed(words: Sequence[str]) -> str:
    """Return `a, b or c`."""
    return ", ".join(words[:-1]) + " or " + words[-1] if len(words) > 1 else words[0]


_SCALARS = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def _described(member: Hint) -> str | None:
    """Return one alternative in words; None for a choice of words, which are listed together."""
    plain = bare(member)
    origin, arguments = typing.get_origin(plain), typing.get_args(plain)
    if _words(member):
        return None
    if origin in (tuple, list):
        return f"a list{_at_least(member, ' with ')} (each entry {described(arguments[0])})"
    if origin is dict:
        return f"{_at_least(member, '') or 'entries'} of the form `name: {described(arguments[1])}`"
    if _is_section(plain):
        names = [name for name in plain.model_fields if name != "kind"]
        if names[:2] == ["low", "high"]:
            return (
                f"a range such as [0, 1] or {{low: 0, high: 1}}, numbers{_bounds(hint_of(plain.model_fields['high']))}"
            )
        return f"a section with keys such as {', '.join(names[:3])}" if names else "an empty section"
    return _SCALARS.get(plain, "another value") + _bounds(member)


def _bounds(member: Hint) -> str:
    found = {
        name: _number(getattr(constraint, name))
        for constraint in _constraints(member)
        for name in ("ge", "gt", "le", "lt")
        if getattr(constraint, name, None) is not None
    }
    if set(found) == {"ge", "le"}:
        return f" from {found['ge']} to {found['le']}"
    words = {"ge": "of at least", "gt": "above", "le": "at most", "lt": "below"}
    return " " + " and ".join(f"{words[name]} {bound}" for name, bound in found.items()) if found else ""


def _number(bound: float) -> str:
    """Return a bound with all its digits."""
    return f"{int(bound):,}" if bound == int(bound) else f"{bound:g}"


def _at_least(member: Hint, before: str) -> str:
    """Return how many entries there must be, if at least one."""
    fewest = max((getattr(constraint, "min_length", None) or 0 for constraint in _constraints(member)), default=0)
    return f"{before}at least {fewest} {'entry' if fewest == 1 else 'entries'}" if fewest else ""


def _constraints(member: Hint) -> Iterable[Any]:
    """Yield a type's constraints, those inside of a `Field(...)` too."""
    for entry in typing.get_args(member)[1:] if typing.get_origin(member) is Annotated else ():
        yield from entry.metadata if isinstance(entry, FieldInfo) else [entry]
