"""Compiling by numba, of the extra `fast`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from numba import njit

Compiled = TypeVar("Compiled", bound=Callable[..., object])


def compiled(function: Compiled) -> Compiled:
    """Compile at the first call, keeping the result on disk where there is a place for it.

    Python's lock is released while the function runs.
    """
    for cache in (True, False):
        try:
            result: Compiled = njit(nogil=True, error_model="numpy", cache=cache)(function)
            return result
        except RuntimeError:  # no folder to write to
            continue
    return function
