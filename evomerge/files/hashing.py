"""SHA-256 of files, without holding a file in memory."""

from __future__ import annotations

import errno
import hashlib
from pathlib import Path

CHUNK = 1 << 20
"""Bytes read at a time, and the size of a sample."""
SAMPLES = 64


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's contents, in hexadecimal."""
    if path.exists() and not path.is_file():  # a pipe or a device may never end
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def sha256_of_samples(path: Path) -> str:
    """Return the SHA-256 of 64 samples of 1 MiB, evenly spread over a file, its first and last bytes included."""
    digest = hashlib.sha256()
    last = max(path.stat().st_size - CHUNK, 0)
    with path.open("rb") as file:
        for index in range(SAMPLES):
            file.seek(index * last // (SAMPLES - 1))
            digest.update(file.read(CHUNK))
    return digest.hexdigest()
