"""A worker as a Ray actor: what runs in a worker's process."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable

from evomerge.files.messages import counted, reason
from evomerge.plugins import load_plugins
from evomerge.workers.base import Request, Worker, WorkerError
from fitness.results import Evaluation


class Actor:
    """One worker. Ray runs `evaluate` and `heartbeat` in two threads, so that a busy worker still answers.

    Parameters
    ----------
    start_worker
        Opens the models and tasks in this process and returns a worker that is ready.
    """

    def __init__(self, start_worker: Callable[[], Worker]) -> None:
        self._start_worker = start_worker
        self._busy_since: float | None = None
        self._scored = 0

    def open(self) -> str:
        """Open the models and prepare what does not depend on a candidate; return where this is.

        Raises
        ------
        WorkerError
            If the models or tasks cannot be used here, or differ from the driver's.
        """
        place = f"process {os.getpid()} on {socket.gethostname()}"
        load_plugins()  # recipes may name their methods
        try:
            self._worker = self._start_worker()
        except Exception as error:  # whatever models, tasks and devices raise
            raise WorkerError(f"a worker cannot start ({place}): {reason(error)}") from None
        return f"{place}, {self._worker.place}"

    def evaluate(self, request: Request) -> Evaluation:
        """Score a recipe; see `Worker.evaluate`."""
        self._busy_since = time.monotonic()
        try:
            return self._worker.evaluate(request)
        finally:
            self._busy_since = None
            self._scored += 1

    def heartbeat(self) -> str:
        """Say what this worker is doing."""
        since = self._busy_since
        doing = "idle" if since is None else f"busy for {time.monotonic() - since:.0f} s"
        return f"{doing}, {counted(self._scored, 'candidate')} scored"
