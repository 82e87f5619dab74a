"""The machine-wide cache: converted files and calibration statistics. Safe to delete."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from evomerge.files.atomic import FileError, atomic_folder, disk_errors

CACHE = "EVOMERGE_CACHE"
"""Environment variable that names the folder; by default ``$XDG_CACHE_HOME/evomerge`` or ``~/.cache/evomerge``."""
ELSEWHERE = f"set {CACHE} to a folder on another disk"
"""What a user does when the cache cannot be written, as the end of a message."""


def cache_folder(kind: str) -> Path:
    """Return the folder for cached files of one kind; it need not exist.

    Raises
    ------
    FileError
        If the user has no home, as in some containers, and no variable names the folder.
    """
    if os.environ.get(CACHE):
        return Path(os.environ[CACHE]).expanduser() / kind
    home = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(home) if home else Path.home() / ".cache") / "evomerge" / kind
    except RuntimeError:
        raise FileError(f"there is no home folder for the cache; set {CACHE} to a folder") from None


def cached_folder(folder: Path, fill: Callable[[Path], None], *, size: int | None = None) -> Path:
    """Return a folder of the cache, which is filled at first use: once, however many processes ask for it.

    Parameters
    ----------
    folder
        The folder.
    fill
        Writes what belongs into it to the folder that it is given.
    size
        Bytes that it will take, where that is known.

    Raises
    ------
    FileError
        If the cache cannot be written.
    """
    if folder.is_dir():
        return folder
    with disk_errors(folder, ELSEWHERE):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / f".{folder.name}.lock"):
            if not folder.is_dir():  # another process may have filled it meanwhile
                with atomic_folder(folder, size=size, elsewhere=ELSEWHERE) as temporary:
                    fill(temporary)
    return folder
