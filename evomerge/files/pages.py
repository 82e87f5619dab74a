"""Advice to the system about pages of memory and of its cache of files; without effect where the system takes none."""

from __future__ import annotations

import ctypes
import mmap
import os
from contextlib import suppress
from functools import cache
from typing import BinaryIO

PIECE = 4 << 20
"""Bytes that are written at a time."""
UNCACHED = 0x80
"""Linux's RWF_DONTCACHE, which Python has no name for yet."""


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
            c_library().madvise(ctypes.c_void_p(first), ctypes.c_size_t(size), number)  # a refusal does no harm


@cache
def c_library() -> ctypes.CDLL:
    """Return the C library of this process, opened once: `ctypes` makes a class each time."""
    return ctypes.CDLL(None)


def write_uncached(file: BinaryIO, data: memoryview, place: int) -> None:
    """Write bytes to a place of a file, and let them go to the disk at once, not stay in memory.

    The system's cache would take as much memory as a model has, page by page, which costs more time than merging it;
    and the flush at the end would wait for the disk alone. Before Linux 6.14 and on other systems, the cache is used.
    """
    for start in range(0, len(data), PIECE):
        piece = data[start : start + PIECE]
        written = 0
        with suppress(OSError, NotImplementedError, AttributeError):
            written = os.pwritev(file.fileno(), [piece], place + start, UNCACHED)
        if written < len(piece):  # the flag is refused; or the disk fails, and then the plain write says why
            file.seek(place + start + written)
            file.write(piece[written:])
