"""The driver: order of events, cache, budgets, failures, and resuming by replay."""

import time

import numpy as np
import pytest

from evomerge.config.search_file import BudgetConfig
from evomerge.runs.history import RunHistory
from evomerge.runs.run import Asked, Run, Told
from evomerge.search.loop import Search, SearchError
from evomerge.strategies import CmaEsConfig, GeneticConfig, RandomConfig
from evomerge.testing.pools import ScriptedPool
from fitness.estimation import EstimatorInputs
from fitness.estimation.evaluation_plan import EstimatedPlan, FixedItemsPlan
from fitness.objectives import Objectives
from fitness.results import Evaluation
from search_spaces.recipes import mergekit_yaml

ONE_TASK = Objectives({"t": 1.0})
ITEMS = ("t/test/0", "t/test/1")
CONFIGS = {"cma_es": CmaEsConfig(population=6, score_mean_every=2), "random": RandomConfig(population=6)}


class SyntheticPool(ScriptedPool):
    """Scores a recipe by its genotype; `fails(n)` says whether its n-th evaluation fails."""

    def __init__(self, space, fitness_of, *, fails=lambda count: False, **settings):
        super().__init__(self.score, **settings)
        self.space, self.fitness_of, self.fails = space, fitness_of, fails

    def score(self, tag, request):
        seconds = {"merge": 1e-6, "score": 2e-6, "wait": 0.0}  # less than the driver itself takes
        if self.fails(len(self.asked)):
            return Evaluation.failed("OutOfMemoryError: injected", seconds)
        value = self.fitness_of(self.space.encode(request.recipe))
        scores = np.full(len(request.items), value, np.float32)
        return Evaluation("ok", (value,), (0.1,), request.items, scores, seconds)


@pytest.fixture
def space(make_space):
    return make_space(5)


@pytest.fixture
def create(tmp_path):
    runs = []

    def create(name="run"):
        runs.append(Run.create(tmp_path / name, "seed: 0\n", {}))
        return runs[-1]

    yield create
    for run in runs:
        run.close()


def search(run, space, config=CONFIGS["cma_es"], evaluations=40, hours=None):
    budget = BudgetConfig(evaluations=evaluations, hours=hours)
    return Search(run, space, config.build(space, 0), budget, FixedItemsPlan(ITEMS, ONE_TASK))


def signature(run):
    """Return all of a run's events but the times."""
    events = []
    for event in run.events():
        if isinstance(event, Asked):
            candidate = event.candidate
            key = (candidate.id, candidate.kind, candidate.generation, candidate.genotype.tobytes(), event.recipe)
        else:
            evaluation = event.evaluation
            key = (event.candidate, evaluation.status, evaluation.objectives, evaluation.scores.tobytes(), event.cached)
        events.append((type(event).__name__, key))
    return events


@pytest.mark.parametrize("name", CONFIGS)
def test_every_candidate_is_asked_then_told(create, space, fitness_of, name):
    run = create()
    search(run, space, CONFIGS[name]).search(SyntheticPool(space, fitness_of))
    events = list(run.events())
    assert [type(event) for event in events] == [Asked, Told] * 40
    assert [event.candidate for event in events[1::2]] == list(range(40))


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("dies_at", [1, 2, 7, 20, 39])
def test_a_stopped_search_goes_on_exactly(create, space, fitness_of, name, dies_at):
    whole = create("whole")
    search(whole, space, CONFIGS[name]).search(SyntheticPool(space, fitness_of))
    run = create()
    with pytest.raises(KeyboardInterrupt):
        search(run, space, CONFIGS[name]).search(SyntheticPool(space, fitness_of, dies_at=dies_at))
    search(run, space, CONFIGS[name]).search(SyntheticPool(space, fitness_of))
    assert signature(run) == signature(whole)


def inherited():
    """Return a plan that learns from every candidate, over 30 items."""
    items = tuple(f"t/test/{index}" for index in range(30))
    parents = np.array([np.arange(30) % modulus == 0 for modulus in (2, 3)], np.float64)
    return EstimatedPlan(items, {"t": EstimatorInputs(30, parents=parents)}, ONE_TASK, "inherited", 8, seed=0)


