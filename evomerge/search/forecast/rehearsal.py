"""A search rehearsed with made-up answers: which recipes are asked which items does not have to be calculated twice.

The rehearsal is the search itself: its strategy, founders, races, finalists and held-out rows, on workers that make up
every answer at once. So each rule by which an answer is paid for once (a source that is a founder, a finalist that has
answered before, a recipe proposed again) counts in the forecast as it does in the search.

What depends on the answers can only be expected: how many candidates a race stops, how often a strategy proposes a
recipe again, how large a front is. `forecast` rehearses with several sets of made-up answers and returns the mean and
the range.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from evomerge.runs.bill import Bill, Line
from evomerge.runs.history import STAGES, RunHistory
from evomerge.runs.run import Event
from evomerge.search.final_evaluation import FinalEvaluation
from evomerge.search.loop import Search
from evomerge.search.problem import Problem
from evomerge.search.racing.pool import racing
from evomerge.search.recorded_scoring import RecordedScorer
from evomerge.workers.base import Pool, Request
from evomerge.workers.inline import InlinePool
from fitness.estimation.evaluation_plan import EvaluationPlan
from fitness.items import positions_by_task
from fitness.objectives import Objectives, by_task, means
from fitness.results import Evaluation, no_seconds

REHEARSALS = 4
"""Sets of made-up answers, of which two are enough where these differ little: an even number, see `PREFERRED`."""
EARLIEST, LATEST = 0.0, 1.0
"""P-values of every comparison of finalists at the ends of the range: each worse one leaves at once, or none early."""
LITTLE = 0.1
"""As a fraction of all answers."""
MOST_REHEARSED = 150
"""Candidates of one rehearsal; of a longer search, what these ask stands for the others."""
SOURCE_SCORE, MERGE_SCORE, SPREAD = -1.5, 0.0, 0.5
"""Log-odds of a right answer of a source and of a merge (better, as on the zoo), and how much either differs."""
CORRELATION = 0.7
"""Of a merge's scores on two tasks."""
TRADE_OFF = 0.8
"""Where tasks are objectives: what a merge is better at costs this much of it on the others, as in a population that is
selected for a front. Without it, a front of made-up answers has two members where a search has six."""
PREFERRED = 1.5
"""Log-odds of the strategy's guess, such as a distribution's mean, in every second rehearsal, and their negative in the
others: as the found recipe it needs no row of its own, and that happens about as often as not."""
DIFFICULTY = 1.5
"""Standard deviation of the log-odds of items."""


def forecast(problem: Problem, events: Iterable[Event] = (), evaluations: int | None = None) -> Bill:
    """Return what a search is expected to ask.

    Parameters
    ----------
    problem
        What is searched.
    events
        Of the run's earlier sessions; none: it begins.
    evaluations
        The budget; None: the search file's.
    """
    before = list(events)
    budget = problem.config.budget.evaluations if evaluations is None else evaluations
    limit = min(budget, _most(problem, before))
    rehearsed: list[Rehearsal] = []
    for seed in range(REHEARSALS):
        rehearsed.append(rehearse(problem, before, limit, seed))
        counts = [one.history.item_evaluations for one in rehearsed]
        if seed == 1 and max(counts) - min(counts) <= LITTLE * max(counts):
            break
    more = budget - limit if rehearsed[0].history.evaluations >= limit else 0  # else the strategy has come to its end
    return Bill(budget, {name: _line(name, rehearsed, more) for name in STAGES})


@dataclass(frozen=True)
class Rehearsal:
    """A whole search whose answers are made up.

    Attributes
    ----------
    history
        What it has asked.
    ends
        The same, but finalists leave as early as they can, and as late.
    """

    history: RunHistory
    ends: tuple[RunHistory, RunHistory]


@contextmanager
def _unlogged() -> Iterator[None]:
    """Keep made-up scores out of the search's log."""
    logger = logging.getLogger("evomerge")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


