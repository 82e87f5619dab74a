"""Racing against an archive: who is stopped, how often wrongly, and resuming in the middle of a candidate."""

from types import SimpleNamespace

import numpy as np
import pytest

from evomerge.config.search_file import BudgetConfig
from evomerge.runs.history import RunHistory
from evomerge.runs.run import Run, Told
from evomerge.search.loop import Search
from evomerge.search.racing.archive import ArchiveRacingPool
from evomerge.search.racing.pool import RacingPool, racing
from evomerge.strategies import M2n2Config, MapElitesConfig, RandomConfig
from evomerge.strategies.m2n2 import Archive
from evomerge.testing.pools import ScriptedPool, answered
from evomerge.workers.base import Request
from fitness.config import RacingConfig
from fitness.estimation.evaluation_plan import FixedItemsPlan
from fitness.objectives import Objectives
from fitness.results import Evaluation
from search_spaces.recipes.baselines import source_recipe

ITEMS = tuple(f"{task}/test/{index}" for task, count in (("a", 30), ("b", 10)) for index in range(count))
COUNT = 24
RECIPE = source_recipe("somewhere", 2)
CONFIGS = {
    "m2n2": M2n2Config(archive=6, warm_up=8, mutation=1.0),
    "map_elites": MapElitesConfig(cells=2, population=6, warm_up=8, mutation=1.0),
}


def plan():
    return FixedItemsPlan(ITEMS, Objectives({"a": 1.0, "b": 1.0}))


class Answering(ScriptedPool):
    """Workers whose candidates have fixed answers, by recipe or by tag.

    The latest block comes back first: the order of candidates is not that of their ids.
    """

    def __init__(self, answer, *, fails=(), **settings):
        super().__init__(self.score, order="last", **settings)
        self.skill, self.fails = answer, fails

    def score(self, tag, request):
        if tag in self.fails:
            return Evaluation.failed("out of memory", {"merge": 0.5, "score": 0.0, "wait": 0.0})
        return answered(request, [self.skill(tag, request.recipe, item) for item in request.items])


class Fixed:
    """A full archive that does not change."""

    def __init__(self, answers):
        self.archive = Archive(len(answers), 1, alpha=1.0, relative=False)
        for answer in answers:
            self.archive.take(np.zeros(1), answer)

    def keeps(self, evaluation):
        return self.archive.would_take(evaluation)


def answers_of(scores):
    return plan().judge(Evaluation("ok", items=ITEMS, scores=np.asarray(scores, np.float32)))


@pytest.mark.parametrize("spread", [0.0, 2.0])
@pytest.mark.parametrize("error", [0.1, 0.3])
def test_of_those_stopped_at_most_the_error_would_have_got_in(spread, error):
    """Candidates of any ability on items of one difficulty (the model assumed), and of many."""
    rng = np.random.default_rng(0)
    hardness_I = spread * rng.normal(size=len(ITEMS))

    def someone(mean=None):
        ability = rng.logistic() if mean is None else mean  # 1 / (1 + exp(-x)) is uniform
        return (rng.random(len(ITEMS)) < 1 / (1 + np.exp(hardness_I - ability))).astype(np.float32)

    fixed = Fixed([answers_of(someone(mean=0.4)) for _ in range(8)])
    people = [someone() for _ in range(80)]
    column = {item: at for at, item in enumerate(ITEMS)}
    workers = Answering(lambda tag, _, item: people[tag][column[item]])
    pool = ArchiveRacingPool(workers, RacingConfig(error=error, block=8), plan(), fixed, seed=1)
    wrong = stopped = entering = 0
    for tag, person in enumerate(people):
        pool.submit(tag, Request(RECIPE, ITEMS))
        while not (results := pool.wait()):
            pass
        enters = fixed.keeps(answers_of(person))
        entering += enters
        if results[0][1].status == "stopped":
            stopped += 1
            wrong += enters
    assert 20 < entering < 60
    assert stopped > 0.3 * (80 - entering)
    assert wrong / stopped < error + 2 * np.sqrt(error * (1 - error) / stopped)
    assert workers.item_count < 0.95 * 80 * len(ITEMS)


def test_while_there_is_room_everybody_gets_in():
    fixed = Fixed([answers_of(np.ones(len(ITEMS)))])
    fixed.archive.places = 2
    pool = ArchiveRacingPool(Answering(lambda *_: 0.0), RacingConfig(error=0.5, block=4), plan(), fixed, seed=0)
    pool.submit(0, Request(RECIPE, ITEMS))
    while not (results := pool.wait()):
        pass
    assert [(tag, found.status, found.items) for tag, found in results] == [(0, "ok", ITEMS)]


