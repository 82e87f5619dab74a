"""How candidates are evaluated: which items each generation is asked, and what its answers say about the full score.

A plan follows the search's events: what it asks and estimates depends on the candidates asked and told so far, in
order. A resumed search replays the events, so its plan comes out the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from fitness.estimation import subset
from fitness.estimation.inputs import EstimatorInputs
from fitness.estimation.irt import check_scores
from fitness.estimation.item_banks import ItemBanks
from fitness.estimation.registry import ESTIMATORS, SubsetKind
from fitness.items import positions_by_task, task_of
from fitness.objectives import Objectives, means
from fitness.results import Evaluation, TaskError

Positions: TypeAlias = npt.NDArray[np.int64]
Answers: TypeAlias = tuple[npt.NDArray[np.float64], Positions]  # scores, positions among the task's items

LEARN_FROM_AT_THE_END = 128  # latest candidates; estimates of a whole search are made once
LEARN_EVERY = 16  # candidates; learning takes about as long as scoring twenty candidates of a tiny model


class EvaluationPlan(Protocol):
    """What the search needs from a plan."""

    @property
    def objectives(self) -> Objectives:
        """How the tasks' scores become objectives."""

    def items(self, generation: int) -> tuple[str, ...]:
        """Return the items that candidates of this generation are asked; decided at the first call for it."""

    def judge(self, evaluation: Evaluation) -> Evaluation:
        """Return a scored evaluation with its objectives and standard errors; not all items need an answer."""

    def learn(self, evaluation: Evaluation) -> None:
        """Use a told evaluation for later generations."""

    def judge_all(self, evaluations: Sequence[Evaluation]) -> list[Evaluation]:
        """Return the candidates of a whole search with what is known of their scores at its end."""


class FixedItemsPlan:
    """Every candidate is asked the same items; its score is their mean."""

    def __init__(self, items: Sequence[str], objectives: Objectives) -> None:
        self._items = tuple(items)
        self.objectives = objectives

    def items(self, generation: int) -> tuple[str, ...]:
        """Return the items; they are the same for every generation."""
        return self._items

    def judge(self, evaluation: Evaluation) -> Evaluation:
        """Return the evaluation with the objectives that follow from its tasks' means."""
        return self.objectives.judge(evaluation, means(evaluation)) if evaluation.has_scores else evaluation

    def learn(self, evaluation: Evaluation) -> None:
        """Learn nothing."""

    def judge_all(self, evaluations: Sequence[Evaluation]) -> list[Evaluation]:
        """Return the evaluations as they are."""
        return list(evaluations)


def estimator_inputs(
    task: str,
    items: Sequence[str],
    parents: Sequence[Evaluation],
    item_banks: ItemBanks | None,
    estimator: str,
) -> EstimatorInputs:
    """Return what is known about a task before the search, as far as an estimator uses it.

    Parameters
    ----------
    items
        The task's search items.
    parents
        Scores of each parent on (at least) these items.

    Raises
    ------
    TaskError
        Something that the estimator needs is missing, or scores are outside [0, 1] and the estimator needs that.
    """
    found = ESTIMATORS[estimator]
    taken = found.needs | found.uses
    by_item = [dict(zip(scored.items, scored.scores.tolist(), strict=True)) for scored in parents]
    parent_TI = np.array([[scores[item] for item in items] for scores in by_item], np.float64)
    parent_TI = parent_TI.reshape(len(parents), len(items))
    try:
        if not found.any_scores:
            check_scores(parent_TI)
        if item_banks is None or not taken & {"item_bank", "other_models"}:
            return EstimatorInputs(len(items), parents=parent_TI)
        banks, others = item_banks.of(task, items)
    except ValueError as error:
        raise TaskError(f"task {task!r}: {error}; or set fitness.subset.estimator: auto", task=task) from None
    others = others if "other_models" in taken else None
    return EstimatorInputs(len(items), parents=parent_TI, banks=banks, other_models=others)


def check_item_banks(
    items: Mapping[str, Sequence[str]], banks: ItemBanks | None, estimator: str, path: str | None
) -> None:
    """Refuse a file of item banks that lacks what an estimator needs.

    Parameters
    ----------
    items
        Task name to its search items.
    banks, path
        The file's contents and name; None: no file.

    Raises
    ------
    TaskError
        A task or an item is not in the file, other models' answers are missing, or there are too few models.
    """
    found = ESTIMATORS["inherited" if estimator == "auto" else estimator]
    taken = (found.needs | found.uses) & {"item_bank", "other_models"}
    if banks is None or not taken:
        return
    for task, names in items.items():
        place = f"fitness.subset.item_bank: {path}, task {task!r}"
        try:
            _, others = banks.of(task, names)
        except ValueError as error:
            raise TaskError(f"{place}: {error}") from None
        if "other_models" not in found.needs:
            continue
        remedy = f"which estimator {estimator} needs; fit complete responses, or set fitness.subset.estimator: auto"
        models = len(banks.responses[task].models)
        if others is None:
            missing = banks.missing_answers(task, names)
            raise TaskError(f"{place}: {missing} of {models * len(names)} models' answers are missing, {remedy}")
        if models < 2:
            raise TaskError(f"{place}: it has the answers of {models} model and not of 2 or more, {remedy}")


