"""The worker: one merge engine and one evaluator, here in the driver's own process."""

from __future__ import annotations

import time
from collections.abc import Sequence

from evomerge.merging.engine import MergeEngine
from fitness.evaluation import Evaluation
from fitness.objectives import Objectives, means
from fitness.scoring import Evaluator
from search_spaces.recipe import Recipe


class Worker:
    """Scores recipes, one at a time; holds nothing between candidates but what is prepared once."""

    def __init__(self, engine: MergeEngine, evaluator: Evaluator) -> None:
        self.engine = engine
        self.evaluator = evaluator

    def prepare(self, recipe: Recipe, items: Sequence[str]) -> None:
        """Do all that does not depend on a candidate: prepared merge state, tokenised batches."""
        self.evaluator.prepare(items, self.engine.apply(recipe))

    def evaluate(self, recipe: Recipe, items: Sequence[str]) -> Evaluation:
        """Build the recipe's model and score it; whatever goes wrong becomes a failed evaluation."""
        seconds = {"merge": 0.0, "score": 0.0, "wait": 0.0}
        try:
            started = time.perf_counter()
            model = self.engine.apply(recipe)
            seconds["merge"] = time.perf_counter() - started
            scored = self.evaluator.score(model, items)
            seconds["score"] = scored.forward_seconds
            answered = Evaluation("ok", items=scored.items, scores=scored.scores, seconds=seconds)
            return Objectives(self.evaluator.suite.weights).judge(answered, means(scored))
        except Exception as problem:  # whatever torch, the tasks' own metrics or their templates raise
            reason = " ".join(f"{type(problem).__name__}: {problem}".split())
            return Evaluation.failed(reason, seconds)


class InlinePool:
    """A pool of one worker that works when it is waited for."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self._queue: list[tuple[int, Recipe, Sequence[str]]] = []

    @property
    def free(self) -> int:
        """One recipe at a time."""
        return 1 - len(self._queue)

    def submit(self, tag: int, recipe: Recipe, items: Sequence[str]) -> None:
        """Queue a recipe."""
        self._queue.append((tag, recipe, items))

    def wait(self) -> list[tuple[int, Evaluation]]:
        """Score what is queued."""
        queue, self._queue = self._queue, []
        return [(tag, self.worker.evaluate(recipe, items)) for tag, recipe, items in queue]

    def close(self) -> None:
        """Nothing was started."""
