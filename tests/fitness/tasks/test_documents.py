"""Which splits a search may use, and what it says when it may not."""

from __future__ import annotations

import random
from typing import Any

import pytest

from fitness.results import TaskError


def test_search_items_of_a_test_split_need_an_acknowledgement(toys: Any) -> None:
    toys.write("toy", "mc", test=40)
    with pytest.raises(
        TaskError,
        match=r"task 'toy': the search would use items of its test split.*"
        r"set fitness\.allow_test_split: true to accept that, or name another search_split "
        r"\(the task has test\)",
    ):
        toys.suite("toy", held_out=0.5)
    pool = toys.suite("toy", held_out=0.5, allow_test_split=True).pool
    assert {item.split for item in pool.search["toy"]} == {"test"}


def test_naming_the_test_split_needs_it_too(toys: Any) -> None:
    toys.write("toy", "mc", validation=20, test=40)
    with pytest.raises(TaskError, match=r"allow_test_split: true .* \(the task has validation, test\)"):
        toys.suite({"task": "toy", "search_split": "test"}, held_out=0.5)


def test_search_items_of_the_train_split(toys: Any) -> None:
    toys.write("toy", "mc", train=20, validation=10)
    pool = toys.suite({"task": "toy", "search_split": "train"}, held_out="validation").pool
    assert {item.split for item in pool.search["toy"]} == {"train"}
    assert {item.split for item in pool.held_out["toy"]} == {"validation"}


def test_splits_that_are_not_there(toys: Any) -> None:
    toys.write("toy", "mc", validation=20)
    with pytest.raises(TaskError, match="'toy' has no train split: set search_split to one of validation"):
        toys.suite({"task": "toy", "search_split": "train"}, held_out=0.5)
    with pytest.raises(TaskError, match="'toy' has no test split: set held_out to one of validation"):
        toys.suite("toy", held_out="test")
    with pytest.raises(
        TaskError, match=r"the whole validation split is used for search items: set fitness\.held_out to a fraction"
    ):
        toys.suite("toy", held_out="validation")


def test_documents_that_are_drawn_at_random_are_the_same_in_each_process(toys: Any) -> None:
    """GPQA shuffles its choices; lm-eval seeds `random` before it loads tasks."""
    toys.write("toy", "mc", validation=8, test=8, process_docs="toy_metrics.shuffled")
    found = []
    for seed in (1, 2, 3):
        random.seed(seed)
        drawn = random.Random(seed).random()
        found.append([doc["gold"] for doc in toys.suite("toy").task("toy").documents.of("test")])
        assert random.random() == drawn  # the program's own generator goes on as before
    assert found[0] == found[1] == found[2]


def test_a_text_that_all_documents_share_does_not_make_them_one_item(toys: Any) -> None:
    """The choices are the question then; equal items are on one side, so nothing would be left on the other."""
    toys.write("toy", "mc", train=9, validation=12, test=12, doc_to_text="Which word is right?", num_fewshot=1)
    pool = toys.suite("toy", held_out=0.5).pool
    assert pool.search["toy"] and pool.held_out["toy"]
    assert len({item.key for side in (pool.search, pool.held_out) for item in side["toy"]}) == 12
