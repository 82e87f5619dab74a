"""The inline worker as a Ray actor: what runs in a worker's process."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any

from evomerge.merging.engine.placement import Share
from evomerge.workers.base import WorkerError
from fitness.results import Evaluation
from search_spaces.recipes.recipe import Recipe


class Actor:
    """One worker. Ray runs `evaluate` and `beat` in two threads, so that a busy worker still answers.

    Parameters
    ----------
    config
        The search file's contents, its `workers` being an inline worker's.
    expected
        The driver's `Problem.environment()`: the same sources and items must be found here.
    share
        What this worker may count on, of the memory of its GPU and of its machine.
    """

    def __init__(self, config: Mapping[str, Any], expected: Mapping[str, Any], share: Share) -> None:
        self._config = config
        self._expected = expected
        self._share = share
        self._busy_since: float | None = None
        self._scored = 0

    def open(self) -> str:
        """Open the models and prepare what does not depend on a candidate; say where this is.

        Raises
        ------
        WorkerError
            If the models or tasks cannot be used here, or are not the driver's.
        """
        from evomerge.config.search_file import SearchConfig
        from evomerge.search.problem import Problem

        place = f"process {os.getpid()} on {socket.gethostname()}"
        try:
            problem = Problem(SearchConfig.model_validate(self._config), scan=False, share=self._share)
            self._check(problem.environment(), place)
            self._worker = problem.ready_worker()
        except WorkerError:
            raise
        except Exception as error:  # whatever models, tasks and devices raise
            reason = " ".join(str(error).split()) or type(error).__name__
            raise WorkerError(f"a worker cannot start ({place}): {reason}") from None
        return f"{place}, {self._worker.evaluator.device}"

    def evaluate(self, recipe: Recipe, items: Sequence[str], answers: bool = False) -> Evaluation:
        """Score a recipe; see `Worker.evaluate`."""
        self._busy_since = time.monotonic()
        try:
            return self._worker.evaluate(recipe, items, answers)
        finally:
            self._busy_since = None
            self._scored += 1

    def beat(self) -> str:
        """Say what this worker is doing."""
        since = self._busy_since
        doing = "idle" if since is None else f"busy for {time.monotonic() - since:.0f} s"
        return f"{doing}, {self._scored} candidates scored"

    def _check(self, found: Mapping[str, Any], place: str) -> None:
        for name, files in self._expected["sources"].items():
            if found["sources"].get(name) != files:
                raise WorkerError(f"models.{name}: on {place} it is not the driver's; put the same files there")
        if found["items"] != self._expected["items"]:
            raise WorkerError(f"fitness.tasks: on {place} a task has other items; put the same task files there")
        if found["evomerge"] != self._expected["evomerge"]:
            raise WorkerError(f"evomerge {found['evomerge']} on {place}, {self._expected['evomerge']} at the driver")
