"""A cache of one value: computed at the first block of a tensor, and kept for the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class LastValueCache(Generic[Value]):
    """Keeps the value for the last key only; threads may share it."""

    def __init__(self) -> None:
        self._last: tuple[object, Value] | None = None

    def get(self, key: object, make: Callable[[], Value]) -> Value:
        """Return the value for `key`; make it if the kept one is for another key."""
        last = self._last
        if last is None or last[0] != key:
            last = self._last = (key, make())
        return last[1]
