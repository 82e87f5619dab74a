"""Checks that source files do not change during a search, so that no score of other weights is recorded."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from evomerge.merging.sources.source import Source, fingerprint
from evomerge.workers.base import WorkerError


class SourceWatch:
    """Compares the sources' files with their first state: size, time and inode at each check, contents if those differ.

    Parameters
    ----------
    checkpoints
        Opened sources, by reference.
    """

    def __init__(self, checkpoints: Mapping[str, Source]) -> None:
        self._checkpoints = dict(checkpoints)
        self._contents = {reference: fingerprint(one)["files"] for reference, one in self._checkpoints.items()}
        self._stamps = {
            path: (reference, _stamp(path))
            for reference, checkpoint in self._checkpoints.items()
            for path in checkpoint.files
        }

    def check(self) -> None:
        """Check every file; a few microseconds each.

        Raises
        ------
        WorkerError
            If a file has vanished, or holds something else.
        """
        for path, (reference, stamp) in self._stamps.items():
            now = _stamp(path)
            if now == stamp:
                continue
            if now is None:
                raise _changed(reference, path, "vanished")
            if fingerprint(self._checkpoints[reference])["files"] != self._contents[reference]:
                raise _changed(reference, path, "changed")
            self._stamps[path] = (reference, now)  # touched, or replaced by a copy


def _stamp(path: Path) -> tuple[int, ...] | None:
    """Return size, modification time in nanoseconds, device and inode of a file; None if it does not exist."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns, status.st_dev, status.st_ino


def _changed(reference: str, path: Path, what: str) -> WorkerError:
    return WorkerError(
        f"{reference}: {path.name} has {what} during the search; nothing has been recorded since then; put the "
        "old file back, then resume the run"
    )
