"""Prompts are those of lm-eval over the whole split."""

from __future__ import annotations

from typing import Any

import pytest

from fitness.results import TaskError


def test_few_shot_examples_are_those_of_the_whole_split(toys: Any) -> None:
    toys.write("toy", "gen", train=20, validation=5, test=10)
    one, other = (toys.suite("toy", num_fewshot=2) for _ in range(2))
    items = one.pool.held_out["toy"]
    forwards = [one.task("toy").requests(item) for item in items]
    backwards = [other.task("toy").requests(item) for item in reversed(items)]
    assert forwards == backwards[::-1]
    assert len({request.context for (request,) in forwards}) == 10


def test_zero_shots_of_a_task_stay_zero(toys: Any) -> None:
    toys.write("toy", "gen", train=20, validation=5, test=10, num_fewshot=0)
    suite = toys.suite("toy", num_fewshot=2)
    (request,) = suite.task("toy").requests(suite.pool.held_out["toy"][0])
    assert request.context == suite.task("toy").documents.of("test")[0]["question"]


def test_too_many_shots(toys: Any) -> None:
    toys.write("toy", "gen", train=3, validation=5, test=10)
    suite = toys.suite("toy", num_fewshot=9)
    with pytest.raises(TaskError, match=r"no prompt could be built for item 0 .*: correct .* num_fewshot \(9\)"):
        suite.task("toy").requests(suite.pool.held_out["toy"][0])
