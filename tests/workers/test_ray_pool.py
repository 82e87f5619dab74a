"""What the pool does when workers die, hang, run out of memory, join or leave, on a cluster that is told when to."""

import pytest

from evomerge.merging.engine.placement import Share
from evomerge.workers.base import OUT_OF_MEMORY, Request, WorkerError, WorkerSettings
from evomerge.workers.config import RayConfig
from evomerge.workers.ray_cluster import share_of, workers_on
from evomerge.workers.ray_pool import POLL, RayPool
from fitness.results import Evaluation
from tests.workers.fake_cluster import ITEMS, SECONDS, Clock, Death, FakeCluster, scored


@pytest.fixture
def clock():
    return Clock()


def pool_on(cluster, items=2, **settings):
    pool = RayPool(cluster, items, clock=cluster.clock, **{"count": 2} | settings)
    while pool.size < len(pool._slots) and not cluster.starts:
        pool._collect(next(slot for slot in pool._slots if not slot.ready))
    return pool


def run_all(pool, recipes, items=ITEMS):
    """Score recipes (numbers) as the driver does; return evaluations by tag."""
    left, found = list(recipes), {}
    while left or len(found) < len(recipes):
        while left and pool.free:
            recipe = left.pop(0)
            pool.submit(recipe, Request(recipe, items))
        for tag, evaluation in pool.wait():
            assert tag not in found
            found[tag] = evaluation
    return found


def test_all_are_scored_once_by_both_workers(clock):
    cluster = FakeCluster(clock)
    found = run_all(pool_on(cluster), range(20))
    assert {tag: e.fitness for tag, e in found.items()} == {tag: float(tag) for tag in range(20)}
    assert {worker for _, worker in cluster.where} == {0, 1}
    assert len(cluster.where) == 20


def test_no_more_is_taken_than_workers_are_idle(clock):
    pool = pool_on(FakeCluster(clock))
    assert pool.free == 2
    pool.submit(0, Request(0, ITEMS))
    assert pool.free == 1
    pool.submit(1, Request(1, ITEMS))
    assert pool.free == 0


def test_a_candidate_whose_worker_dies_is_scored_by_another(clock):
    cluster = FakeCluster(clock, script={3: [Death("killed"), Death("killed")]})
    found = run_all(pool_on(cluster), range(6))
    assert found[3].fitness == 3.0
    assert len([recipe for recipe, _ in cluster.where if recipe == 3]) == 3
    assert cluster.count == 4  # two workers started again


def test_a_candidate_that_kills_every_worker_fails_and_the_search_goes_on(clock):
    cluster = FakeCluster(clock, script={3: [Death("the kernel killed it")] * 9})
    found = run_all(pool_on(cluster, max_restarts=3), range(12))
    assert found[3].status == "failed" and found[3].reason == "given up after 3 workers: the kernel killed it"
    assert all(found[tag].status == "ok" for tag in found if tag != 3)


def test_many_such_candidates_do_not_use_up_the_workers(clock):
    killers = {*range(0, 12, 2), *range(12, 18)}  # after one that is scored, and several in a row
    cluster = FakeCluster(clock, script={tag: [Death("killed")] * 9 for tag in killers})
    found = run_all(pool_on(cluster, count=1), range(20))
    assert {tag for tag in found if found[tag].status == "failed"} == killers
    assert len(found) == 20


def test_when_workers_cannot_be_started_again_the_search_stops_and_says_why(clock):
    cluster = FakeCluster(clock, script={0: [Death("node lost")]})
    pool = pool_on(cluster, count=1)
    cluster.starts = [Death("no such file")] * 9
    pool.submit(0, Request(0, ITEMS))
    with pytest.raises(WorkerError, match=r"no worker is left.*no such file.*raise workers\.max_restarts"):
        pool.wait()
    assert cluster.count == 1 + 3


def test_a_hung_candidate_is_tried_once_more_and_then_fails(clock):
    cluster = FakeCluster(clock, script={1: ["hang", "hang"], 2: ["hang"]})
    found = run_all(pool_on(cluster, timeout=30), range(5))
    assert found[1].reason == ("given up after 2 workers: the candidate took longer than workers.timeout (30 s)")
    assert found[2].fitness == 2.0
    assert len(cluster.killed) == 3  # a hung worker is killed, not waited for