@pytest.mark.parametrize("dies_at", [3, 18, 31])
def test_a_measure_that_learns_goes_on_exactly_too(create, space, dies_at):
    def share(genotype):
        return float(np.clip(np.mean(genotype), 0, 1))

    def start(run):
        return Search(run, space, CONFIGS["cma_es"].build(space, 0), BudgetConfig(evaluations=36), inherited())

    whole, run = create("whole"), create()
    start(whole).search(SyntheticPool(space, share))
    with pytest.raises(KeyboardInterrupt):
        start(run).search(SyntheticPool(space, share, dies_at=dies_at))
    start(run).search(SyntheticPool(space, share))
    assert signature(run) == signature(whole)
    assert len({event.evaluation.items for event in run.events() if isinstance(event, Told)}) > 3


def test_several_workers_score_the_same_candidates(create, space, fitness_of):
    one, three = create("one"), create("three")
    search(one, space).search(SyntheticPool(space, fitness_of))
    search(three, space).search(SyntheticPool(space, fitness_of, capacity=3))
    asked = [[key for kind, key in signature(run) if kind == "Asked"] for run in (one, three)]
    assert asked[0] == asked[1]


def share(genotype):
    """Return a fitness in [0, 1]."""
    return float(np.clip(np.mean(genotype), 0, 1))


@pytest.mark.parametrize("plan", [lambda: FixedItemsPlan(ITEMS, ONE_TASK), inherited], ids=["plain", "inherited"])
@pytest.mark.parametrize("seed", range(2))
def test_a_synchronous_search_does_not_depend_on_which_worker_is_quicker(create, space, plan, seed):
    def start(run):
        return Search(run, space, CONFIGS["cma_es"].build(space, 0), BudgetConfig(evaluations=30), plan())

    one, many = create("one"), create("many")
    start(one).search(SyntheticPool(space, share))
    start(many).search(SyntheticPool(space, share, capacity=4, seed=seed, order="random"))
    assert sorted(signature(one)) == sorted(signature(many))
    told = [event.candidate for event in many.events() if isinstance(event, Told)]
    assert told != sorted(told)  # each is recorded when it is there


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("dies_at", [2, 9, 23, 38])
def test_with_several_workers_a_stopped_search_loses_only_what_was_in_flight(create, space, name, dies_at):
    run, whole = create(), create("whole")
    with pytest.raises(KeyboardInterrupt):
        search(run, space, CONFIGS[name]).search(
            SyntheticPool(space, share, capacity=4, dies_at=dies_at, order="random")
        )
    before = signature(run)
    search(run, space, CONFIGS[name]).search(SyntheticPool(space, share, capacity=3, seed=1, order="random"))
    assert signature(run)[: len(before)] == before
    told = [event.candidate for event in run.events() if isinstance(event, Told)]
    assert sorted(told) == list(range(40))
    search(whole, space, CONFIGS[name]).search(SyntheticPool(space, share))
    assert sorted(signature(run)) == sorted(signature(whole))


def test_a_recipe_that_is_being_scored_is_not_scored_twice(create, space):
    start = space.start.copy()

    class Stuck(RandomConfig().build(space, 0).__class__):
        """Proposes the start point again and again."""

        def _propose(self, n):
            return [(start.copy(), "sample", 0)]

    run = create()
    pool = SyntheticPool(space, share, capacity=4, fails=lambda count: count == 1, order="random")
    strategy = Stuck(space, 0, RandomConfig())
    Search(run, space, strategy, BudgetConfig(evaluations=9), FixedItemsPlan(ITEMS, ONE_TASK)).search(pool)
    told = [event for event in run.events() if isinstance(event, Told)]
    assert len(pool.asked) == 2  # the first one failed, so the next with this recipe was tried
    assert [event.evaluation.status for event in told] == ["failed"] + ["ok"] * 8
    assert [event.cached for event in told] == [False, False] + [True] * 7


def test_a_changed_algorithm_is_noticed(create, space, fitness_of):
    run = create()
    search(run, space, evaluations=20).search(SyntheticPool(space, fitness_of))
    with pytest.raises(SearchError, match=r"no longer proposes candidate 0 as recorded.*start a new run"):
        search(run, space, RandomConfig())
    other = CmaEsConfig(population=6, score_mean_every=2, sigma=0.3)
    with pytest.raises(SearchError, match="no longer proposes candidate"):
        search(run, space, other)


