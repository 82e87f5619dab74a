"""Item scores to the value that the search maximises."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from fitness.estimators import Estimate, mean
from fitness.evaluation import Evaluation, ItemScores, TaskError
from fitness.items import task_of


def by_task(scores: ItemScores | Evaluation) -> dict[str, np.ndarray]:
    """Task name to its items' scores, in the order of the items."""
    groups: dict[str, list[float]] = {}
    for item, score in zip(scores.items, scores.scores, strict=True):
        groups.setdefault(task_of(item), []).append(float(score))
    return {task: np.asarray(values) for task, values in groups.items()}


def aggregate(weights: Mapping[str, float], scores: ItemScores) -> tuple[float, float]:
    """Weighted mean over the tasks of each task's mean score.

    Parameters
    ----------
    weights
        Task name to its weight (`TaskSuite.weights`), > 0; they are divided by their sum.
    scores
        Scores of items of these tasks, at least one of each.

    Returns
    -------
    value, standard_error
        Tasks count as independent: the error is √Σ(wₜ·seₜ)².

    Raises
    ------
    TaskError
        A weighted task has no scores, or there are scores of a task without a weight.
    """
    groups = by_task(scores)
    if groups.keys() != weights.keys():
        odd = sorted(groups.keys() ^ weights.keys())
        raise TaskError(f"scores and weights differ in their tasks ({', '.join(odd)}): score items of each one")
    total = sum(weights.values())
    estimates: dict[str, Estimate] = {task: mean(values) for task, values in groups.items()}
    value = sum(weights[task] / total * estimate.value for task, estimate in estimates.items())
    variance = sum((weights[task] / total * e.standard_error) ** 2 for task, e in estimates.items())
    return value, math.sqrt(variance)
