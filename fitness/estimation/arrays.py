"""Arrays of files from anybody: what a file declares is checked before it is read."""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

LARGEST_FILE = 2_000_000_000
"""Bytes of all arrays of a file, unpacked."""
MOST_ENTRIES = 50_000_000
"""Answers in a matrix, which is held in float64."""


@contextmanager
def open_arrays(path: str | os.PathLike[str]) -> Iterator[np.lib.npyio.NpzFile]:
    """Open an `.npz` whose arrays are no larger than the file says, and all together not too large.

    Raises
    ------
    ValueError
        If it is not a regular file, or too large; numpy and zipfile raise their own errors for damaged files.
    """
    check_regular(path)
    with zipfile.ZipFile(path) as archive:
        total = sum(member.file_size for member in archive.infolist())
        if total > LARGEST_FILE:
            raise ValueError(f"its arrays take {total:,} bytes, more than {LARGEST_FILE:,}")
        for member in archive.infolist():
            _check_header(archive, member)
    with np.load(path, allow_pickle=False) as arrays:
        yield arrays


def check_regular(path: str | os.PathLike[str]) -> None:
    """Refuse pipes and devices, which may never end.

    Raises
    ------
    FileNotFoundError
        If there is nothing.
    ValueError
        If it is not a regular file.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"{path}: no such file; correct the path")
    if not Path(path).is_file():
        raise ValueError(f"{path}: not a regular file; name a file")


def _check_header(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    """Refuse an array that declares more than its member of the archive holds: numpy makes room for it first."""
    with archive.open(member) as file:
        version = npy.read_magic(file)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = read(file)
    if math.prod(shape) * dtype.itemsize > member.file_size:
        raise ValueError(f"array {member.filename} declares more than it has")