def test_an_equal_recipe_is_not_scored_twice(create, space, fitness_of):
    run, pool = create(), SyntheticPool(space, fitness_of)
    config = CmaEsConfig(population=4, score_mean_every=1)
    start = space.start.copy()

    class Stuck(type(config.build(space, 0))):
        """Proposes the start point again and again."""

        def _propose(self, n):
            return [(start.copy(), "sample", 0)]

        def _learn(self, candidate, evaluation):
            pass

    class Learning(FixedItemsPlan):
        """Remembers what it learns from."""

        def learn(self, evaluation):
            learnt.append(evaluation)

    learnt = []
    plan = Learning(ITEMS, ONE_TASK)
    Search(run, space, Stuck(space, 0, config), BudgetConfig(evaluations=10), plan).search(pool)
    history = RunHistory(run.events())
    assert len(pool.asked) == len(learnt) == 1  # an estimator would count copies as further candidates
    assert (history.cached, len(history.told), history.item_evaluations) == (9, 10, len(ITEMS))
    assert history.evaluation(9).fitness == history.evaluation(0).fitness


def test_a_failed_candidate_is_recorded_and_the_search_goes_on(create, space, fitness_of):
    run = create()
    search(run, space).search(SyntheticPool(space, fitness_of, fails=lambda count: count % 3 == 0))
    history = RunHistory(run.events())
    assert history.failed == 13
    assert len(history.told) == 40
    assert "injected" in history.evaluation(2).reason
    assert 2 not in history.ranking()


@pytest.mark.parametrize("name", CONFIGS)
def test_when_a_whole_generation_fails_the_search_stops_and_says_so(create, space, fitness_of, name):
    run = create()
    pool = SyntheticPool(space, fitness_of, fails=lambda count: count > 9)
    with pytest.raises(SearchError, match=r"candidates of generation \d failed.*injected.*evomerge resume"):
        search(run, space, CONFIGS[name], evaluations=60).search(pool)
    told = len(RunHistory(run.events()).told)
    assert 14 <= told <= 24
    # With the cause fixed, it continues from there.
    search(run, space, CONFIGS[name], evaluations=60).search(SyntheticPool(space, fitness_of))
    assert len(RunHistory(run.events()).told) == 60


def test_one_failure_after_a_resume_is_no_failed_generation(create, space, fitness_of):
    run = create()
    with pytest.raises(KeyboardInterrupt):
        search(run, space).search(SyntheticPool(space, fitness_of, dies_at=7))
    search(run, space).search(SyntheticPool(space, fitness_of, fails=lambda count: count == 1))
    history = RunHistory(run.events())
    assert (len(history.told), history.failed) == (40, 1)


def test_a_generation_that_failed_in_an_earlier_session_is_not_reported_again(create, space, fitness_of):
    run = create()
    with pytest.raises(SearchError, match="all 6 candidates failed"):
        search(run, space, evaluations=6).search(SyntheticPool(space, fitness_of, fails=lambda count: True))
    search(run, space, evaluations=12).search(SyntheticPool(space, fitness_of))
    assert RunHistory(run.events()).failed == 6