@dataclass
class _Task:
    """One task's items, the estimator's inputs, and the candidates' answers so far."""

    items: tuple[str, ...]
    inputs: EstimatorInputs
    position: dict[str, int] = field(init=False)
    answers: list[Answers] = field(default_factory=list)
    learned: int = 0  # answers that `inputs` holds

    def __post_init__(self) -> None:
        self.position = {item: at for at, item in enumerate(self.items)}

    def learn(self) -> None:
        """Put the answers into the inputs, once there are enough new ones to make a difference."""
        new = len(self.answers) - self.learned
        if new >= LEARN_EVERY or (new and not self.learned):
            self.learned = len(self.answers)
            self.inputs = replace(self.inputs, evaluated=tuple(self.answers))


def _informative(task: _Task, count: int, seed: int, generation: int) -> Positions:
    return subset.default_subset(task.inputs.prior, count, seed, generation)


def _anchors(task: _Task, count: int, seed: int, generation: int) -> Positions:
    bank = task.inputs.bank
    points = np.column_stack((bank.discrimination, bank.difficulty))
    anchors = subset.anchors(points, count, subset.generator(seed, generation))
    weights = dict(zip(anchors.positions.tolist(), anchors.weights.tolist(), strict=True))
    task.inputs = replace(task.inputs, weights={**(task.inputs.weights or {}), **weights})
    return anchors.positions


def _parent_strata(task: _Task, count: int, seed: int, generation: int) -> Positions:
    return subset.neyman(subset.parent_strata(task.inputs.parent_scores), count, subset.generator(seed, generation))


def _random(task: _Task, count: int, seed: int, generation: int) -> Positions:
    return subset.random(len(task.items), count, subset.generator(seed, generation))


_SUBSETS: Mapping[SubsetKind, Callable[[_Task, int, int, int], Positions]] = {
    "informative": _informative,
    "anchors": _anchors,
    "parent_strata": _parent_strata,
    "random": _random,
}
"""(task, number of items, seed, generation) to the asked positions."""


class EstimatedPlan:
    """Each generation is asked few items; a registered estimator gives the score on all.

    Parameters
    ----------
    items
        All search items of all tasks.
    inputs
        Task name to what is known about it: parents' scores, item parameters, other models' scores.
    objectives
        How the tasks' scores become objectives.
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
        inputs: Mapping[str, EstimatorInputs],
        objectives: Objectives,
        estimator: str,
        count: int,
        seed: int,
        rotate: bool = True,
    ) -> None:
        self.objectives = objectives
        self._estimator = ESTIMATORS[estimator]
        self._count, self._seed, self._rotate = count, seed, rotate
        self._subsets: dict[int, tuple[str, ...]] = {}
        places = positions_by_task(items)
        self._tasks = {
            task: _Task(tuple(items[at] for at in places.get(task, [])), inputs[task]) for task in objectives.weights
        }

    def items(self, generation: int) -> tuple[str, ...]:
        """Choose a generation's items; the choice may depend on the candidates told so far."""
        if generation not in self._subsets:
            for task in self._tasks.values():
                task.learn()
            first = next(iter(self._subsets.values()), None)
            self._subsets[generation] = first if first and not self._rotate else self._choose(generation)
        return self._subsets[generation]

    def judge(self, evaluation: Evaluation) -> Evaluation:
        """Estimate the full scores from the answers and from all that is known."""
        if not evaluation.has_scores:
            return evaluation
        answers = self._answers(evaluation)
        estimates = {task: self._estimator.estimate(*answers[task], self._tasks[task].inputs) for task in answers}
        return self.objectives.judge(evaluation, estimates)

    def learn(self, evaluation: Evaluation) -> None:
        """Remember a candidate's answers, if the estimator learns from them."""
        if evaluation.has_scores and self._estimator.learns:
            for task, answers in self._answers(evaluation).items():
                self._tasks[task].answers.append(answers)

    def judge_all(self, evaluations: Sequence[Evaluation]) -> list[Evaluation]:
        """Estimate all full scores again: what the last candidates' answers say of the first ones' counts as well."""
        if not self._estimator.learns:
            return list(evaluations)
        before = {task: known.inputs for task, known in self._tasks.items()}
        for known in self._tasks.values():
            known.inputs = replace(known.inputs, evaluated=tuple(known.answers), learn_from=LEARN_FROM_AT_THE_END)
        try:
            return [self.judge(evaluation) for evaluation in evaluations]
        finally:
            for task, inputs in before.items():
                self._tasks[task].inputs = inputs

    def _choose(self, generation: int) -> tuple[str, ...]:
        choose = _SUBSETS[self._estimator.subset_kind]
        chosen: list[str] = []
        for task in self._tasks.values():
            positions = choose(task, min(self._count, len(task.items)), self._seed, generation)
            chosen += [task.items[position] for position in positions]
        return tuple(chosen)

    def _answers(self, evaluation: Evaluation) -> dict[str, Answers]:
        groups: dict[str, tuple[list[float], list[int]]] = {task: ([], []) for task in self._tasks}
        for item, score in zip(evaluation.items, evaluation.scores.tolist(), strict=True):
            scores, positions = groups[task_of(item)]
            scores.append(score)
            positions.append(self._tasks[task_of(item)].position[item])
        return {task: (np.array(scores), np.array(positions, np.int64)) for task, (scores, positions) in groups.items()}
