"""Advice to the system about pages of memory; without effect where the system takes none."""

from __future__ import annotations

import ctypes
import mmap
from contextlib import suppress


def advise(address: int, size: int, advice: str) -> None:
    """Give advice about the whole pages within some bytes of memory.

    Parameters
    ----------
    address, size
        The bytes.
    advice
        Name of a constant of `mmap`: ``MADV_HUGEPAGE``, or ``MADV_DONTNEED`` for unchanged pages of a mapped file,
        which are read again when they are used again.
    """
    first = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
    size = (address + size) // mmap.PAGESIZE * mmap.PAGESIZE - first
    number = getattr(mmap, advice, None)
    if number is not None and size > 0:
        with suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(size), number)  # a refusal does no harm
