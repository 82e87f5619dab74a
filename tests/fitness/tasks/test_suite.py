"""A suite: tasks, weights and the pool of items."""

from __future__ import annotations

from typing import Any

import pytest

from fitness.results import TaskError


def test_a_suite_knows_its_tasks(toys: Any) -> None:
    toys.write("a", "mc", validation=20, test=10)
    toys.write("b", "gen", validation=20, test=10)
    suite = toys.suite({"task": "a", "weight": 2}, {"task": "b", "metric": "exact_match,whole"})
    assert suite.weights == {"a": 2.0, "b": 1.0}
    assert suite.kinds == {"a": "multiple_choice", "b": "generate_until"}
    assert suite.metrics == {"a": "acc,none", "b": "exact_match,whole"}
    item = suite.pool.search["a"][3]
    assert (suite.item(item.id), item.split, item.index) == (item, "validation", 3)


def test_loading_twice_gives_the_same_split(toys: Any) -> None:
    toys.write("toy", "mc", validation=40, test=10)
    one, two = (toys.suite("toy", held_out=0.5, seed=seed).pool for seed in (4, 4))
    assert one == two
    assert one != toys.suite("toy", held_out=0.5, seed=5).pool
    assert {item.split for side in (one.search, one.held_out) for item in side["toy"]} == {"validation"}


def test_both_kinds_of_a_question_fall_on_one_side(toys: Any) -> None:
    toys.write("a", "mc", validation=40, test=10)
    toys.write("b", "gen", validation=40, test=10)
    pool = toys.suite("a", "b", held_out=0.5).pool
    assert [item.index for item in pool.search["a"]] == [item.index for item in pool.search["b"]]


def test_no_items_after_the_split(toys: Any) -> None:
    toys.write("toy", "mc", validation=1)
    with pytest.raises(TaskError, match=r"task 'toy' has no .* items left after the split"):
        toys.suite("toy", held_out=0.5)
