"""A worker in the process of the search: one merge engine and one evaluator."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import torch

from evomerge.files.messages import one_line
from evomerge.merging.engine.engine import MergeEngine
from evomerge.workers.base import OUT_OF_MEMORY, BrokenWorker, Request, Worker, WorkerError
from evomerge.workers.gradient_steps import GradientSteps
from evomerge.workers.source_watch import SourceWatch
from fitness.functions.opening import AnyEvaluator
from fitness.objectives import Objectives, means
from fitness.results import EngineUnavailable, Evaluation, ItemScores, no_seconds
from fitness.scoring.shortage import no_memory
from search_spaces.recipes.recipe import Recipe

log = logging.getLogger("evomerge")

T = TypeVar("T")


class MergeWorker:
    """Merges and scores recipes, one at a time; between candidates it keeps only what is prepared once.

    Parameters
    ----------
    engine
        Builds a recipe's model.
    evaluator
        Scores it.
    watch
        Checks that the sources do not change; None: they are not checked.
    steps
        Computes steps of a gradient search; None: such a search is not for this worker.
    """

    def __init__(
        self,
        engine: MergeEngine,
        evaluator: AnyEvaluator,
        watch: SourceWatch | None = None,
        steps: GradientSteps | None = None,
    ) -> None:
        self.engine = engine
        self.evaluator = evaluator
        self.watch = watch
        self.steps = steps

    @property
    def place(self) -> str:
        """Its torch device."""
        return str(self.evaluator.device)

    def prepare(self, recipe: Recipe, items: Sequence[str]) -> None:
        """Do what does not depend on a candidate: prepare the merge state, tokenise the items, start an engine.

        Raises
        ------
        WorkerError
            If an engine of its own does not start.
        """
        try:
            self.evaluator.prepare(items, self.engine.apply(recipe))
        except EngineUnavailable as problem:
            raise WorkerError(str(problem)) from None

    def close(self) -> None:
        """End what was started beside this process; may be called twice."""
        self.evaluator.close()

    def evaluate(self, request: Request) -> Evaluation:
        """Build the recipe's model and score it; whatever goes wrong becomes a failed evaluation.

        Raises
        ------
        WorkerError
            If a source has changed: what was scored is not this recipe.
        BrokenWorker
            If the GPU is in a state that only a new process gets out of.
        """
        seconds = no_seconds()
        self._check_sources()
        evaluation = self._evaluate(request, seconds)
        self._check_sources()
        return evaluation

    def _evaluate(self, request: Request, seconds: dict[str, float]) -> Evaluation:
        try:
            if request.gradient_at is not None:
                return self._step(request, seconds)
            started = time.perf_counter()
            model = self.engine.apply(request.recipe, unquantized=request.unquantized)
            seconds["merge"] = time.perf_counter() - started
            scored = self._score(model, request)
            seconds["score"] = scored.forward_seconds
            answered = Evaluation(
                "ok",
                items=scored.items,
                scores=scored.scores,
                seconds=seconds,
                answers=scored.answers,
                flaws=scored.flaws,
            )
            estimates = means(scored)  # later rounds of a race may have no items of a small task
            weights = {task: self.evaluator.suite.weights[task] for task in estimates}
            return Objectives(weights).judge(answered, estimates)
        except EngineUnavailable as problem:
            raise BrokenWorker(str(problem)) from None
        except Exception as problem:  # whatever torch, the tasks' own metrics or their templates raise
            if "CUDA error" in str(problem) and not no_memory(problem):  # every later call would fail, too
                raise BrokenWorker(f"the GPU cannot continue ({one_line(problem)}); resume the run") from problem
            how = _batch(self.evaluator.batch_size)
            if request.gradient_at is not None and self.steps is not None:
                how = self.steps.how
            shortage = f"{OUT_OF_MEMORY} ({how}): " if no_memory(problem) else ""
            return Evaluation.failed(shortage + one_line(problem), seconds)

    def _step(self, request: Request, seconds: dict[str, float]) -> Evaluation:
        if self.steps is None:
            raise ValueError("this worker was made for a search without gradients")
        return replace(self.steps.evaluate(request, seconds), seconds=seconds)

    def _score(self, model: Any, request: Request) -> ItemScores:
        scored = self._in_memory(lambda: self.evaluator.score(model, request.items, want_answers=request.want_answers))
        if not np.isfinite(scored.scores).all():
            raise ValueError("a task's metric gave a score that is not a finite number; fix the task")
        return scored

    def _in_memory(self, work: Callable[[], T]) -> T:
        """Return what `work` returns; halve the batch size for good, and begin again, whenever memory runs out."""
        while True:
            try:
                return work()
            except Exception as problem:
                if not no_memory(problem) or self.evaluator.batch_size == 1:
                    raise
                self.evaluator.use_batch_size(self.evaluator.batch_size // 2)
                log.warning("%s: from here on %s", OUT_OF_MEMORY, _batch(self.evaluator.batch_size))
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _check_sources(self) -> None:
        if self.watch is not None:
            self.watch.check()


def _batch(size: int) -> str:
    return f"{size} sequence{'s' if size > 1 else ''} a batch"


class InlinePool:
    """A pool of one worker, which scores when `wait` is called."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self._queue: list[tuple[int, Request]] = []

    @property
    def free(self) -> int:
        """One recipe at a time."""
        return max(0, 1 - len(self._queue))

    def submit(self, tag: int, request: Request) -> None:
        """Queue a recipe."""
        self._queue.append((tag, request))

    def wait(self) -> list[tuple[int, Evaluation]]:
        """Score what is queued."""
        queue, self._queue = self._queue, []
        return [(tag, self.worker.evaluate(request)) for tag, request in queue]

    def close(self) -> None:
        """End what the worker has started beside this process."""
        self.worker.close()
