from __future__ import annotations

import math

import numpy as np
import pytest

from fitness.config import FitnessConfig
from fitness.objectives import Objectives, means
from fitness.results import Estimate, Evaluation, ItemScores, TaskError, mean


def scores(**by_task: list[float]) -> Evaluation:
    items = [f"{task}/test/{n}" for task, values in by_task.items() for n in range(len(values))]
    return Evaluation("ok", items=tuple(items), scores=np.concatenate([*by_task.values()]).astype(np.float32))


def judged(objectives: Objectives, **by_task: list[float]) -> Evaluation:
    evaluation = scores(**by_task)
    return objectives.judge(evaluation, means(evaluation))


def config(tasks: list[dict], **keys: object) -> FitnessConfig:
    return FitnessConfig.model_validate({"tasks": tasks, **keys})


def test_tasks_count_by_weight_and_not_by_items() -> None:
    found = judged(Objectives({"a": 3.0, "b": 1.0}), a=[1, 0], b=[0, 0, 0, 0, 1, 1, 1, 0])
    assert found.objectives == pytest.approx((0.75 * 0.5 + 0.25 * 0.375,))
    a, b = mean([1, 0]).standard_error, mean([0, 0, 0, 0, 1, 1, 1, 0]).standard_error
    assert found.standard_errors == pytest.approx((math.hypot(0.75 * a, 0.25 * b),))
    assert (found.fitness, found.standard_error) == (found.objectives[0], found.standard_errors[0])


def test_the_order_of_items_does_not_matter() -> None:
    given = scores(a=[1, 0, 1], b=[0.5, 0.25])
    turned = ItemScores(given.items[::-1], given.scores[::-1], 0.0)
    both = Objectives({"a": 1, "b": 1})
    assert both.judge(given, means(given)).objectives == pytest.approx(both.judge(given, means(turned)).objectives)


@pytest.mark.parametrize("weights", [{"a": 1.0, "b": 1.0}, {}])
def test_every_task_needs_scores_and_a_weight(weights: dict[str, float]) -> None:
    with pytest.raises(TaskError, match=r"differ in their tasks \([ab]\): score items of each one"):
        judged(Objectives(weights), a=[1.0])


def test_objectives_kept_apart_and_their_weighted_sum() -> None:
    tasks = {"a": [1.0, 0.0, 1.0], "b": [0.0, 0.0, 1.0, 0.5]}
    apart = judged(Objectives({"a": 3.0, "b": 1.0}, apart=True), **tasks)
    summed = judged(Objectives({"a": 3.0, "b": 1.0}), **tasks)
    assert apart.objectives == pytest.approx((2 / 3, 0.375))
    assert apart.standard_errors == pytest.approx([mean(values).standard_error for values in tasks.values()])
    assert apart.fitness == pytest.approx(summed.fitness)
    assert apart.standard_error == pytest.approx(summed.standard_error)


def test_scores_are_divided_by_the_best_sources() -> None:
    asked = config([{"task": "a"}, {"task": "b"}], normalize="best_source")
    sources = [scores(a=[1, 0], b=[0, 0, 0, 1]), scores(a=[0, 0], b=[0, 0, 1, 1])]
    assert asked.compares_with_sources
    objectives = asked.objectives_for(sources)
    assert objectives.scales == {"a": 0.5, "b": 0.5}
    assert judged(objectives, a=[1, 1], b=[0, 0, 0, 1]).fitness == pytest.approx((2 + 0.5) / 2)


def test_a_floor_is_a_share_of_the_best_source() -> None:
    asked = config([{"task": "a"}, {"task": "b", "min_share_of_best_source": 0.8}])
    assert asked.compares_with_sources
    objectives = asked.objectives_for([scores(a=[1, 1], b=[0, 1]), scores(a=[0, 0], b=[0, 0])])
    assert objectives.floors == pytest.approx({"b": 0.4})
    keeps = judged(objectives, a=[0, 0], b=[1, 0])
    misses = judged(objectives, a=[1, 1], b=[1, 0, 0, 0])
    misses_by_more = judged(objectives, a=[1, 1], b=[0, 0])
    assert (keeps.violation, misses_by_more.violation) == (0, 1)
    assert misses.violation == pytest.approx(1 - 0.25 / 0.4)
    assert keeps.fitness > misses.fitness > misses_by_more.fitness
    assert misses.value == pytest.approx(0.625)  # what is reported stays what it is


def test_nothing_is_relative_to_sources_without_being_asked_for() -> None:
    plain = config([{"task": "a"}])
    assert not plain.compares_with_sources
    assert plain.objectives_for() == Objectives({"a": 1.0})


def test_a_floor_needs_a_source_that_can_do_something() -> None:
    asked = config([{"task": "a", "min_share_of_best_source": 0.9}])
    with pytest.raises(TaskError, match=r"task 'a': the best source scores 0; .* remove the task's min_share"):
        asked.objectives_for([scores(a=[0, 0])])


def test_the_violations_of_several_floors_add_up() -> None:
    objectives = Objectives({"a": 1.0, "b": 1.0}, floors={"a": 0.5, "b": 0.2})
    estimates = {"a": Estimate(0.25, 0.1), "b": Estimate(0.1, 0.1)}
    assert objectives.violation(estimates) == pytest.approx(0.5 + 0.5)


def test_one_score_per_item() -> None:
    with pytest.raises(ValueError, match="give one score per item"):
        ItemScores(("a/test/0",), np.zeros(2, np.float32), 0.0)


def test_failed_evaluations_have_no_fitness() -> None:
    failed = Evaluation.failed("weights are NaN", {"merge": 0.5})
    assert failed.status == "failed"
    assert math.isnan(failed.fitness)
    assert (failed.reason, failed.seconds) == ("weights are NaN", {"merge": 0.5})
    assert Evaluation("ok", (0.25, 0.5), (0.1, 0.1)).fitness == 0.25