def test_founders_that_all_fail_stop_the_search_and_steps_do_not(create, space, fitness_of):
    rng = np.random.default_rng(0)

    def strategy(kind):
        class Plain(type(CONFIGS["random"].build(space, 0))):
            def _propose(self, n):
                return [(space.sample(rng), kind, self.told // 4) for _ in range(n)]

            def _learn(self, candidate, evaluation):
                self.told += 1

            told = 0

        return Plain(space, 0, CONFIGS["random"])

    def start(run, kind):
        state = Search(run, space, strategy(kind), BudgetConfig(evaluations=12), FixedItemsPlan(ITEMS, ONE_TASK))
        pool = SyntheticPool(space, fitness_of, fails=lambda count: count <= 4)
        state.search(pool)
        return pool

    with pytest.raises(SearchError, match="all 4 candidates of generation 0 failed"):
        start(create("founders"), "founder")
    pool = start(create("steps"), "gradient")
    assert len(pool.asked) == 12
    assert all(request.gradient_at == tuple(space.encode(request.recipe).tolist()) for _, request in pool.asked)


def test_only_steps_ask_for_derivatives(create, space, fitness_of):
    pool = SyntheticPool(space, fitness_of)
    search(create(), space, evaluations=12).search(pool)
    assert {request.gradient_at for _, request in pool.asked} == {None}


def test_when_all_of_a_short_budget_fails_that_is_said_too(create, space, fitness_of):
    with pytest.raises(SearchError, match=r"all 3 candidates failed, the last with.*injected"):
        search(create(), space, evaluations=3).search(SyntheticPool(space, fitness_of, fails=lambda count: True))


def test_hours_end_a_search_and_count_over_sessions(create, space, fitness_of):
    def slow(genotype):
        time.sleep(0.02)
        return fitness_of(genotype)

    run = create()
    search(run, space, evaluations=1000, hours=0.2 / 3600).search(SyntheticPool(space, slow))
    told = len(RunHistory(run.events()).told)
    assert 2 <= told <= 15
    search(run, space, evaluations=1000, hours=0.2 / 3600).search(SyntheticPool(space, slow))
    assert len(RunHistory(run.events()).told) == told


def test_the_best_recipe_is_on_disk_while_the_search_runs(create, space, fitness_of):
    run = create()
    with pytest.raises(KeyboardInterrupt):
        search(run, space).search(SyntheticPool(space, fitness_of, dies_at=12))
    history = RunHistory(run.events())

    assert mergekit_yaml.read(run.path / "best.yaml").hash == history.asked[history.best].recipe


def test_the_best_recipe_is_written_on_resuming_if_a_kill_came_first(create, space, fitness_of):
    run = create()
    with pytest.raises(KeyboardInterrupt):
        search(run, space).search(SyntheticPool(space, fitness_of, dies_at=12))
    best, before = run.path / "best.yaml", RunHistory(run.events())
    best.unlink()
    with pytest.raises(KeyboardInterrupt):
        search(run, space).search(SyntheticPool(space, fitness_of, dies_at=1))
    assert mergekit_yaml.read(best).hash == before.asked[before.best].recipe

    search(run, space).search(SyntheticPool(space, fitness_of))
    best.write_text("what the final evaluation has chosen")  # a search that is over does not choose again
    search(run, space).search(SyntheticPool(space, fitness_of))
    assert best.read_text() == "what the final evaluation has chosen"


def test_the_history_is_the_same_live_and_from_the_log(create, space, fitness_of):
    run = create()
    live = search(run, space)
    live.search(SyntheticPool(space, fitness_of, fails=lambda count: count == 4))
    read = RunHistory(run.events())
    for name in ("best", "failed", "cached", "item_evaluations", "elapsed", "seconds"):
        assert getattr(live.history, name) == getattr(read, name)
    assert live.history.ranking() == read.ranking()
    assert read.seconds["merge"] == pytest.approx(40e-6)
    assert sum(read.seconds.values()) == pytest.approx(read.elapsed)


def test_a_candidate_asked_again_answers_only_new_items_and_counts_with_all(create, space, fitness_of):
    items = tuple(f"t/test/{index}" for index in range(40))

    def start(run, evaluations):
        inputs = {"t": EstimatorInputs(len(items))}
        plan = EstimatedPlan(items, inputs, ONE_TASK, "mean", 8, seed=0, rotate=True)
        strategy = GeneticConfig(population=5, elite=0.2).build(space, 0)
        return Search(run, space, strategy, BudgetConfig(evaluations=evaluations), plan)

    run, pool = create(), SyntheticPool(space, fitness_of)
    state = start(run, 20)
    state.search(pool)
    history = state.history
    again = [identity for identity, asked in history.asked.items() if asked.candidate.kind == "again"]
    assert again and history.evaluations == 20 and len(history.told) == 20 + len(again)
    for identity in again:
        items_of = history.told[identity].evaluation.items
        assert len(items_of) == len(set(items_of)) > 8
        assert history.by_recipe[history.asked[identity].recipe].items[: len(items_of)] == items_of
    assert history.item_evaluations == sum(len(request.items) for _, request in pool.asked)
    assert len(set(history.ranking())) == len({history.asked[identity].recipe for identity in history.told})
    assert signature(run) == signature(run)
    other = create("other")
    with pytest.raises(KeyboardInterrupt):
        start(other, 20).search(SyntheticPool(space, fitness_of, dies_at=13))
    start(other, 20).search(SyntheticPool(space, fitness_of))
    assert signature(other) == signature(run)
