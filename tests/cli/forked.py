"""Commands in processes forked from one that has the imports done, so that a test can kill many of them.

Starting the command itself takes seconds of imports, twenty kills of it minutes.
"""

from __future__ import annotations

import os
import signal
import sys
from multiprocessing import get_context
from pathlib import Path

IMPORTED = [
    "datasets",
    "evomerge.cli.search",
    "evomerge.search.scoring_workers",
    "fitness.scoring.evaluator",
    "fitness.tasks.suite",
    "lm_eval.tasks",
    "transformers.models.llama.modeling_llama",
]


class Forked:
    """A command of evomerge in a process of its own, like `subprocess.Popen` as far as a test needs it."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        context = get_context("forkserver")
        context.set_forkserver_preload(IMPORTED)
        self._process = context.Process(target=_run, args=(folder, arguments))
        self._process.start()

    def poll(self) -> int | None:
        """Return the exit code; None while the process runs."""
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """Send SIGKILL; a process that has ended is left alone."""
        assert number == signal.SIGKILL
        self._process.kill()

    def wait(self) -> None:
        """Wait for its end."""
        self._process.join()


def _run(folder: Path, arguments: tuple[str, ...]) -> None:
    from evomerge.cli.main import main

    os.chdir(folder)
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    sys.argv = ["evomerge", *arguments]
    main()
