from __future__ import annotations

import math

import numpy as np
import pytest

from fitness.estimators import mean
from fitness.evaluation import Evaluation, ItemScores, TaskError
from fitness.objectives import aggregate


def scores(**by_task: list[float]) -> ItemScores:
    items = [f"{task}/test/{n}" for task, values in by_task.items() for n in range(len(values))]
    return ItemScores(tuple(items), np.concatenate([*by_task.values()]).astype(np.float32), 0.0)


def test_tasks_count_by_weight_and_not_by_items() -> None:
    value, error = aggregate({"a": 3.0, "b": 1.0}, scores(a=[1, 0], b=[0, 0, 0, 0, 1, 1, 1, 0]))
    assert value == pytest.approx(0.75 * 0.5 + 0.25 * 0.375)
    a, b = mean([1, 0]).standard_error, mean([0, 0, 0, 0, 1, 1, 1, 0]).standard_error
    assert error == pytest.approx(math.hypot(0.75 * a, 0.25 * b))


def test_the_order_of_items_does_not_matter() -> None:
    given = scores(a=[1, 0, 1], b=[0.5, 0.25])
    turned = ItemScores(given.items[::-1], given.scores[::-1], 0.0)
    assert aggregate({"a": 1, "b": 1}, given) == pytest.approx(aggregate({"a": 1, "b": 1}, turned))


@pytest.mark.parametrize("weights", [{"a": 1.0, "b": 1.0}, {}])
def test_every_task_needs_scores_and_a_weight(weights: dict[str, float]) -> None:
    with pytest.raises(TaskError, match=r"differ in their tasks \([ab]\): score items of each one"):
        aggregate(weights, scores(a=[1.0]))


def test_one_score_per_item() -> None:
    with pytest.raises(ValueError, match="give one score per item"):
        ItemScores(("a/test/0",), np.zeros(2, np.float32), 0.0)


def test_failed_evaluations_have_no_fitness() -> None:
    failed = Evaluation.failed("weights are NaN", {"merge": 0.5})
    assert failed.status == "failed"
    assert math.isnan(failed.fitness)
    assert (failed.reason, failed.seconds) == ("weights are NaN", {"merge": 0.5})
    assert Evaluation("ok", (0.25, 0.5), (0.1, 0.1)).fitness == 0.25