def test_asking_whether_it_would_enter_changes_nothing():
    rng = np.random.default_rng(0)
    fixed = Fixed([answers_of(rng.random(len(ITEMS)) < 0.6) for _ in range(5)])
    before = fixed.archive.scores.copy()
    weak = answers_of(np.zeros(len(ITEMS)))
    strange = Evaluation("ok", (1.0,), (0.0,), ("a/test/99", *ITEMS[:3]), np.ones(4, np.float32))
    assert not fixed.keeps(weak) and fixed.keeps(strange)
    assert np.array_equal(before, fixed.archive.scores)
    genotypes = fixed.archive.genotypes.copy()
    fixed.archive.take(np.ones(1), weak)
    assert np.array_equal(genotypes, fixed.archive.genotypes)
    fixed.archive.take(np.ones(1), strange)
    assert (fixed.archive.genotypes == 1).sum() == 1


@pytest.fixture
def space(make_space):
    return make_space(4)


@pytest.fixture
def start(tmp_path, space):
    def skill(tag, recipe, item):
        index = int(item.rsplit("/", 1)[1])
        return float(index * 17 % 30 < 34 * np.exp(-np.abs(space.encode(recipe) - 0.8).mean()))

    def start(name, strategy, **answering):
        """Search in this run, from the start or from where it was stopped."""
        path = tmp_path / name
        run = Run.open(path) if path.exists() else Run.create(path, "seed: 0\n", {})
        state = Search(run, space, CONFIGS[strategy].build(space, 0), BudgetConfig(evaluations=COUNT), plan())
        workers = Answering(skill, **answering)
        rules = RacingConfig(error=0.2, block=6)
        try:
            state.search(ArchiveRacingPool(workers, rules, state.plan, state.strategy, 0))
        finally:
            run.close()
        return workers

    return start


def told(path):
    with Run.read(path) as run:
        return [
            (event.candidate, event.evaluation.status, event.evaluation.objectives, event.evaluation.items)
            for event in run.events()
            if isinstance(event, Told)
        ]


@pytest.mark.parametrize("strategy", CONFIGS)
def test_candidates_are_stopped_and_the_search_goes_on_exactly(start, tmp_path, strategy):
    blocks = len(start("whole", strategy).asked)
    status = [status for _, status, _, _ in told(tmp_path / "whole")]
    assert len(status) == COUNT and "stopped" in status and "ok" in status[10:]
    for _, name, objectives, items in told(tmp_path / "whole"):
        assert np.isfinite(objectives).all() and (len(items) < len(ITEMS)) == (name == "stopped")
    for dies_at in (blocks // 10, blocks - 2):
        with pytest.raises(KeyboardInterrupt):
            start(f"at {dies_at}", strategy, dies_at=dies_at)
        start(f"at {dies_at}", strategy)
        assert told(tmp_path / f"at {dies_at}") == told(tmp_path / "whole")


@pytest.mark.parametrize("strategy", CONFIGS)
def test_several_workers_and_the_order_of_tells_is_replayed(start, tmp_path, space, strategy):
    workers = start("run", strategy, capacity=3, fails={2, 5})
    order = [candidate for candidate, _, _, _ in told(tmp_path / "run")]
    assert sorted(order) == list(range(COUNT)) and order != sorted(order)
    assert {status for candidate, status, _, _ in told(tmp_path / "run") if candidate in (2, 5)} == {"failed"}
    with Run.open(tmp_path / "run") as run:  # replayed without an error: the same candidates are proposed
        Search(run, space, CONFIGS[strategy].build(space, 0), BudgetConfig(evaluations=COUNT), plan())
        history = RunHistory(run.events())
    assert history.item_evaluations == sum(len(request.items) for tag, request in workers.asked if tag not in (2, 5))


@pytest.mark.parametrize(
    ("strategy", "kind"),
    [(CONFIGS["m2n2"], ArchiveRacingPool), (CONFIGS["map_elites"], ArchiveRacingPool), (RandomConfig(), RacingPool)],
)
def test_strategies_with_an_archive_race_against_it(space, strategy, kind):
    workers = Answering(lambda *_: 0.0)
    search = SimpleNamespace(strategy=strategy.build(space, 0), plan=plan(), history=RunHistory())
    config = SimpleNamespace(fitness=SimpleNamespace(racing=None), seed=0)
    assert racing(workers, config, search) is workers
    config.fitness.racing = RacingConfig()
    assert type(racing(workers, config, search)._now) is kind