def test_more_items_get_more_time(clock):
    cluster = FakeCluster(clock, script={1: ["hang", "hang"]})
    started = clock()
    run_all(pool_on(cluster, items=2, timeout=30), [1], items=ITEMS * 5)
    assert 300 <= clock() - started < 310


def test_fewer_items_get_no_less_time(clock):
    """A candidate with one item still has to be merged."""
    cluster = FakeCluster(clock, script={1: ["hang", "hang"]})
    started = clock()
    run_all(pool_on(cluster, items=10 * len(ITEMS), timeout=30), [1], items=ITEMS[:1])
    assert 60 <= clock() - started < 70


def test_without_a_limit_a_busy_worker_is_asked_for_signs_of_life(clock, caplog):
    cluster = FakeCluster(clock, script={1: ["hang"]})
    pool = pool_on(cluster, count=1)
    asked = []
    cluster.heartbeat = lambda worker: (
        asked.append(clock()) or cluster._reference("busy for 31 s" if clock() < 1100 else "hang")
    )
    pool.submit(1, Request(1, ITEMS))
    wait, waits = cluster.wait, set()

    def wait_until_late(references, timeout):
        waits.add(timeout)
        if clock() > 1400:
            cluster.results[references[0]] = scored(1.0)
        return wait(references, timeout)

    cluster.wait = wait_until_late
    with caplog.at_level("INFO", "evomerge"):
        assert pool.wait()[0][1].fitness == 1.0
    assert 3 <= len(asked) <= 5
    assert waits == {POLL, 0.0}  # for a candidate, and not for a sign of life
    assert "worker 0: busy for 31 s" in caplog.messages
    assert any("worker 0 has not answered for" in message for message in caplog.messages)


def test_too_little_memory_on_one_worker_may_be_enough_on_another(clock):
    failed = Evaluation.failed(f"{OUT_OF_MEMORY} at batch size 1", SECONDS)
    cluster = FakeCluster(clock, script={1: [failed], 2: [failed, failed]})
    found = run_all(pool_on(cluster), range(4))
    assert found[1].fitness == 1.0
    assert found[2].status == "failed" and found[2].reason.startswith(OUT_OF_MEMORY)
    for recipe in (1, 2):
        first, second = [worker for tried, worker in cluster.where if tried == recipe]
        assert first != second


class EndingClock(Clock):
    """Ends a test in which nothing happens any more."""

    def __call__(self):
        assert self.now < 10_000, "nothing happens any more"
        return super().__call__()


def test_the_last_worker_takes_even_what_it_had_no_memory_for():
    """The other worker is lost for good: the candidate must not wait for it."""
    short = Evaluation.failed(f"{OUT_OF_MEMORY} on a GPU", SECONDS)
    cluster = FakeCluster(EndingClock(), script={0: [short], 1: [Death("node lost")]})
    pool = pool_on(cluster, max_restarts=0)
    pool.submit(0, Request(0, ITEMS))
    pool.submit(1, Request(1, ITEMS))
    found = {}
    for _ in range(20):
        found |= dict(pool.wait() if len(found) < 2 else [])
    assert {tag: evaluation.fitness for tag, evaluation in found.items()} == {0: 0.0, 1: 1.0}


def test_a_candidate_whose_worker_died_is_the_next(clock):
    """A generation waits for it: it does not go behind those that were submitted later."""
    cluster = FakeCluster(clock, script={0: [Death("killed")]})
    pool = pool_on(cluster, count=1)
    for tag in range(3):
        pool.submit(tag, Request(tag, ITEMS))
    while len(cluster.where) < 4:
        pool.wait()
    assert [recipe for recipe, _ in cluster.where] == [0, 0, 1, 2]


def test_changed_sources_stop_the_search(clock):
    cluster = FakeCluster(clock, script={1: [WorkerError("models.a has changed")]})
    pool = pool_on(cluster)
    pool.submit(1, Request(1, ITEMS))
    with pytest.raises(WorkerError, match="has changed"):
        pool.wait()


