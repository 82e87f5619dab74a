"""Registries of named things that other packages may add to. Without pydantic, which a merge does not need.

A `Registry` maps names to values and remembers which package registered each.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Generic, TypeVar

T = TypeVar("T")

OURS = ("search_spaces", "fitness", "evomerge")
"""The packages of this project."""


class UnknownName(KeyError):
    """A name that nothing was registered under; the text names the nearest registered one."""

    def __str__(self) -> str:
        return str(self.args[0])


@dataclass
class _Registration:
    """Who registers at the moment, and how to take back what was registered."""

    origin: str
    undo: list[Callable[[], object]] = field(default_factory=list)


_current: ContextVar[_Registration | None] = ContextVar("current registration", default=None)


@contextmanager
def registering(origin: str) -> Iterator[None]:
    """Record `origin`, a distribution's name, for everything registered inside the block.

    If the block raises, everything it registered is removed again, in all registries.
    """
    registration = _Registration(origin)
    token = _current.set(registration)
    try:
        yield
    except BaseException:
        for undo in reversed(registration.undo):
            undo()
        raise
    finally:
        _current.reset(token)


class Registry(Generic[T]):
    """Values by name, in the order of registration.

    Parameters
    ----------
    noun
        What the values are, for messages: ``merge method``.
    """

    def __init__(self, noun: str) -> None:
        self.noun = noun
        self._values: dict[str, T] = {}
        self._origins: dict[str, str] = {}

    def register(self, name: str, value: T, module: str = "") -> None:
        """Add a value, with the origin that `registering` sets (``evomerge`` outside of it).

        Parameters
        ----------
        name
            A lower-case identifier.
        value
            What it stands for.
        module
            Where the value is defined. What is defined in this project is ours, whichever package imports it first.

        Raises
        ------
        ValueError
            If the name is taken or is not a lower-case identifier.
        """
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
            raise ValueError(f"{self.noun} {name!r}: not a valid name; use lower-case letters, digits and _")
        if name in self._values:
            raise ValueError(f"{self.noun} '{name}' is taken, {self._origins[name]} registers it; use another name")
        registration = None if module.partition(".")[0] in OURS else _current.get()
        self._values[name] = value
        self._origins[name] = "evomerge" if registration is None else registration.origin
        if registration is not None:
            registration.undo.append(lambda: (self._values.pop(name), self._origins.pop(name)))

    def __getitem__(self, name: str) -> T:
        """Return the value registered under `name`.

        Raises
        ------
        UnknownName
            If there is none; the text names the nearest one.
        """
        try:
            return self._values[name]
        except (KeyError, TypeError):
            raise UnknownName(self.unknown(name)) from None

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def values(self) -> tuple[T, ...]:
        """Return all values in the order of registration."""
        return tuple(self._values.values())

    def items(self) -> tuple[tuple[str, T], ...]:
        """Return all names with their values in the order of registration."""
        return tuple(self._values.items())

    def origin(self, name: str) -> str:
        """Return the name of the distribution that registered `name`; ``evomerge`` for our own."""
        self[name]
        return self._origins[name]

    def unknown(self, name: object) -> str:
        """Return the message about a name that is not registered: the nearest one, and all of them."""
        near = nearest(name, self)
        hint = "" if near is None else f"did you mean '{near}'? "
        return f"there is no {self.noun} {name!r}; {hint}valid: {', '.join(sorted(self))}"


def nearest(name: object, valid: Iterable[str]) -> str | None:
    """Return the valid name that is most like an unknown one; None if none is like it."""
    return next(iter(get_close_matches(str(name), sorted(valid), n=1, cutoff=0.5)), None)
