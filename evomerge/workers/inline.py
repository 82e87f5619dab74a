"""A worker in the process of the search: one merge engine and one evaluator."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from evomerge.files.messages import one_line
from evomerge.merging.derivatives.watched import watched
from evomerge.merging.engine.engine import MergeEngine
from evomerge.workers.base import OUT_OF_MEMORY, BrokenWorker, Request, Worker
from evomerge.workers.source_watch import SourceWatch
from fitness.objectives import Objectives, means
from fitness.results import Evaluation, ItemScores, no_seconds
from fitness.scoring.evaluator import Evaluator
from search_spaces.recipes.recipe import Recipe
from search_spaces.spaces.derivatives import ChainRule, Coefficient
from search_spaces.spaces.space import Genotype

log = logging.getLogger("evomerge")

T = TypeVar("T")

_NO_MEMORY = ("not enough memory", "can't allocate memory")  # torch's CPU allocator raises a RuntimeError


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
    chain_rule
        From derivatives by coefficients to derivatives by genes; None: a search by gradients is not for this worker.
    """

    def __init__(
        self,
        engine: MergeEngine,
        evaluator: Evaluator,
        watch: SourceWatch | None = None,
        chain_rule: ChainRule | None = None,
    ) -> None:
        self.engine = engine
        self.evaluator = evaluator
        self.watch = watch
        self.chain_rule = chain_rule

    @property
    def place(self) -> str:
        """Its torch device."""
        return str(self.evaluator.device)

    def prepare(self, recipe: Recipe, items: Sequence[str]) -> None:
        """Do what does not depend on a candidate: prepare the merge state and tokenise the items."""
        self.evaluator.prepare(items, self.engine.apply(recipe))

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
                return self._differentiate(request, np.array(request.gradient_at), seconds)
            started = time.perf_counter()
            model = self.engine.apply(request.recipe)
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
        except Exception as problem:  # whatever torch, the tasks' own metrics or their templates raise
            if "CUDA error" in str(problem):  # every later call would fail, too
                raise BrokenWorker(f"the GPU cannot continue ({one_line(problem)}); resume the run") from problem
            shortage = f"{OUT_OF_MEMORY} ({_batch(self.evaluator.batch_size)}): " if _no_memory(problem) else ""
            return Evaluation.failed(shortage + one_line(problem), seconds)

    def _differentiate(self, request: Request, genotype: Genotype, seconds: dict[str, float]) -> Evaluation:
        """Return the items' losses and the derivatives of their weighted sum by the genes."""
        if self.chain_rule is None:
            raise ValueError("this worker was made without a search space and has no derivatives by genes")
        started = time.perf_counter()
        total, losses, by_coefficient = self._in_memory(lambda: self._losses(request))
        gradient = self.chain_rule.derivatives(genotype, by_coefficient)
        seconds["score"] = time.perf_counter() - started
        return Evaluation(
            "step",
            objectives=(-total,),
            standard_errors=(float(losses.std(ddof=1) / np.sqrt(losses.size)) if losses.size > 1 else math.inf,),
            items=request.items,
            scores=-losses,
            seconds=seconds,
            gradient=tuple(gradient.tolist()),
        )

    def _losses(self, request: Request) -> tuple[float, npt.NDArray[np.float32], dict[Coefficient, float]]:
        """Return the weighted sum of the items' losses, the losses float32[I], and the derivatives of the sum."""
        total, losses = 0.0, np.zeros(len(request.items), np.float32)
        with watched(self.engine, request.recipe) as model:
            for batch in self.evaluator.losses(model.module, request.items).losses(model.module):
                batch.total.backward()  # type: ignore[no-untyped-call]  # torch says no type
                total += float(batch.total.detach())
                losses[list(batch.places)] = batch.losses
        return total, losses, model.derivatives

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
                if not _no_memory(problem) or self.evaluator.batch_size == 1:
                    raise
                self.evaluator.use_batch_size(self.evaluator.batch_size // 2)
                log.warning("%s: from here on %s", OUT_OF_MEMORY, _batch(self.evaluator.batch_size))
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _check_sources(self) -> None:
        if self.watch is not None:
            self.watch.check()


def _no_memory(problem: Exception) -> bool:
    if isinstance(problem, torch.cuda.OutOfMemoryError | MemoryError):
        return True
    return isinstance(problem, RuntimeError) and any(words in str(problem) for words in _NO_MEMORY)


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
        """Nothing was started."""