def test_what_stops_the_first_worker_shows_at_once_and_nothing_is_left_running(clock):
    cluster = FakeCluster(clock)
    cluster.starts = [WorkerError("a worker cannot start: no tokenizer")] * 2
    with pytest.raises(WorkerError, match="no tokenizer"):
        RayPool(cluster, 2, count=2, clock=clock)
    assert cluster.closed == 1 and len(cluster.killed) == 2


def test_when_there_is_never_room_that_is_said(clock):
    cluster = FakeCluster(clock)
    cluster.starts = ["hang"] * 2
    with pytest.raises(WorkerError, match=r"none was ready within 600 s; look at `ray status`"):
        RayPool(cluster, 2, count=2, clock=clock)


def test_workers_join_while_the_search_runs(clock):
    cluster = FakeCluster(clock, room=1, script={0: ["hang"]})
    pool = pool_on(cluster, count="auto", timeout=1000)
    pool.submit(0, Request(0, ITEMS))
    assert (pool.size, pool.free) == (1, 0)
    cluster._room = 3
    assert pool.wait() == []  # not a result, but somebody to give the next candidate to
    assert pool.free >= 1
    assert run_all(pool, range(1, 9)).keys() == set(range(1, 9))
    assert pool.size == 3


def test_workers_leave_while_the_search_runs(clock):
    cluster = FakeCluster(clock, room=3, script={5: [Death("node lost")], 6: [Death("node lost")]})
    pool = pool_on(cluster, count="auto", timeout=60)
    assert pool.size == 3
    run_all(pool, range(5))
    cluster._room = 1
    cluster.takes = 1.0
    cluster.starts = ["hang"] * 50  # there is no place for new ones
    assert run_all(pool, range(5, 12)).keys() == set(range(5, 12))
    assert pool.size == len(pool._slots) == 1


def test_waiting_is_what_is_neither_merging_nor_scoring(clock):
    pool = pool_on(FakeCluster(clock))
    pool.submit(0, Request(0, ITEMS))
    clock.now += 2.0
    ((_, evaluation),) = pool.wait()
    assert evaluation.seconds == {"merge": 0.25, "score": 0.5, "wait": pytest.approx(1.25)}


def test_closing_twice_kills_once(clock):
    cluster = FakeCluster(clock)
    pool = pool_on(cluster)
    pool.close()
    pool.close()
    assert (len(cluster.killed), cluster.closed) == (2, 1)


@pytest.mark.parametrize(
    ("resources", "cpus", "gpus", "room"),
    [
        ({"CPU": 8.0}, 1, 0, 8),
        ({"CPU": 8.0}, 3, 0, 2),
        ({"CPU": 2.0}, 0.5, 0, 4),
        ({"CPU": 8.0}, 1, 1, 0),
        ({"CPU": 64.0, "GPU": 8.0}, 1, 1, 8),
        ({"CPU": 64.0, "GPU": 2.0}, 1, 0.25, 8),
        ({"CPU": 64.0, "GPU": 2.0}, 1, 0.4, 4),  # a share does not straddle two GPUs
        ({"CPU": 64.0, "GPU": 8.0}, 1, 3, 2),
        ({"CPU": 4.0, "GPU": 8.0}, 1, 1, 4),
    ],
)
def test_workers_on_a_node(resources, cpus, gpus, room):
    assert workers_on(resources, cpus, gpus) == room


@pytest.mark.parametrize(
    ("workers", "count", "gpus", "share"),
    [
        (8, "auto", 1, Share(1, 1 / 8)),
        (8, 2, 0.25, Share(0.25, 1 / 2)),
        (4, "auto", 0, Share(1, 1 / 4)),
        (0, "auto", 2, Share(1, 1)),
    ],
)
def test_workers_of_a_node_share_its_memory(workers, count, gpus, share):
    assert share_of(workers, count, gpus) == share


def test_a_worker_places_its_sources_as_the_search_says():
    settings = RayConfig(placement="pinned", cpus_per_worker=2.0).settings("cuda")
    assert settings == WorkerSettings("cuda", "auto", threads=2, placement="pinned")


def test_a_share_above_one_must_be_whole():
    with pytest.raises(ValueError, match="above 1 it must be a whole number"):
        RayConfig(gpus_per_worker=1.5)
