"""Racing in a search: blocks, who is stopped, what is told, and resuming in the middle of a race."""

import numpy as np
import pytest

from evomerge.config.search_file import BudgetConfig
from evomerge.runs.history import RunHistory
from evomerge.runs.run import Asked, Run, Told
from evomerge.search.loop import Search
from evomerge.search.racing.blocks import in_blocks, in_rungs
from evomerge.search.racing.pool import RacingPool
from evomerge.strategies import CmaEsConfig, RandomConfig
from evomerge.strategies.base import Candidate
from evomerge.testing.pools import SECONDS, ScriptedPool, answered
from evomerge.workers.base import Request
from fitness.config import RacingConfig
from fitness.estimation import EstimatorInputs
from fitness.estimation.evaluation_plan import EstimatedPlan, FixedItemsPlan
from fitness.objectives import Objectives
from fitness.results import Evaluation

ITEMS = tuple(f"t/validation/{index}" for index in range(40))
CONFIGS = {"cma_es": CmaEsConfig(population=8, score_mean_every=2), "random": RandomConfig(population=6)}


class Answering(ScriptedPool):
    """Workers whose candidates are right on the first so many items, the more the nearer they are to 0.8."""

    def __init__(self, space, *, fails=(), **settings):
        super().__init__(self.score, **settings)
        self.space, self.fails = space, fails

    def score(self, tag, request):
        if tag in self.fails:
            return Evaluation.failed("out of memory", SECONDS)
        skill = 40 * np.exp(-np.abs(self.space.encode(request.recipe) - 0.8).mean())
        return answered(request, [int(item.rsplit("/", 1)[1]) * 17 % 40 < skill for item in request.items])


def inherited():
    parents = np.array([np.arange(40) % modulus == 0 for modulus in (2, 3)], np.float64)
    return EstimatedPlan(
        ITEMS, {"t": EstimatorInputs(40, parents=parents)}, Objectives({"t": 1.0}), "inherited", 20, seed=0
    )


def plain():
    return FixedItemsPlan(ITEMS, Objectives({"t": 1.0}))


PLANS = {"inherited": inherited, "plain": plain}


@pytest.fixture
def space(make_space):
    return make_space(4)


@pytest.fixture
def start(tmp_path, space):
    runs = []

    def start(name, strategy="cma_es", plan="inherited", rules=None, **answering):
        """Search in this run, from the start or from where it was stopped."""
        path = tmp_path / name
        run = Run.open(path) if path.exists() else Run.create(path, "seed: 0\n", {})
        runs.append(run)
        budget = BudgetConfig(evaluations=20)
        state = Search(run, space, CONFIGS[strategy].build(space, 0), budget, PLANS[plan]())
        workers = Answering(space, **answering)
        rules = rules or RacingConfig(error=0.5, block=4)
        try:
            state.search(RacingPool(workers, rules, state.plan, state.history, state.strategy, 0))
        finally:
            run.close()
        return workers

    return start


def told(path):
    """What was told of each candidate, without times."""
    with Run.open(path) as run:
        return [
            (event.candidate, event.evaluation.status, event.evaluation.objectives, event.evaluation.items)
            for event in run.events()
            if isinstance(event, Told)
        ]


def test_blocks_hold_every_item_once_and_each_tasks_share():
    items = [f"{task}/test/{index}" for task, count in (("a", 20), ("b", 20), ("c", 7)) for index in range(count)]
    blocks = in_blocks(items, 8, seed=0)
    assert sorted(item for block in blocks for item in block) == sorted(items)
    assert [sum(item.startswith("a/") for item in block) for block in blocks] == [8, 12]
    assert [sum(item.startswith("c/") for item in block) for block in blocks] == [7, 0]
    assert blocks == in_blocks(items, 8, seed=0) != in_blocks(items, 8, seed=1)


