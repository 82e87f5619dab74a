"""A value worked out at the first block of a tensor that asks for it, and kept for the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class LastValueCache(Generic[Value]):
    """Remembers the value for one key: the last."""

    def __init__(self) -> None:
        self._key: object = None
        self._value: Value | None = None

    def get(self, key: object, make: Callable[[], Value]) -> Value:
        """Return the value for `key`, made anew when the last one was for another."""
        if self._value is None or self._key != key:
            self._key, self._value = key, make()
        return self._value
