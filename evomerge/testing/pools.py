"""What every pool of workers must do, as a suite of tests to subclass, and a pool whose answers a test writes.

::

    from evomerge.testing import PoolSuite

    class TestMine(PoolSuite):
        config = MyWorkersConfig(count=2)

pytest then starts the pool with workers that score recipes by their hash, and submits, waits and closes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar, Literal

import numpy as np
import pytest

from evomerge.merging.engine.placement import Share
from evomerge.workers.base import Pool, Request, WorkerFactory, WorkerSettings
from evomerge.workers.registry import WorkersConfig
from fitness.results import Evaluation
from search_spaces.recipes.baselines import source_recipe

Answer = Callable[[int, Request], Evaluation]
"""Gives the evaluation of a request; the tag is that of the pool's `submit`."""

SECONDS = {"merge": 0.5, "score": 0.25, "wait": 0.0}


class ScriptedPool:
    """A pool whose workers answer at once, with what a function says.

    Parameters
    ----------
    answer
        Gives each evaluation.
    capacity
        How many recipes are in flight at most.
    order
        What one `wait` returns: ``all`` that is in flight; or one: the ``last`` that was submitted, a ``random`` one.
    dies_at
        The evaluation, counted from 1, in place of which `wait` raises KeyboardInterrupt; None: it never does.
    seed
        Of the random order.

    Attributes
    ----------
    asked
        The tag and request of each evaluation, in their order.
    """

    def __init__(
        self,
        answer: Answer,
        *,
        capacity: int = 1,
        order: Literal["all", "last", "random"] = "all",
        dies_at: int | None = None,
        seed: int = 0,
    ) -> None:
        self.answer, self.capacity, self.order, self.dies_at = answer, capacity, order, dies_at
        self.asked: list[tuple[int, Request]] = []
        self._queue: list[tuple[int, Request]] = []
        self._rng = np.random.default_rng(seed)

    @property
    def free(self) -> int:
        """How many more recipes may be submitted now."""
        return max(0, self.capacity - len(self._queue))

    @property
    def item_count(self) -> int:
        """How many items all evaluations together have asked."""
        return sum(len(request.items) for _, request in self.asked)

    def submit(self, tag: int, request: Request) -> None:
        """Queue a recipe."""
        self._queue.append((tag, request))

    def wait(self) -> list[tuple[int, Evaluation]]:
        """Return what is answered."""
        return [(tag, self._evaluate(tag, request)) for tag, request in self._take()]

    def close(self) -> None:
        """Nothing was started."""

    def _take(self) -> list[tuple[int, Request]]:
        if self.order == "all":
            taken, self._queue = self._queue, []
            return taken
        at = -1 if self.order == "last" else int(self._rng.integers(len(self._queue)))
        return [self._queue.pop(at)]

    def _evaluate(self, tag: int, request: Request) -> Evaluation:
        self.asked.append((tag, request))
        if len(self.asked) == self.dies_at:
            raise KeyboardInterrupt
        return self.answer(tag, request)


def answered(request: Request, scores: Sequence[float]) -> Evaluation:
    """Return an evaluation with these scores, one for each item of a request; its objective is their mean."""
    values = np.asarray(scores, np.float32)
    answers = tuple(f"{value:g}" for value in values) if request.want_answers else ()
    return Evaluation("ok", (float(values.mean()),), (0.1,), request.items, values, dict(SECONDS), answers=answers)


ITEMS = tuple(f"t/test/{index}" for index in range(6))
BROKEN = "/models/broken"


def hashed(tag: int, request: Request) -> Evaluation:
    """Score 0 or 1 by recipe and item, always the same; the recipe of `BROKEN` fails."""
    if request.recipe.slices[0].sources[0].model == BROKEN:
        return Evaluation.failed("MergeError: no such model", dict(SECONDS))
    return answered(request, [float(sum(f"{request.recipe.hash}{item}".encode()) % 2) for item in request.items])


class HashedWorker:
    """A worker that scores as `hashed` does, without any model."""

    place = "nowhere"

    def evaluate(self, request: Request) -> Evaluation:
        """Score a recipe."""
        return hashed(0, request)

    def close(self) -> None:
        """Nothing was started."""


def hashed_worker(settings: WorkerSettings, share: Share) -> HashedWorker:
    """Return a worker for `WorkerFactory`, here or in another process."""
    return HashedWorker()