@_unlogged()
def rehearse(problem: Problem, events: Sequence[Event], evaluations: int, seed: int) -> Rehearsal:
    """Rehearse a whole search with made-up answers, after the events of earlier sessions."""
    log, worker = _InMemory(events), _MadeUpAnswers(problem, seed)
    pool = InlinePool(worker)
    budget = problem.config.budget.model_copy(update={"evaluations": evaluations, "hours": None})
    plan = problem.evaluation_plan(RecordedScorer(log, RunHistory(events), pool, problem.recipe_hash))
    search = problem.begin(log, _MeansOnly(plan), budget)
    scored, before = search.history.stages["candidates"], worker.built - _others(search.history)
    search.search(racing(pool, problem.config, search))
    built = worker.built - _others(search.history) - before  # a race builds a candidate again for each block
    scored.requests = max(scored.requests, built)
    guess = search.strategy.recommend()
    if guess is not None:
        worker.preferred = problem.recipe_hash(problem.space.decode(guess))
    early, late = (_ended(problem, search, log, pool, p_value) for p_value in (EARLIEST, LATEST))
    FinalEvaluation(log, problem, search, pool, p_value=_normal_p_value).ask()
    return Rehearsal(search.history, (early, late))


def _ended(problem: Problem, search: Search, log: _InMemory, pool: Pool, p_value: float) -> RunHistory:
    """Return the history of a search and its final evaluation in which every comparison of finalists has a p-value."""
    ended, events = copy(search), _InMemory(list(log.events()))
    ended.history = RunHistory(events.events())
    FinalEvaluation(events, problem, ended, pool, p_value=lambda *_: p_value).ask()
    return ended.history


def _others(history: RunHistory) -> int:
    """Return how many founders and gradient steps have been asked."""
    return history.stages["founders"].requests + history.stages["steps"].requests


def _most(problem: Problem, events: Sequence[Event]) -> int:
    """Return how many candidates are rehearsed: all gradient steps, and some of what comes after them."""
    strategy = problem.resolved().strategy
    steps = strategy.gradient_steps
    recorded = RunHistory(events).evaluations
    return MOST_REHEARSED + max(recorded, steps or 0)


def _line(name: str, rehearsed: Sequence[Rehearsal], more: int) -> Line:
    """Return a stage's line from some rehearsals; `more` candidates beyond them ask what those of a rehearsal do."""
    requests, answers, ends = [], [], []
    for one in rehearsed:
        factor = 1.0 if name != "candidates" else 1 + more / _candidates(one.history)
        requests.append(one.history.stages[name].requests * factor)
        answers.append(one.history.stages[name].answers * factor)
        ends += [end.stages[name].answers * factor for end in one.ends]
    return Line(fmean(requests), fmean(answers), round(min(answers + ends)), round(max(answers + ends)))


def _candidates(history: RunHistory) -> int:
    """Return how many candidates count for the budget and are not gradient steps."""
    return max(1, history.evaluations - history.stages["steps"].requests)


def _normal_p_value(one: Evaluation, other: Evaluation, weights: Mapping[str, float]) -> float:
    """Return about what the paired test of two recipes on the same items does, from a normal distribution."""
    total, mean, variance = sum(weights.values()), 0.0, 0.0
    others = by_task(other)
    for task, scores in by_task(one).items():
        share, difference = weights[task] / total, scores - others[task]
        mean += share * float(difference.mean())
        variance += share**2 * float(difference.var()) / len(difference)
    return math.erfc(abs(mean) / math.sqrt(2 * variance)) if variance else 1.0


class _InMemory:
    """A log that begins with some events and is kept in memory."""

    path = Path("rehearsal")
    origin = ""

    def __init__(self, events: Sequence[Event]) -> None:
        self._events = list(events)

    def record(self, event: Event) -> None:
        """Append an event."""
        self._events.append(event)

    def events(self) -> Iterator[Event]:
        """Yield all events."""
        yield from tuple(self._events)

    def write(self, name: str, text: str) -> None:
        """Keep nothing."""


