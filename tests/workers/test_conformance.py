"""Every pool does what a search expects of pools: in this process, on a cluster, and races on other pools."""

import numpy as np
import pytest

from evomerge.runs.history import RunHistory
from evomerge.runs.run import Asked
from evomerge.search.racing.archive import ArchiveRacingPool
from evomerge.search.racing.pool import RacingPool
from evomerge.strategies import Candidate, RandomConfig
from evomerge.testing import PoolSuite
from evomerge.testing.planted import reals
from evomerge.testing.pools import ITEMS, ScriptedPool, hashed
from evomerge.workers.config import InlineConfig
from evomerge.workers.ray_pool import RayPool
from fitness.config import RacingConfig
from fitness.estimation.evaluation_plan import FixedItemsPlan
from fitness.objectives import Objectives
from tests.workers.fake_cluster import Clock, Death, FakeCluster

PLAN = FixedItemsPlan(ITEMS, Objectives({"t": 1.0}))
RULES = RacingConfig(error=0.4, block=2)


class TestInlinePool(PoolSuite):
    config = InlineConfig()


class TestScriptedPool(PoolSuite):
    order = "all"

    def make(self):
        return ScriptedPool(hashed, capacity=3, order=self.order)


class TestScriptedPoolInAnyOrder(TestScriptedPool):
    order = "random"


class AnsweringCluster(FakeCluster):
    """Workers that score by hash; each recipe's first `deaths` workers die."""

    def __init__(self, deaths):
        super().__init__(Clock())
        self.deaths, self.tries = deaths, {}

    def evaluate(self, worker, request):
        tried = self.tries[request.recipe.hash] = self.tries.get(request.recipe.hash, 0) + 1
        return self._reference(Death("killed") if tried <= self.deaths else hashed(0, request))


class TestRayPool(PoolSuite):
    deaths = 0

    def make(self):
        cluster = AnsweringCluster(self.deaths)
        return RayPool(cluster, len(ITEMS), count=2, clock=cluster.clock)


class TestRayPoolWhoseWorkersDie(TestRayPool):
    deaths = 1


class TestRacingPool(PoolSuite):
    keeps_answers = False

    def make(self):
        asked = [Asked(Candidate(tag, np.zeros(2), "sample", 0), f"recipe {tag}") for tag in range(self.most)]
        strategy = RandomConfig(population=4).build(reals(2), 0)
        return RacingPool(ScriptedPool(hashed, capacity=2), RULES, PLAN, RunHistory(asked), strategy, seed=0)


class TestRacingPoolOverAnother(TestRacingPool):
    def make(self):
        pool = super().make()
        pool.pool = TestRayPool().make()
        return pool


class Choosy:
    """An archive that takes candidates with four right answers of six."""

    def keeps(self, evaluation):
        return evaluation.value >= 0.6


class TestArchiveRacingPool(PoolSuite):
    keeps_answers = False

    def make(self):
        return ArchiveRacingPool(ScriptedPool(hashed, capacity=2, order="last"), RULES, PLAN, Choosy(), seed=0)


def failures_of(suite):
    """Return the names of a suite's tests that a pool fails."""
    failed = []
    for name in [name for name in dir(PoolSuite) if name.startswith("test_")]:
        test = getattr(suite, name)
        takes_pool = "pool" in test.__code__.co_varnames[: test.__code__.co_argcount]
        try:
            test(suite.make()) if takes_pool else test()
        except pytest.skip.Exception:
            continue
        except Exception:
            failed.append(name)
    return failed


class Broken(ScriptedPool):
    """A pool with one mistake."""

    def __init__(self, mistake):
        super().__init__(hashed, capacity=2)
        self.mistake, self.closed = mistake, False

    @property
    def free(self):
        return self.capacity - len(self._queue) if self.mistake == "negative free" else super().free

    def wait(self):
        found = super().wait()
        if self.mistake == "raises" and any(each.status == "failed" for _, each in found):
            raise RuntimeError("no such model")
        if self.mistake == "twice":
            return [*found, *found]
        if self.mistake == "wrong tag":
            return [(tag + 100, each) for tag, each in found]
        return found

    def close(self):
        if self.mistake == "closed" and self.closed:
            raise RuntimeError("closed already")
        self.closed = True


@pytest.mark.parametrize(
    ("mistake", "expected"),
    [
        ("none", []),
        ("raises", ["test_a_recipe_that_cannot_be_scored_fails_with_its_reason_and_the_others_do_not"]),
        ("negative free", ["test_what_is_submitted_beyond_the_free_places_is_scored_as_well"]),
        ("closed", ["test_it_may_be_closed_twice"]),
    ],
)
def test_the_suite_finds_a_mistake(mistake, expected):
    class Suite(PoolSuite):
        def make(self):
            return Broken(mistake)

    assert failures_of(Suite()) == expected


@pytest.mark.parametrize("mistake", ["twice", "wrong tag"])
def test_the_suite_finds_tags_that_are_wrong(mistake):
    class Suite(PoolSuite):
        def make(self):
            return Broken(mistake)

    assert "test_each_recipe_comes_back_once" in failures_of(Suite())