class PoolSuite:
    """Tests that every pool passes; subclass it as ``Test...`` and give the config of a worker kind, or `make`.

    Attributes
    ----------
    config
        The settings that start the pool.
    keeps_answers
        Whether evaluations hold the model's answers where a request wants them.
    most
        How many recipes a test submits.
    """

    config: ClassVar[WorkersConfig]
    keeps_answers: ClassVar[bool] = True
    most: ClassVar[int] = 7

    def make(self) -> Pool:
        """Return a new pool."""
        return self.config.start(WorkerFactory(hashed_worker, hashed_worker, len(ITEMS)))

    def requests(self, count: int) -> list[Request]:
        """Return so many different recipes to score."""
        return [Request(source_recipe(f"/models/{index}", 2), ITEMS) for index in range(count)]

    def broken(self) -> Request:
        """Return a recipe that cannot be scored."""
        return Request(source_recipe(BROKEN, 2), ITEMS)

    @pytest.fixture
    def pool(self) -> Iterator[Pool]:
        """Return a pool that is closed after the test."""
        pool = self.make()
        yield pool
        pool.close()

    def score(self, pool: Pool, requests: Sequence[Request]) -> dict[int, Evaluation]:
        """Score requests as a search does: fill the workers, wait, and again; return evaluations by position."""
        found: dict[int, Evaluation] = {}
        submitted = 0
        while len(found) < len(requests):
            while submitted < len(requests) and pool.free > 0:
                pool.submit(submitted, requests[submitted])
                submitted += 1
            for tag, evaluation in pool.wait():
                assert tag not in found, "a recipe came back twice"
                assert tag < submitted, "a tag came back that was not submitted"
                found[tag] = evaluation
        return found

    def test_each_recipe_comes_back_once(self, pool: Pool) -> None:
        """As many evaluations as submissions, each with its tag."""
        assert sorted(self.score(pool, self.requests(self.most))) == list(range(self.most))

    def test_an_idle_pool_takes_a_recipe(self, pool: Pool) -> None:
        """Before the first recipe, and again when nothing is in flight."""
        assert pool.free >= 1
        self.score(pool, self.requests(2))
        assert pool.free >= 1

    def test_free_counts_what_may_be_submitted(self, pool: Pool) -> None:
        """A submission takes at most one place, and places never are negative."""
        for tag, request in enumerate(self.requests(self.most)):
            before = pool.free
            if not before:
                break
            pool.submit(tag, request)
            assert before - 1 <= pool.free <= before
            assert pool.free >= 0

    def test_what_is_submitted_beyond_the_free_places_is_scored_as_well(self, pool: Pool) -> None:
        """A resumed search submits all that was in flight, also where there are fewer workers now."""
        for tag, request in enumerate(self.requests(self.most)):
            pool.submit(tag, request)
        assert pool.free == 0
        found: list[int] = []
        while len(found) < self.most:
            found += [tag for tag, _ in pool.wait()]
        assert sorted(found) == list(range(self.most))

    def test_an_evaluation_answers_the_items_that_were_asked(self, pool: Pool) -> None:
        """All of them in their order, or, if it was stopped early, some of them in their order."""
        for tag, evaluation in self.score(pool, self.requests(self.most)).items():
            items = self.requests(self.most)[tag].items
            assert evaluation.status in ("ok", "stopped")
            assert evaluation.items == tuple(item for item in items if item in evaluation.items)
            assert (evaluation.items == items) == (evaluation.status == "ok")
            assert evaluation.scores.shape == (len(evaluation.items),)
            assert evaluation.scores.dtype == np.float32

    def test_scores_do_not_depend_on_what_else_is_scored(self) -> None:
        """A recipe alone in a new pool has the scores that it has among others."""
        requests = self.requests(3)
        together = self.make()
        among_others = self.score(together, requests)
        together.close()
        for tag, request in enumerate(requests):
            pool = self.make()
            (alone,) = self.score(pool, [request]).values()
            pool.close()
            known = dict(zip(alone.items, alone.scores.tolist(), strict=True))
            found = dict(zip(among_others[tag].items, among_others[tag].scores.tolist(), strict=True))
            both = known.keys() & found.keys()
            assert both and all(known[item] == found[item] for item in both)

    def test_seconds_are_told_by_activity(self, pool: Pool) -> None:
        """Merging, scoring and waiting, none of them negative."""
        for evaluation in self.score(pool, self.requests(2)).values():
            assert set(evaluation.seconds) == {"merge", "score", "wait"}
            assert min(evaluation.seconds.values()) >= 0

    def test_a_recipe_that_cannot_be_scored_fails_with_its_reason_and_the_others_do_not(self, pool: Pool) -> None:
        """The pool raises nothing, and continues."""
        good = self.requests(2)
        found = self.score(pool, [good[0], self.broken(), good[1]])
        assert found[1].status == "failed" and found[1].reason
        assert found[0].status != "failed" and found[2].status != "failed"

    def test_answers_come_where_they_are_wanted(self, pool: Pool) -> None:
        """One for each item; none where they are not asked for."""
        (plain,) = self.score(pool, self.requests(1)).values()
        assert plain.answers == ()
        if not self.keeps_answers:
            pytest.skip("this pool keeps no answers")
        request = self.requests(1)[0]
        (wanted,) = self.score(pool, [Request(request.recipe, request.items, want_answers=True)]).values()
        assert len(wanted.answers) == len(request.items)
        assert all(isinstance(answer, str) for answer in wanted.answers)

    def test_it_may_be_closed_twice(self, pool: Pool) -> None:
        """Also with a recipe in flight."""
        pool.submit(0, self.requests(1)[0])
        pool.close()
        pool.close()
