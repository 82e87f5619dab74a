"""Locks on files and folders that a process holds, and that end with it, however it ends."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

if sys.platform != "win32":
    import fcntl


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Lock a file or folder, together with others who do the same; without effect where there are no such locks."""
    if sys.platform == "win32":
        yield
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def is_locked(path: Path, *, by_anybody: bool) -> bool | None:
    """Return whether another process has locked a file or folder; None where that cannot be known.

    Parameters
    ----------
    path
        The file or folder; the right to read it is enough on most file systems.
    by_anybody
        Whether locks that are held together with others (`held`) count, or only those of a single owner.
    """
    if sys.platform == "win32":
        return None
    for access in (os.O_RDWR, os.O_RDONLY):  # NFS wants the first for some locks; others' files and folders the second
        try:
            descriptor = os.open(path, access | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            continue
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_EX if by_anybody else fcntl.LOCK_SH) | fcntl.LOCK_NB)
            return False
        except BlockingIOError:
            return True
        except OSError:
            continue
        finally:
            os.close(descriptor)
    return None
