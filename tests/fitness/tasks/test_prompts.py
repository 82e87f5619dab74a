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


def shown(suite: Any, items: Any, forbidden: Any) -> list[tuple[str, str]]:
    """Pairs of an asked item and an item of `forbidden` whose question its prompt shows as an example."""
    documents = suite.task("toy").documents
    text = {item.id: documents.of(item.split)[item.index]["question"] for item in (*items, *forbidden)}
    found = []
    for item in items:
        context = suite.task("toy").requests(item)[0].context
        examples = context[: context.rindex(text[item.id])]
        found += [(item.id, other.id) for other in forbidden if text[other.id] in examples]
    return found


@pytest.mark.parametrize("kind", ["mc", "gen"])
@pytest.mark.parametrize("fewshot_split", [None, "validation"])
def test_no_prompt_shows_a_held_out_item_or_itself(toys: Any, kind: str, fewshot_split: str | None) -> None:
    keys = {} if fewshot_split is None else {"fewshot_split": fewshot_split}
    toys.write("toy", kind, validation=24, **keys)
    suite = toys.suite("toy", num_fewshot=5, held_out=0.5)
    search, held_out = suite.pool.search["toy"], suite.pool.held_out["toy"]
    assert shown(suite, [*search, *held_out], held_out) == []
    assert shown(suite, search, search), "search items are examples"
    assert not [pair for pair in shown(suite, search, search) if pair[0] == pair[1]]


def test_an_only_split_shows_no_item_itself(toys: Any) -> None:
    toys.write("toy", "mc", test=24)
    suite = toys.suite("toy", num_fewshot=5, held_out=0.5, allow_test_split=True)
    search, held_out = suite.pool.search["toy"], suite.pool.held_out["toy"]
    assert shown(suite, [*search, *held_out], held_out) == []
    assert not [pair for pair in shown(suite, search, search) if pair[0] == pair[1]]


def test_more_shots_than_items_that_may_be_shown(toys: Any) -> None:
    toys.write("toy", "mc", validation=12)
    suite = toys.suite("toy", num_fewshot=11, held_out=0.5)
    search = suite.pool.search["toy"]
    count = len(search) - (search[0].index == 0)  # prompts are built in order, from the first item of the split
    with pytest.raises(TaskError, match=rf"num_fewshot is 11, and only {count} documents are neither held out nor"):
        suite.task("toy").requests(search[0])