class _MeansOnly:
    """An evaluation plan that asks what another one asks, judges by means, and learns nothing: it is quick."""

    def __init__(self, plan: EvaluationPlan) -> None:
        self._plan = plan

    @property
    def objectives(self) -> Objectives:
        """Those of the other plan."""
        return self._plan.objectives

    def items(self, generation: int) -> tuple[str, ...]:
        """Return what the other plan asks, which has learned nothing."""
        return self._plan.items(generation)

    def judge(self, evaluation: Evaluation) -> Evaluation:
        """Return the evaluation with the means of its answers as its estimates."""
        return self.objectives.judge(evaluation, means(evaluation)) if evaluation.has_scores else evaluation

    def learn(self, evaluation: Evaluation) -> None:
        """Learn nothing."""

    def judge_all(self, evaluations: Sequence[Evaluation]) -> list[Evaluation]:
        """Return the evaluations as they are."""
        return list(evaluations)


class _MadeUpAnswers:
    """A worker that makes up every answer: right with a probability that depends on the merge and on the item.

    Parameters
    ----------
    problem
        What is searched.
    seed
        Decides the answers; the same merge gives the same answers again.

    Attributes
    ----------
    preferred
        Hash of the strategy's guess, once it is known.
    built
        How many models were asked.
    """

    def __init__(self, problem: Problem, seed: int) -> None:
        self._seed = seed
        self._preference = -PREFERRED if seed % 2 else PREFERRED
        self._hash = problem.recipe_hash
        self._sources = {problem.recipe_hash(entry.recipe) for entry in problem.sources()}
        self._objectives = tuple(problem.suite.weights) if problem.config.fitness.objectives == "per_task" else ()
        self.preferred, self.built = "", 0
        self._abilities: dict[tuple[str, str], float] = {}
        self._difficulty: dict[str, float] = {}

    @property
    def place(self) -> str:
        """Nowhere: nothing is computed."""
        return "a rehearsal"

    def close(self) -> None:
        """Nothing was started."""

    def evaluate(self, request: Request) -> Evaluation:
        """Make up the answers to a request."""
        self.built += 1
        recipe = self._hash(request.recipe)
        rng = self._rng(f"{recipe}/{request.items}")
        if request.gradient_at is not None:
            losses = -np.ones(len(request.items), np.float32)
            slopes = tuple(rng.normal(size=len(request.gradient_at)).tolist())
            return Evaluation("step", (-1.0,), (0.1,), request.items, losses, no_seconds(), gradient=slopes)
        odds = np.zeros(len(request.items))
        for task, places in positions_by_task(request.items).items():
            odds[places] = self._ability(recipe, task) - self._difficulties([request.items[at] for at in places])
        scores = (rng.random(len(odds)) < 1 / (1 + np.exp(-odds))).astype(np.float32)
        return Evaluation("ok", items=request.items, scores=scores, seconds=no_seconds(), answers=("",) * len(scores))

    def _ability(self, recipe: str, task: str) -> float:
        """Return the log-odds of a merge's right answers to a task's items of mean difficulty."""
        if (recipe, task) not in self._abilities:
            score = SOURCE_SCORE if recipe in self._sources else MERGE_SCORE
            self._abilities[recipe, task] = score + SPREAD * self._difference(recipe, task)
        return self._preference if recipe == self.preferred else self._abilities[recipe, task]

    def _difference(self, recipe: str, task: str) -> float:
        """Return by how many standard deviations a merge is better than others at a task."""
        own = float(self._rng(f"{recipe}/{task}").normal())
        if len(self._objectives) > 1:
            return own - TRADE_OFF * fmean(float(self._rng(f"{recipe}/{one}").normal()) for one in self._objectives)
        return math.sqrt(CORRELATION) * float(self._rng(recipe).normal()) + math.sqrt(1 - CORRELATION) * own

    def _difficulties(self, items: Sequence[str]) -> NDArray[np.float64]:
        for item in items:
            if item not in self._difficulty:
                self._difficulty[item] = DIFFICULTY * float(self._rng(item).normal())
        return np.array([self._difficulty[item] for item in items])

    def _rng(self, text: str) -> np.random.Generator:
        digest = sha256(f"{self._seed}/{text}".encode()).digest()
        return np.random.default_rng(int.from_bytes(digest[:8], "big"))
