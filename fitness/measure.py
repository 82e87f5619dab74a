"""How candidates are measured: which items each generation is asked, and what the answers say of the full score.

A measure is a fold over the search's events: what it asks and estimates follows from the candidates asked and told
before, in order, so that a replayed search measures alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from fitness.estimators import Estimate
from fitness.evaluation import Evaluation, ItemScores
from fitness.inheritance import Prior, learn, posterior, prior
from fitness.items import task_of
from fitness.objectives import Objectives, means
from fitness.subset import default_subset


class Measure(Protocol):
    """What the search driver asks of a measure."""

    @property
    def objectives(self) -> Objectives:
        """What the tasks' scores add up to."""

    def items(self, generation: int) -> tuple[str, ...]:
        """Return the items that candidates of this generation are asked; the first call for it decides."""

    def judge(self, evaluation: Evaluation) -> Evaluation:
        """Return a scored evaluation with its objective and standard error."""

    def learn(self, evaluation: Evaluation) -> None:
        """Take a told evaluation into account for later generations."""


class PlainMeasure:
    """The same items for all, and the mean of their scores."""

    def __init__(self, items: Sequence[str], objectives: Objectives) -> None:
        self._items = tuple(items)
        self.objectives = objectives

    def items(self, generation: int) -> tuple[str, ...]:
        """Return the items; they are the same for every generation."""
        return self._items

    def judge(self, evaluation: Evaluation) -> Evaluation:
        """Return the evaluation with its tasks' means as the search's objectives."""
        return evaluation if evaluation.status == "failed" else self.objectives.judge(evaluation, means(evaluation))

    def learn(self, evaluation: Evaluation) -> None:
        """Learn nothing."""


@dataclass
class _Task:
    """One task's items, what is expected of a candidate on them, and what its candidates answered so far."""

    items: tuple[str, ...]
    position: dict[str, int]
    given: Prior
    expected: Prior
    answers: list[tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]]


class InheritedMeasure:
    """Few items, chosen anew for each generation, and `fitness.inheritance` for the rest.

    Parameters
    ----------
    parents
        Scores of each parent on all search items of all tasks, in [0, 1].
    objectives
        What the tasks' scores add up to.
    count
        Items per task and candidate.
    seed
        Decides the subsets.
    """

    def __init__(self, parents: Sequence[ItemScores], objectives: Objectives, count: int, seed: int) -> None:
        self.objectives = objectives
        self._count = count
        self._seed = seed
        self._subsets: dict[int, tuple[str, ...]] = {}
        self._tasks = {task: _new_task(task, parents) for task in objectives.weights}

    def items(self, generation: int) -> tuple[str, ...]:
        """Choose a generation's items by what all earlier candidates were like."""
        if generation not in self._subsets:
            chosen: list[str] = []
            for task in self._tasks.values():
                task.expected = learn(task.given, task.answers)
                positions = default_subset(task.expected, self._count, self._seed, generation)
                chosen += [task.items[position] for position in positions]
            self._subsets[generation] = tuple(chosen)
        return self._subsets[generation]

    def judge(self, evaluation: Evaluation) -> Evaluation:
        """Estimate the full score from the answers, the parents' and the earlier candidates'."""
        if evaluation.status == "failed":
            return evaluation
        estimates = {}
        for task, (scores, positions) in self._answers(evaluation).items():
            found = posterior(self._tasks[task].expected, scores, positions)
            estimates[task] = Estimate(found.value, found.standard_error)
        return self.objectives.judge(evaluation, estimates)

    def learn(self, evaluation: Evaluation) -> None:
        """Remember a candidate's answers."""
        if evaluation.status != "failed":
            for task, answers in self._answers(evaluation).items():
                self._tasks[task].answers.append(answers)

    def _answers(self, evaluation: Evaluation) -> dict[str, tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]]:
        groups: dict[str, tuple[list[float], list[int]]] = {task: ([], []) for task in self._tasks}
        for item, score in zip(evaluation.items, evaluation.scores.tolist(), strict=True):
            scores, positions = groups[task_of(item)]
            scores.append(score)
            positions.append(self._tasks[task_of(item)].position[item])
        return {task: (np.array(scores), np.array(positions, np.int64)) for task, (scores, positions) in groups.items()}


def _new_task(name: str, parents: Sequence[ItemScores]) -> _Task:
    items = tuple(item for item in parents[0].items if task_of(item) == name)
    rows = []
    for scored in parents:
        by_item = dict(zip(scored.items, scored.scores.tolist(), strict=True))
        rows.append([by_item[item] for item in items])
    given = prior(len(items), np.array(rows, np.float64))
    return _Task(items, {item: at for at, item in enumerate(items)}, given, given, [])
