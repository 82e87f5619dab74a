"""How fast this machine merges and scores: measured on the start of a search, with search items only."""

from __future__ import annotations

import time
from dataclasses import dataclass

from evomerge.runs.bill import TIMED, Bill
from evomerge.search.loop import SearchError
from evomerge.search.problem import Problem
from evomerge.workers.base import Request, Worker
from fitness.results import Evaluation

TIMES = 2
"""A model is scored this often; the quicker time counts, since the first also prepares."""
MORE = 4
"""Items are asked again in this many times their number: batches fill up, so that each takes less."""


@dataclass(frozen=True)
class Speed:
    """Seconds that things take on one worker.

    Attributes
    ----------
    merge
        Building a model.
    request
        Scoring it on no items.
    answer
        Each item on top of that.
    step
        A gradient step; 0 where there are none.
    candidate
        A whole candidate, merged and asked its items.
    start
        The evaluation of the space's start that was timed.
    """

    merge: float
    request: float
    answer: float
    step: float
    candidate: float
    start: Evaluation

    def seconds(self, bill: Bill, workers: int) -> dict[str, float]:
        """Return how long each stage takes; the stages of the search itself use all workers."""
        return {
            name: (
                line.requests * self.step
                if name == "steps"
                else line.requests * (self.merge + self.request) + line.answers * self.answer
            )
            / (workers if name in TIMED else 1)
            for name, line in bill.lines.items()
        }


def measure(problem: Problem, worker: Worker) -> Speed:
    """Return the speed of a worker that is ready.

    Raises
    ------
    SearchError
        If the space's start cannot be scored.
    """
    recipe = problem.space.decode(problem.space.start)
    few = tuple(problem.subset)
    candidate, start = _timed(worker, Request(recipe, few))
    score = max(candidate - start.seconds["merge"], 0.0)
    many = tuple(problem.search_items[: MORE * len(few)])
    request, answer = 0.0, score / len(few)
    if len(many) > len(few):  # no slope between the two: it would double the noise of both
        whole, evaluation = _timed(worker, Request(recipe, many))
        answer = min(answer, (whole - evaluation.seconds["merge"]) / len(many))
        request = score - answer * len(few)
    step = 0.0
    if problem.resolved().strategy.gradient_steps != 0:
        genotype = tuple(problem.space.start.tolist())
        step = _timed(worker, Request(recipe, problem.steps.items(0), gradient_at=genotype))[0]
    return Speed(start.seconds["merge"], request, answer, step, candidate, start)


def workers_of(settings: object) -> int:
    """Return how many workers a search file's section names; 1 where their number is decided when they start."""
    count = getattr(settings, "count", 1)
    return count if isinstance(count, int) else 1


def _timed(worker: Worker, request: Request) -> tuple[float, Evaluation]:
    """Return the seconds and the evaluation of the quicker of `TIMES` times."""
    timed = []
    for _ in range(TIMES):
        started = time.perf_counter()
        evaluation = worker.evaluate(request)
        if evaluation.status == "failed":
            raise SearchError(f"the start point cannot be scored: {evaluation.reason}; fix that before a search")
        timed.append((time.perf_counter() - started, evaluation))
    return min(timed, key=lambda pair: pair[0])
