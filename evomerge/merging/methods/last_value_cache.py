"""A cache of one value: computed at the first block of a tensor, and kept for the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class LastValueCache(Generic[Value]):
    """Keeps the value for the last key only."""

    def __init__(self) -> None:
        self._key: object = None
        self._value: Value | None = None

    def get(self, key: object, make: Callable[[], Value]) -> Value:
        """Return the value for `key`; make it if the kept one is for another key."""
        if self._value is None or self._key != key:
            self._key, self._value = key, make()
        return self._value
