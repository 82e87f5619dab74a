"""How the search went: each candidate, the best so far with its error, and the stages, against answers and time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from evomerge.runs.history import STAGE_OF_KIND, RunHistory
from evomerge.runs.report.contents import Contents
from fitness.results import Evaluation

MOST_POINTS = 1500
"""Candidates that are drawn; of more, every second, third ... one, and all that were the best so far."""
Z = 1.96
"""Standard errors on each side of a 95 % interval."""


@dataclass(frozen=True)
class Point:
    """One told candidate, and the best of all candidates so far.

    Attributes
    ----------
    answers, seconds
        Answers asked and seconds searched until it was told, those of the sources before the search included.
    score, error
        Its search score and the standard error; for a gradient step the loss, and 0.
    best, best_error
        The best search score so far, and its standard error; None before there is one.
    """

    candidate: int
    stage: str
    kind: str
    answers: int
    seconds: float
    score: float
    error: float
    best: float | None
    best_error: float | None

    @property
    def is_step(self) -> bool:
        """Whether it is a gradient step, which has a loss and no score."""
        return self.kind == "gradient"


@dataclass(frozen=True)
class Span:
    """A stage of the search: where it ends, in answers and seconds from the beginning."""

    stage: str
    answers: int
    seconds: float


def points(contents: Contents) -> list[Point]:
    """Return all candidates that were scored, and all steps, in the order in which they were told."""
    return list(_points(contents.history))


def _points(history: RunHistory) -> Iterator[Point]:
    answers = _source_answers(history)
    standing = _Standing()
    for identity, told in history.told.items():
        asked, evaluation = history.asked[identity], told.evaluation
        if not told.cached:
            answers += len(evaluation.items) - standing.answered(asked.recipe, asked.candidate.kind)
        if evaluation.status == "ok" and not told.cached:
            standing.add(asked.recipe, evaluation)
        if evaluation.status not in ("ok", "step"):
            continue
        is_step = evaluation.status == "step"
        yield Point(
            identity,
            STAGE_OF_KIND[asked.candidate.kind],
            asked.candidate.kind,
            answers,
            told.elapsed,
            -evaluation.value if is_step else evaluation.value,
            0.0 if is_step else evaluation.standard_error,
            None if standing.best is None else standing.best.value,
            None if standing.best is None else standing.best.standard_error,
        )


class _Standing:
    """The scored recipes so far, and the best of them."""

    def __init__(self) -> None:
        self.best: Evaluation | None = None
        self._best_recipe = ""
        self._recipes: dict[str, Evaluation] = {}

    def answered(self, recipe: str, kind: str) -> int:
        """Return how many answers of a candidate's evaluation are earlier ones."""
        return len(self._recipes[recipe].items) if kind == "again" and recipe in self._recipes else 0

    def add(self, recipe: str, evaluation: Evaluation) -> None:
        """Take a score, which replaces an earlier one of the recipe."""
        self._recipes[recipe] = evaluation
        if recipe == self._best_recipe:  # asked again: it may be the best no more
            self._best_recipe, self.best = max(self._recipes.items(), key=lambda pair: pair[1].fitness)
        elif self.best is None or evaluation.fitness > self.best.fitness:
            self._best_recipe, self.best = recipe, evaluation


def spans(contents: Contents, found: Sequence[Point]) -> list[Span]:
    """Return the stages in order, the scoring of the sources first; a stage that comes back is a new span."""
    sources = _source_answers(contents.history)
    stages = [Span("sources", sources, 0.0)] if sources else []
    for point in found:
        span = Span(point.stage, point.answers, point.seconds)
        if stages and stages[-1].stage == point.stage:
            stages[-1] = span
        else:
            stages.append(span)
    return stages


def _source_answers(history: RunHistory) -> int:
    return sum(len(one.items) for (purpose, _), one in history.reference_scores.items() if purpose == "parent")


def thinned(found: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """Return at most about `most` points: every n-th, every change of the best so far, and the last."""
    stride = -(-len(found) // most)
    kept, before = [], None
    for number, point in enumerate(found):
        if number % stride == 0 or point.best != before or number == len(found) - 1:
            kept.append(point)
        before = point.best
    return kept


@dataclass(frozen=True)
class Failure:
    """A candidate without a score, and why."""

    candidate: int
    reason: str


def failures(contents: Contents) -> list[Failure]:
    """Return the candidates that failed, in the order in which they were told."""
    told = contents.history.told.items()
    return [Failure(one, each.evaluation.reason) for one, each in told if each.evaluation.status == "failed"]


@dataclass(frozen=True)
class Ranked:
    """One of the best distinct recipes by search score, as text."""

    rank: int
    candidate: int
    kind: str
    generation: int
    score: str
    answers: int
    recipe: str


def ranking(contents: Contents, most: int) -> list[Ranked]:
    """Return the best distinct recipes by search score, at most `most`."""
    history, rows = contents.history, []
    for rank, identity in enumerate(history.ranking()[:most], start=1):
        asked, evaluation = history.asked[identity], history.evaluation(identity)
        score = f"{evaluation.value:.3f} ± {evaluation.standard_error:.3f}"
        one = asked.candidate
        rows.append(Ranked(rank, identity, one.kind, one.generation, score, len(evaluation.items), asked.recipe))
    return rows
