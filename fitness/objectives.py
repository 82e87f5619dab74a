"""Scores of the tasks to the objectives that a search maximises.

Each task's score may be divided by the best source's (`normalize`), so that tasks of different difficulty count alike.
`weighted_sum` adds them up to one objective; `per_task` keeps them apart for strategies that look for a front, and
the weighted sum then only decides which candidate is called the best. A floor is a constraint: a candidate below
it is worse than any that keeps all floors, and of two such candidates the one that misses by less is the better one
(K. Deb, "An efficient constraint handling method for genetic algorithms", 2000).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from fitness.config import FitnessConfig
from fitness.estimation.estimators import Estimate, mean
from fitness.items import task_of
from fitness.results import Evaluation, ItemScores, TaskError


def by_task(scores: ItemScores | Evaluation) -> dict[str, np.ndarray]:
    """Task name to its items' scores, in the order of the items."""
    groups: dict[str, list[float]] = {}
    for item, score in zip(scores.items, scores.scores, strict=True):
        groups.setdefault(task_of(item), []).append(float(score))
    return {task: np.asarray(values) for task, values in groups.items()}


def means(scores: ItemScores | Evaluation) -> dict[str, Estimate]:
    """Task name to the mean of its items' scores, with its error."""
    return {task: mean(values) for task, values in by_task(scores).items()}


@dataclass(frozen=True)
class Objectives:
    """What the tasks' scores add up to.

    Attributes
    ----------
    weights
        Task name to its weight, > 0; they are divided by their sum.
    scales
        Task name to what its scores are divided by, > 0; 1 where absent.
    floors
        Task name to the lowest score that is good enough, in the unit of its metric, > 0.
    apart
        One objective per task, in the order of the weights, instead of their weighted sum.
    """

    weights: Mapping[str, float]
    scales: Mapping[str, float] = field(default_factory=dict)
    floors: Mapping[str, float] = field(default_factory=dict)
    apart: bool = False

    @classmethod
    def of(cls, config: FitnessConfig, sources: Sequence[ItemScores | Evaluation] = ()) -> Objectives:
        """What a search file asks for.

        Parameters
        ----------
        config
            The tasks, how they are normalised, and whether they are kept apart.
        sources
            Scores of the models that are merged, on all search items; needed where `relative_to_sources(config)`.

        Raises
        ------
        TaskError
            If no source scores above 0 on a task that is to be measured against the best of them.
        """
        weights = {task.task: task.weight for task in config.tasks}
        shares = {
            task.task: task.min_share_of_best_source
            for task in config.tasks
            if task.min_share_of_best_source is not None
        }
        scaled = weights if config.normalize == "best_source" else ()
        best = _best(sources, [*shares, *(task for task in scaled if task not in shares)])
        floors = {task: share * best[task] for task, share in shares.items()}
        return cls(weights, {task: best[task] for task in scaled}, floors, config.objectives == "per_task")

    def judge(self, evaluation: Evaluation, estimates: Mapping[str, Estimate]) -> Evaluation:
        """Return an evaluation with the objectives that follow from its tasks' estimated scores.

        Tasks count as independent: the error of a sum is √Σ(wₜ·seₜ)².

        Raises
        ------
        TaskError
            A weighted task has no estimate, or there is one of a task without a weight.
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
        """By how much the scores miss their floors, as shares of these, summed; 0 if they keep them all."""
        return sum(max(0.0, 1 - estimates[task].value / floor) for task, floor in self.floors.items())


def relative_to_sources(config: FitnessConfig) -> bool:
    """Whether the objectives cannot be told without the sources' scores."""
    return config.normalize == "best_source" or any(task.min_share_of_best_source is not None for task in config.tasks)


def _best(sources: Sequence[ItemScores | Evaluation], tasks: Sequence[str]) -> dict[str, float]:
    """Task name to the best source's mean score on it."""
    scores = [by_task(source) for source in sources]
    best = {task: max((float(source[task].mean()) for source in scores), default=0.0) for task in tasks}
    for task, value in best.items():
        if value <= 0:
            raise TaskError(
                f"task {task!r}: the best source scores {value:g}; "
                "min_share_of_best_source and normalize need a score above 0: "
                "remove the task's min_share_of_best_source and set fitness.normalize: none"
            )
    return best
