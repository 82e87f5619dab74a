"""How candidates are measured: which items each generation is asked, and what the answers say of the full score.

A measure is a fold over the search's events: what it asks and estimates follows from the candidates asked and told
before, in order, so that a replayed search measures alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from fitness.estimation import subset
from fitness.estimation.estimators import ESTIMATORS, NEEDS_BANK, NEEDS_OTHERS, EstimatorInputs
from fitness.estimation.irt import check_scores
from fitness.estimation.item_banks import ItemBanks
from fitness.items import task_of
from fitness.objectives import Objectives, means
from fitness.results import Evaluation, TaskError

Answers = tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]  # scores, positions among the task's items

LEARN_EVERY = 16  # candidates; learning takes about as long as scoring twenty of a tiny model
ANCHORED = ("anchor_mean", "gp_irt")
STRATIFIED = ("stratified_mean", "parent_post_stratification", "stratified_difference")


class EvaluationPlan(Protocol):
    """What the search driver asks of a measure."""

    @property
    def objectives(self) -> Objectives:
        """What the tasks' scores add up to."""

    def items(self, generation: int) -> tuple[str, ...]:
        """Return the items that candidates of this generation are asked; the first call for it decides."""

    def judge(self, evaluation: Evaluation) -> Evaluation:
        """Return a scored evaluation with its objectives and standard errors; it need not have answered all items."""

    def learn(self, evaluation: Evaluation) -> None:
        """Take a told evaluation into account for later generations."""


class FixedItemsPlan:
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


def estimator_inputs(
    task: str,
    items: Sequence[str],
    parents: Sequence[Evaluation],
    item_banks: ItemBanks | None,
    estimator: str,
) -> EstimatorInputs:
    """What is known of a task before the search, as far as an estimator uses it.

    Parameters
    ----------
    items
        The task's search items.
    parents
        Scores of each parent on (at least) these items.

    Raises
    ------
    TaskError
        The estimator needs something that there is not, or scores outside of [0, 1].
    """
    rows = []
    for scored in parents:
        by_item = dict(zip(scored.items, scored.scores.tolist(), strict=True))
        rows.append([by_item[item] for item in items])
    try:
        check_scores(rows)
        if item_banks is None or estimator not in (*NEEDS_BANK, *NEEDS_OTHERS, "inherited"):
            return EstimatorInputs(len(items), parents=np.array(rows, np.float64).reshape(len(rows), len(items)))
        banks, others = item_banks.of(task, items)
        return EstimatorInputs(
            len(items),
            parents=np.array(rows, np.float64).reshape(len(rows), len(items)),
            banks=banks,
            other_models=others if estimator in NEEDS_OTHERS else None,
        )
    except ValueError as error:
        raise TaskError(f"task {task!r}: {error}; or set fitness.subset.estimator: mean") from None


def within_unit_interval(scored: Evaluation) -> bool:
    """Whether all scores lie in [0, 1], as estimators want them."""
    return bool((scored.scores >= 0).all() and (scored.scores <= 1).all())


@dataclass
class _Task:
    """One task's items, what is known of it, and what its candidates answered so far."""

    items: tuple[str, ...]
    known: EstimatorInputs
    position: dict[str, int] = field(init=False)
    answers: list[Answers] = field(default_factory=list)
    learnt: int = 0  # answers that `known` rests on

    def __post_init__(self) -> None:
        self.position = {item: at for at, item in enumerate(self.items)}

    def learn(self) -> None:
        """Let what is known follow the answers, once there are enough new ones to make a difference."""
        new = len(self.answers) - self.learnt
        if new >= LEARN_EVERY or (new and not self.learnt):
            self.learnt = len(self.answers)
            self.known = replace(self.known, evaluated=tuple(self.answers))


class EstimatedPlan:
    """Few items, chosen anew for each generation, and an estimator of `fitness.estimation.estimators` for the rest.

    Parameters
    ----------
    items
        All search items of all tasks.
    known
        Task name to what is known of it: parents' scores, item parameters, other models' scores.
    objectives
        What the tasks' scores add up to.
    estimator
        Name of the estimator.
    count
        Items per task and candidate.
    seed
        Decides the subsets.
    rotate
        Whether each generation is asked other items than the one before.
    """

    def __init__(
        self,
        items: Sequence[str],
        known: Mapping[str, EstimatorInputs],
        objectives: Objectives,
        estimator: str,
        count: int,
        seed: int,
        rotate: bool = True,
    ) -> None:
        self.objectives = objectives
        self._name, self._estimate = estimator, ESTIMATORS[estimator]
        self._count, self._seed, self._rotate = count, seed, rotate
        self._subsets: dict[int, tuple[str, ...]] = {}
        self._tasks = {
            task: _Task(tuple(item for item in items if task_of(item) == task), known[task])
            for task in objectives.weights
        }

    def items(self, generation: int) -> tuple[str, ...]:
        """Choose a generation's items, where they follow from candidates by those told so far."""
        if generation not in self._subsets:
            for task in self._tasks.values():
                task.learn()
            first = next(iter(self._subsets.values()), None)
            self._subsets[generation] = first if first and not self._rotate else self._choose(generation)
        return self._subsets[generation]

    def judge(self, evaluation: Evaluation) -> Evaluation:
        """Estimate the full scores from the answers and from all that is known."""
        if evaluation.status == "failed":
            return evaluation
        answers = self._answers(evaluation)
        estimates = {task: self._estimate(*answers[task], self._tasks[task].known) for task in answers}
        return self.objectives.judge(evaluation, estimates)

    def learn(self, evaluation: Evaluation) -> None:
        """Remember a candidate's answers."""
        if evaluation.status != "failed" and self._name == "inherited":
            for task, answers in self._answers(evaluation).items():
                self._tasks[task].answers.append(answers)

    def _choose(self, generation: int) -> tuple[str, ...]:
        chosen: list[str] = []
        for task in self._tasks.values():
            positions = self._positions(task, min(self._count, len(task.items)), generation)
            chosen += [task.items[position] for position in positions]
        return tuple(chosen)

    def _positions(self, task: _Task, count: int, generation: int) -> npt.NDArray[np.int64]:
        """The asked positions: those that suit the estimator."""
        rng = subset.generator(self._seed, generation)
        if self._name == "inherited":
            return subset.default_subset(task.known.prior, count, self._seed, generation)
        if self._name in ANCHORED:
            bank = task.known.bank
            anchors = subset.anchors(np.column_stack((bank.discrimination, bank.difficulty)), count, rng)
            weights = dict(zip(anchors.positions.tolist(), anchors.weights.tolist(), strict=True))
            task.known = replace(task.known, weights={**(task.known.weights or {}), **weights})
            return anchors.positions
        if self._name in STRATIFIED:
            return subset.neyman(subset.parent_strata(task.known.parent_scores), count, rng)
        return subset.random(len(task.items), count, rng)

    def _answers(self, evaluation: Evaluation) -> dict[str, Answers]:
        groups: dict[str, tuple[list[float], list[int]]] = {task: ([], []) for task in self._tasks}
        for item, score in zip(evaluation.items, evaluation.scores.tolist(), strict=True):
            scores, positions = groups[task_of(item)]
            scores.append(score)
            positions.append(self._tasks[task_of(item)].position[item])
        return {task: (np.array(scores), np.array(positions, np.int64)) for task, (scores, positions) in groups.items()}