def test_one_block_where_there_are_no_more_items():
    assert [len(block) for block in in_blocks(ITEMS[:5], 8, seed=0)] == [5]


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("strategy", CONFIGS)
def test_candidates_that_cannot_matter_are_stopped_and_told_with_an_estimate(start, tmp_path, strategy, plan):
    workers = start("run", strategy, plan)
    history = RunHistory(Run.read(tmp_path / "run").events())
    status = {identity: told.evaluation.status for identity, told in history.told.items()}
    stopped = [identity for identity, name in status.items() if name == "stopped"]
    assert stopped and len(history.told) == 20
    whole = max(len(told.evaluation.items) for told in history.told.values())
    for identity in stopped:
        evaluation = history.evaluation(identity)
        assert len(evaluation.items) < whole
        assert np.isfinite(evaluation.fitness)
        assert evaluation.seconds["merge"] == 0.5 * (len(evaluation.items) // 4)
    assert workers.item_count == history.item_evaluations < 20 * whole
    assert status[history.best] == "ok" and not set(history.ranking()) & set(stopped)
    means = [identity for identity, asked in history.asked.items() if asked.candidate.kind == "mean"]
    assert all(status[identity] == "ok" for identity in means)


def test_those_that_are_stopped_are_the_worse_ones(start, tmp_path, space):
    start("run", plan="plain", rules=RacingConfig(error=0.3, block=10))
    history = RunHistory(Run.read(tmp_path / "run").events())
    for generation in range(2):
        distance = {"ok": [], "stopped": []}
        for result in history.results(generation):
            candidate = history.asked[result.candidate].candidate
            if candidate.kind == "sample":
                distance[result.evaluation.status].append(np.abs(candidate.genotype - 0.8).mean())
        if distance["stopped"]:
            assert np.mean(distance["stopped"]) > np.mean(distance["ok"])


@pytest.mark.parametrize("strategy", CONFIGS)
def test_the_number_of_workers_decides_nothing(start, tmp_path, strategy):
    start("one", strategy)
    start("several", strategy, capacity=3)
    assert told(tmp_path / "one") == told(tmp_path / "several")


@pytest.mark.parametrize(("strategy", "dies_at"), [("cma_es", 9), ("cma_es", 20), ("random", 20)])
def test_a_race_that_was_stopped_goes_on_exactly(start, tmp_path, strategy, dies_at):
    start("whole", strategy)
    with pytest.raises(KeyboardInterrupt):
        start("run", strategy, dies_at=dies_at)
    start("run", strategy)
    assert told(tmp_path / "run") == told(tmp_path / "whole")


@pytest.mark.parametrize(("plan", "kept"), [("inherited", 3), ("inherited", 12), ("plain", 12)])
def test_a_search_stopped_between_two_tells_goes_on_exactly(start, tmp_path, plan, kept, monkeypatch):
    """The last generation's results are told in part when the process dies."""
    start("whole", plan=plan)
    count, record = 0, Run.record

    def dies(self, event):
        nonlocal count
        count += isinstance(event, Told)
        if count > kept:
            raise KeyboardInterrupt
        record(self, event)

    monkeypatch.setattr(Run, "record", dies)
    with pytest.raises(KeyboardInterrupt):
        start("run", plan=plan)
    monkeypatch.undo()
    assert len(told(tmp_path / "run")) == kept
    start("run", plan=plan)
    assert told(tmp_path / "run") == told(tmp_path / "whole")


def test_a_failed_candidate_leaves_the_race(start, tmp_path):
    start("run", rules=RacingConfig(error=0.9, block=4), fails={2, 3, 11})
    status = {identity: name for identity, name, _, _ in told(tmp_path / "run")}
    assert [identity for identity, name in status.items() if name == "failed"] == [2, 3, 11]
    assert "stopped" in status.values()


@pytest.mark.parametrize("test", ["auto", "sprt", "wilcoxon"])
def test_paired_comparisons(start, tmp_path, test):
    start("run", plan="plain", rules=RacingConfig(error=0.5, block=10, keep=0.25, test=test))
    assert {name for _, name, _, _ in told(tmp_path / "run")} <= {"ok", "stopped"}


HALVES = {test: RacingConfig(test=test, block=5) for test in ("halving", "hyperband")}


def test_rungs_grow_by_a_factor_and_hold_every_item_once():
    items = [f"{task}/test/{index}" for task, count in (("a", 40), ("b", 7)) for index in range(count)]
    rungs = in_rungs(items, 5, 2.0, seed=0)
    assert sorted(item for rung in rungs for item in rung) == sorted(items)
    assert np.cumsum([sum(item.startswith("a/") for item in rung) for rung in rungs]).tolist() == [5, 10, 20, 40]
    for skipped in (1, 2, 3, 9):
        later = in_rungs(items, 5, 2.0, seed=0, skipped=skipped)
        first = min(skipped, 3)
        assert later == [tuple(in_rungs(items, 5 * 2**first, 2.0, seed=0)[0]), *rungs[first + 1 :]]


@pytest.mark.parametrize("test", HALVES)
def test_at_each_rung_the_better_half_goes_on(start, tmp_path, test):
    workers = start("run", plan="plain", rules=HALVES[test])
    history = RunHistory(Run.read(tmp_path / "run").events())
    for generation in (0, 1):
        samples = [
            told.evaluation
            for told in history.results(generation)
            if history.asked[told.candidate].candidate.kind == "sample"
        ]
        counts = sorted(len(one.items) for one in samples)
        # 8 candidates: rungs of 5, 10, 20 and 40 items; Hyperband's second generation begins with 10.
        begins = generation if test == "hyperband" else 0
        assert counts == ([5] * 4 + [10] * 2 + [20] + [40] if begins == 0 else [10] * 4 + [20] * 2 + [40] * 2)
        longest, shortest = max(counts), min(counts)
        best = max(one.fitness for one in samples if len(one.items) == longest)
        assert best >= max(one.fitness for one in samples if len(one.items) == shortest)
    assert workers.item_count < 0.6 * 20 * len(ITEMS)


@pytest.mark.parametrize("test", HALVES)
@pytest.mark.parametrize("dies_at", [3, 17, 30])
def test_halving_goes_on_exactly(start, tmp_path, test, dies_at):
    start("whole", plan="plain", rules=HALVES[test])
    with pytest.raises(KeyboardInterrupt):
        start("stopped", plan="plain", rules=HALVES[test], dies_at=dies_at)
    start("stopped", plan="plain", rules=HALVES[test])
    assert told(tmp_path / "stopped") == told(tmp_path / "whole")


def test_halving_must_drop_somebody():
    with pytest.raises(ValueError, match="test: halving keeps a fraction at each check; write keep below 1"):
        RacingConfig(test="halving", keep=1.0)


@pytest.mark.parametrize("test", ["posterior", "t"])
def test_a_candidate_below_a_minimum_score_stops_none_that_keeps_it(space, test):
    """Candidates 0 to 3 answer the first task right and the second wrong, which has a minimum; 4 is the other way."""
    items = [f"{task}/validation/{index}" for index in range(40) for task in ("a", "b")]

    def score(tag, request):
        return answered(request, [(item[0] == "a") == (tag < 4) for item in request.items])

    weights = {"a": 3.0, "b": 1.0}
    history, results = RunHistory(), {}
    for floors in ({}, {"b": 0.5}):
        plan = FixedItemsPlan(items, Objectives(weights, floors=floors))
        strategy = RandomConfig(population=5).build(space, 0)
        pool = RacingPool(ScriptedPool(score), RacingConfig(block=8, test=test), plan, history, strategy, 0)
        for tag in range(5):
            history.add(Asked(Candidate(tag, np.zeros(4), "sample", 0), f"recipe {tag}"))
            pool.submit(tag, Request(space.decode(space.start), tuple(items)))
        results[bool(floors)] = {tag: found.status for tag, found in pool.wait()}
    assert results[False][4] == "stopped"
    assert results[True][4] == "ok"
