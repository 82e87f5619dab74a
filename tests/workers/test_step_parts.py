"""Steps on several workers: how they are split, and that the order of answers changes nothing."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.workers.base import Request
from evomerge.workers.step_parts import StepPartsPool, joined, split, step_evaluation
from fitness.results import Evaluation

ITEMS = tuple(f"t/test/{index}" for index in range(7))


def request(items: tuple[str, ...] = ITEMS, at: tuple[float, ...] | None = (0.5, 0.5)) -> Request:
    return Request("recipe", items, gradient_at=at)  # type: ignore[arg-type]  # the pool only passes it on


def answer(part: Request) -> Evaluation:
    """The step of a model whose loss of an item is its number, and whose genes have that and its square."""
    numbers = np.array([int(item.rsplit("/", 1)[1]) for item in part.items], np.float32)
    share = 1 / len(part.whole or part.items)
    gradient = [float(numbers.sum()) * share, float((numbers**2).sum()) * share]
    return step_evaluation(float(numbers.sum()) * share, part.items, numbers, gradient, {"score": 0.1})


class Workers:
    """Answers in the order of `turns`, one at a time."""

    free = 2

    def __init__(self, turns: Any = None, failing: int | None = None) -> None:
        self.waiting: list[tuple[int, Request]] = []
        self.turns, self.failing, self.closed = turns or (lambda waiting: 0), failing, False

    def submit(self, tag: int, part: Request) -> None:
        self.waiting.append((tag, part))

    def wait(self) -> list[tuple[int, Evaluation]]:
        tag, part = self.waiting.pop(self.turns(self.waiting))
        if self.failing is not None and ITEMS[self.failing] in part.items:
            return [(tag, Evaluation.failed("no memory"))]
        return [(tag, answer(part))]

    def close(self) -> None:
        self.closed = True


def result(pool: StepPartsPool, tag: int = 5) -> Evaluation:
    pool.submit(tag, request())
    while not (found := pool.wait()):
        pass
    ((done, evaluation),) = found
    assert done == tag
    return evaluation


@given(st.integers(1, 9), st.integers(1, 7))
def test_parts_hold_every_item_once_and_know_the_whole(count: int, size: int) -> None:
    parts = split(request(ITEMS[:size]), count)
    assert sorted(item for part in parts for item in part.items) == sorted(ITEMS[:size])
    assert all(part.whole == ITEMS[:size] and part.items for part in parts)
    assert len(parts) == min(count, size)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 9])
def test_the_parts_add_up_to_the_step(count: int) -> None:
    whole, found = answer(request()), joined(request(), [answer(part) for part in split(request(), count)])
    assert found.items == whole.items
    np.testing.assert_array_equal(found.scores, whole.scores)
    assert found.gradient == pytest.approx(whole.gradient)
    assert found.objectives == pytest.approx(whole.objectives)
    assert found.standard_errors == whole.standard_errors
    assert found.seconds == {"score": 0.1}


def test_the_order_of_answers_changes_nothing() -> None:
    turns = [lambda waiting: 0, lambda waiting: -1, lambda waiting: len(waiting) // 2]
    found = [result(StepPartsPool(Workers(turn), 3)) for turn in turns]
    assert {each.gradient for each in found} == {found[0].gradient}
    assert {each.objectives for each in found} == {found[0].objectives}


def test_a_failed_part_fails_the_step_when_all_are_back() -> None:
    workers = Workers(failing=4)
    found = result(StepPartsPool(workers, 3))
    assert (found.status, found.reason) == ("failed", "no memory")
    assert not workers.waiting


def test_candidates_pass_whole() -> None:
    workers = Workers()
    pool = StepPartsPool(workers, 3)
    pool.submit(1, request(at=None))
    assert [tag for tag, _ in workers.waiting] == [1] and pool.free == 2
    assert [tag for tag, _ in pool.wait()] == [1]
    pool.close()
    assert workers.closed


def test_steps_and_candidates_mix() -> None:
    workers = Workers(lambda waiting: -1)
    pool = StepPartsPool(workers, 2)
    pool.submit(0, request())
    pool.submit(1, request(at=None))
    pool.submit(2, request())
    found = list(itertools.chain.from_iterable(pool.wait() for _ in range(5)))
    assert [tag for tag, _ in found] == [2, 1, 0]
    assert found[0][1].gradient == found[2][1].gradient
