"""From the tasks' scores to the objectives that a search maximises.

Each task's score may be divided by the best source's (`normalize`), so that tasks of different difficulty count alike.
`weighted_sum` adds the tasks up to one objective; `per_task` keeps them apart for strategies that search for a Pareto
front, and the weighted sum then only decides which candidate is called the best. A lowest acceptable score is a
constraint: a candidate that violates one ranks behind all that violate none, and of two that do, the one with the
smaller violation is better (K. Deb, "An efficient constraint handling method for genetic algorithms", 2000).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from fitness.items import is_whole_model, positions_by_task
from fitness.results import Estimate, Evaluation, ItemScores, TaskError, mean


class WeightedTask(Protocol):
    """What the objectives need to know about a task of a search file (`fitness.tasks.config.TaskConfig`)."""

    @property
    def task(self) -> str:
        """Its name."""

    @property
    def weight(self) -> float:
        """Its share of the weighted sum, relative to the other tasks' weights; below 0 where scores are negated."""

    @property
    def min_share_of_best_source(self) -> float | None:
        """The lowest acceptable score, as a share of the best source's; None: any score is acceptable."""


def by_task(scores: ItemScores | Evaluation) -> dict[str, npt.NDArray[np.float64]]:
    """Task name to its items' scores, in the order of the items."""
    score_I = np.asarray(scores.scores, np.float64)
    return {task: score_I[positions] for task, positions in positions_by_task(scores.items).items()}


def means(scores: ItemScores | Evaluation) -> dict[str, Estimate]:
    """Task name to the mean of its items' scores, with its standard error."""
    score_I = np.asarray(scores.scores, np.float64)
    return {task: _mean(scores, score_I, places) for task, places in positions_by_task(scores.items).items()}


def _mean(scores: ItemScores | Evaluation, score_I: npt.NDArray[np.float64], places: Sequence[int]) -> Estimate:
    """Return a task's mean; the score of a model as a whole is not a sample of others, so it has no error."""
    if is_whole_model(scores.items[places[0]]):
        return Estimate(float(score_I[places[0]]), 0.0)
    return mean(score_I[list(places)])


@dataclass(frozen=True)
class Objectives:
    """How the tasks' scores become objectives.

    Attributes
    ----------
    weights
        Task name to its weight, > 0; they are divided by their sum.
    scales
        Task name to what its scores are divided by, > 0; 1 where absent.
    floors
        Task name to the lowest acceptable score, in the unit of its metric, > 0.
    apart
        One objective per task, in the order of the weights, instead of their weighted sum.
    """

    weights: Mapping[str, float]
    scales: Mapping[str, float] = field(default_factory=dict)
    floors: Mapping[str, float] = field(default_factory=dict)
    apart: bool = False

    @classmethod
    def of(
        cls,
        tasks: Sequence[WeightedTask],
        sources: Sequence[ItemScores | Evaluation] = (),
        *,
        normalize: bool = False,
        apart: bool = False,
    ) -> Objectives:
        """Return the objectives for some tasks.

        Parameters
        ----------
        tasks
            Names, weights and lowest acceptable scores.
        sources
            Scores of the models that are merged, on all search items; needed where scores are normalised, or a task
            has a lowest acceptable score.
        normalize
            Whether each task's scores are divided by the best source's.
        apart
            Whether each task is an objective, instead of their weighted sum.

        Raises
        ------
        TaskError
            No source scores above 0 on a task whose scores are compared with the best source's.
        """
        weights = {task.task: abs(task.weight) for task in tasks}
        shares = {
            task.task: task.min_share_of_best_source for task in tasks if task.min_share_of_best_source is not None
        }
        scaled = tuple(weights) if normalize else ()
        best = _best(sources, [*shares, *(task for task in scaled if task not in shares)])
        floors = {task: share * best[task] for task, share in shares.items()}
        return cls(weights, {task: best[task] for task in scaled}, floors, apart)

    def judge(self, evaluation: Evaluation, estimates: Mapping[str, Estimate]) -> Evaluation:
        """Return the evaluation with the objectives that follow from its tasks' estimated scores.

        Tasks count as independent: the standard error of a sum is √Σ(wₜ·seₜ)².

        Raises
        ------
        TaskError
            A task with a weight has no estimate, or a task with an estimate has no weight.
        """
        if estimates.keys() != self.weights.keys():
            odd = sorted(estimates.keys() ^ self.weights.keys())
            raise TaskError(f"scores and weights differ in their tasks ({', '.join(odd)}): score items of each one")
        total = sum(self.weights.values())
        shares = np.array([weight / total for weight in self.weights.values()])
        scale = np.array([self.scales.get(task, 1.0) for task in self.weights])
        value = np.array([estimates[task].value for task in self.weights]) / scale
        error = np.array([estimates[task].standard_error for task in self.weights]) / scale
        if not self.apart:
            value, error = np.atleast_1d(shares @ value), np.atleast_1d(np.linalg.norm(shares * error))
        return replace(
            evaluation,
            objectives=tuple(value.tolist()),
            standard_errors=tuple(error.tolist()),
            shares=tuple(shares.tolist()) if self.apart else (),
            violation=self.violation(estimates),
        )

    def violation(self, estimates: Mapping[str, Estimate]) -> float:
        """Return by how much scores are below the lowest acceptable ones, as shares of these, summed; 0 if none is."""
        return sum(max(0.0, 1 - estimates[task].value / floor) for task, floor in self.floors.items())


def _best(sources: Sequence[ItemScores | Evaluation], tasks: Sequence[str]) -> dict[str, float]:
    """Task name to the best source's mean score on it."""
    scores = [by_task(source) for source in sources]
    best = {task: max((float(source[task].mean()) for source in scores), default=0.0) for task in tasks}
    for task, value in best.items():
        if value <= 0:
            raise TaskError(
                f"task {task!r}: the best source scores {value:g}; "
                "min_share_of_best_source and normalize need a score above 0: "
                "remove the task's min_share_of_best_source and set fitness.normalize: none",
                task=task,
            )
    return best
