"""Sources must stay what they were when they were opened: nothing that other weights gave may be recorded."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from evomerge.merging.sources.source import Source, fingerprint
from evomerge.workers.base import WorkerError


class SourceWatch:
    """Compares the sources' files with what they were: size, time and place by every look, contents if those differ.

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
        """Look at every file; a few microseconds each.

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
            self._stamps[path] = (reference, now)  # touched, or copied over with the same contents


def _stamp(path: Path) -> tuple[int, ...] | None:
    """Return size, time of change in nanoseconds, and identity of a file; None if it is not there."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns, status.st_dev, status.st_ino


def _changed(reference: str, path: Path, what: str) -> WorkerError:
    return WorkerError(
        f"{reference}: {path.name} has {what} while the search ran, and nothing was recorded since; put the old file "
        "back, then resume the run"
    )
