from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitness.items import Item, ItemPool, prompt_key, split_by_hash, task_of
from fitness.results import TaskError


def items(count: int, task: str = "toy", split: str = "validation", offset: int = 0) -> tuple[Item, ...]:
    return tuple(Item.of(task, split, n, f"question {n + offset}") for n in range(count))


def test_ids_tell_the_task() -> None:
    item = Item.of("group/toy", "test", 7, "question")
    assert item.id == "group/toy/test/7"
    assert task_of(item.id) == "group/toy"


def test_keys_ignore_white_space_and_nothing_else() -> None:
    assert prompt_key("a  b\n") == prompt_key(" a b")
    assert prompt_key("a b") != prompt_key("a B")


@given(seed=st.integers(0, 2**31), shuffle=st.integers())
def test_the_split_does_not_depend_on_the_order(seed: int, shuffle: int) -> None:
    pool = items(40)
    shuffled = random.Random(shuffle).sample(pool, len(pool))
    for one, other in zip(split_by_hash(pool, 0.4, seed), split_by_hash(shuffled, 0.4, seed), strict=True):
        assert set(one) == set(other)


@given(seed=st.integers(0, 2**31), prompts=st.lists(st.sampled_from("abcdef"), max_size=40))
def test_equal_prompts_fall_on_one_side(seed: int, prompts: list[str]) -> None:
    pool = [Item.of(f"task{n % 3}", "validation", n, prompt) for n, prompt in enumerate(prompts)]
    search, held_out = split_by_hash(pool, 0.5, seed)
    assert len(search) + len(held_out) == len(pool)
    assert not {item.key for item in search} & {item.key for item in held_out}


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.8])
def test_the_fraction_is_close(fraction: float) -> None:
    _, held_out = split_by_hash(items(4000), fraction, seed=3)
    assert len(held_out) / 4000 == pytest.approx(fraction, abs=0.03)  # 4 standard deviations


def test_another_seed_splits_differently() -> None:
    assert split_by_hash(items(40), 0.5, 0) != split_by_hash(items(40), 0.5, 1)


def test_whole_split_without_the_prompts_of_the_search() -> None:
    search = {"a": items(5, "a"), "b": items(3, "b", offset=100)}
    held_out = {"a": items(8, "a", "test", offset=2), "b": items(6, "b", "test", offset=3)}
    pool = ItemPool.build(search, held_out, seed=0)
    assert pool.search == search
    assert [item.index for item in pool.held_out["a"]] == [3, 4, 5, 6, 7]  # questions 2 to 4 are searched
    assert [item.index for item in pool.held_out["b"]] == [2, 3, 4, 5]  # 3 and 4 are, too, in the other task
    assert pool.dropped == {"a": 3, "b": 2}
    assert pool.held_out_ids()[:2] == ("a/test/3", "a/test/4")


def test_nothing_left_on_a_side() -> None:
    one_prompt = tuple(Item.of("toy", "validation", n, "same") for n in range(9))
    with pytest.raises(TaskError, match=r"'toy' has no (search|held-out) items left .*: change fitness\.held_out"):
        ItemPool.build({"toy": one_prompt}, 0.5, seed=0)
    with pytest.raises(TaskError, match=r"no held-out items left .*: set fitness\.held_out to a fraction"):
        ItemPool.build({"toy": items(5)}, {"toy": items(5, split="test")}, seed=0)


def test_subsets_are_fixed_nested_and_per_task() -> None:
    pool = ItemPool(search={"a": items(50, "a"), "b": items(8, "b")}, held_out={})
    small, large = pool.subset(5, seed=1), pool.subset(20, seed=1)
    assert pool.subset(5, seed=1) == small
    assert [sum(task_of(i) == task for i in small) for task in "ab"] == [5, 5]
    assert [sum(task_of(i) == task for i in large) for task in "ab"] == [20, 8]
    assert set(small) < set(large)
    assert set(small) != set(pool.subset(5, seed=2))
    assert len(pool.subset("all", seed=1)) == 58


def test_subsets_do_not_depend_on_the_order() -> None:
    pool = items(30)
    backwards = ItemPool(search={"toy": pool[::-1]}, held_out={})
    assert set(ItemPool({"toy": pool}, {}).subset(7, 0)) == set(backwards.subset(7, 0))
