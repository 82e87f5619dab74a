"""A new search begins with what a former run has found: of another strategy, over another space."""

import re
import shutil

import numpy as np
import pytest
import yaml

from evomerge.config.errors import ConfigError
from evomerge.config.load import load
from evomerge.runs.history import RunHistory
from evomerge.runs.result import read_rows
from evomerge.runs.run import Asked, Run, Told
from evomerge.search.founders import expressed
from evomerge.search.problem import Problem
from evomerge.search.scoring_workers import local_worker
from evomerge.search.warm_start import NUMBERS, load_warm_start, space_of
from evomerge.strategies import (
    CatCmaConfig,
    CmaEsConfig,
    EdaConfig,
    GeneticConfig,
    M2n2Config,
    MapElitesConfig,
    NevergradConfig,
    Nsga2Config,
    RandomConfig,
    WarmStartPopulation,
)
from search_spaces.recipes.resolve import difference
from tests.cli.test_every_strategy import run, write

STRATEGIES = {
    "cma_es": CmaEsConfig(population=4),
    "eda": EdaConfig(population=4),
    "catcma": CatCmaConfig(population=4),
    "m2n2": M2n2Config(archive=4),
    "genetic": GeneticConfig(population=4),
    "map_elites": MapElitesConfig(population=4),
    "nsga2": Nsga2Config(population=4),
    "nevergrad": NevergradConfig(optimizer="TwoPointsDE", population=4),
    "random": RandomConfig(population=4),
}
SPACES = {
    "finer coefficients": {"kind": "layer_coefficients", "layers_per_group": 3},
    "the method as a gene": {"kind": "layer_coefficients", "method": ["task_arithmetic", "ties"]},
    "mixture": {"kind": "mixture", "chunks": "tensors"},
    "stacked": {"kind": "two_stage", "parameters": {"layers_per_group": 6}, "flow": {"repeats": 1}},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with a finished run `former`: random search over three coefficients."""
    folder = tmp_path_factory.mktemp("warm")
    path = write(folder, {"kind": "random"})
    with pytest.MonkeyPatch.context() as patch:
        code, printed = run(patch, "search", path, "--run", folder / "former")
    assert code == 0, printed
    return folder


@pytest.fixture(scope="module")
def history(folder):
    with Run.read(folder / "former") as former:
        return RunHistory(former.events())


@pytest.fixture(scope="module")
def problem(folder):
    return Problem(load(write(folder, {"kind": "random"})))


def genotypes(history):
    asked = [history.asked[identity].candidate for identity in history.ranking()]
    return [candidate.genotype for candidate in asked if candidate.kind != "founder"]


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_begins_with_the_best(name, folder, history, problem):
    """The run's result first, then its candidates by score; as many as the population holds."""
    strategy = STRATEGIES[name]
    named = strategy.model_copy(update={"warm_start": strategy.warm_start_type(run=str(folder / "former"))})
    start = load_warm_start(named, problem.config, problem.space, strategy)
    found = expressed(read_rows(folder / "former")["found"], problem.config.models, problem.layout, problem.space)
    if name == "cma_es":  # a tenth of eight: the best alone
        assert start.message.startswith("warm start: 1 candidate of ")
        width = problem.space.high - problem.space.low
        assert start.strategy.warm_start.mean == pytest.approx((found - problem.space.low) / width)
        return
    assert start.message.startswith("warm start: 4 candidates of ") and "left out" not in start.message
    points = start.strategy.warm_start.points(problem.space)
    assert len(points) == 4
    best = genotypes(history)
    if name != "nsga2":
        np.testing.assert_allclose(points[0], found)
        best = [found, *(point for point in best if not np.allclose(point, found))]
    np.testing.assert_allclose(points, best[:4])


@pytest.mark.parametrize("name", SPACES)
def test_other_spaces_say_the_same_recipes(name, folder, history, problem):
    changed = Problem(load(write(folder, {"kind": "m2n2", "archive": 3, "warm_start": "former"}, space=SPACES[name])))
    points = changed.resolved().strategy.warm_start.points(changed.space)
    assert len(points) == 3
    found = read_rows(folder / "former")["found"]
    engine = local_worker(problem).worker.engine
    wanted, said = (
        {key: value.clone() for key, value in engine.apply(recipe).state_dict().items()}
        for recipe in (found, changed.space.decode(points[0]))
    )
    for key, value in wanted.items():
        np.testing.assert_allclose(said[key].float(), value.float(), atol=2e-2, err_msg=key)  # one bfloat16 step


def test_a_run_is_read_without_the_start_of_its_first_stage(folder, tmp_path):
    """`metagpt` follows from the models' weights, which an export does not open."""
    run = shutil.copytree(folder / "former", tmp_path / "staged")
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["space"] = {"kind": "two_stage", "parameters": {"start": "metagpt"}, "flow": {"repeats": 1}}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    assert space_of(run).parameters.dimension > 0


def test_what_a_space_cannot_say_is_refused(folder):
    """Paths through layers hold no merged weights."""
    path = write(folder, {"kind": "eda", "warm_start": "former"}, space={"kind": "data_flow"})
    with pytest.raises(ConfigError, match=r"this space can express none of the candidates of .*; name another"):
        Problem(load(path)).resolved()


def test_what_is_left_out_is_counted(folder, tmp_path):
    """A former run over several methods, and a space of one of them."""
    with pytest.MonkeyPatch.context() as patch:
        two = {"kind": "layer_coefficients", "method": ["task_arithmetic", "ties"], "layers_per_group": 6}
        path = write(tmp_path, {"kind": "random"}, space=two)
        code, printed = run(patch, "search", path, "--run", tmp_path / "two")
    assert code == 0, printed
    with Run.read(tmp_path / "two") as former:
        history = RunHistory(former.events())
    new = Problem(load(write(tmp_path, {"kind": "genetic", "warm_start": "two"})))
    kept = new.resolved().strategy.warm_start.genotypes
    assert 0 < len(kept) < len(history.ranking())
    assert f"{len(kept)} candidates of {tmp_path / 'two'}; " in new.warm_start.message
    assert "left out, because this space cannot express them (" in new.warm_start.message


def test_a_smaller_box_says_how_far_its_points_are_off(folder, problem):
    """The former run's weights reach higher than the new space's."""
    path = write(folder, {"kind": "genetic", "population": 4, "warm_start": "former"}, space={"weight": [0.0, 0.05]})
    new = Problem(load(path))
    points = new.resolved().strategy.warm_start.points(new.space)
    found = read_rows(folder / "former")["found"]
    told = new.warm_start.message.partition("are moved to the nearest recipe that this space can express (")[2]
    assert re.match(r"\d+ of \d+ tensors differ, by up to \d\.\d+ in ", told)
    assert np.max(points) <= 0.05
    assert difference(found, new.space.decode(points[0]), new.layout) is not None
    inside = GeneticConfig(population=4, warm_start=WarmStartPopulation(run=str(folder / "former")))
    assert "moved" not in load_warm_start(inside, problem.config, problem.space, inside).message


def test_large_spaces_take_fewer(folder, problem, monkeypatch):
    """The new run's config stays small."""
    monkeypatch.setattr("evomerge.search.warm_start.NUMBERS", 2 * problem.space.dimension)
    named = GeneticConfig(warm_start=WarmStartPopulation(run=str(folder / "former")))
    start = load_warm_start(named, problem.config, problem.space, named)
    assert len(start.strategy.warm_start.genotypes) == 2
    largest = [[np.pi] * (NUMBERS // 4)] * 4
    assert len(yaml.safe_dump({"strategy": {"warm_start": {"genotypes": largest}}})) < 800_000


def events(path):
    """Return what happened, without times."""
    signatures = []
    with Run.read(path) as reader:
        for event in reader.events():
            if isinstance(event, Asked):
                signatures.append((event.candidate.id, event.candidate.genotype.tobytes(), event.recipe))
            elif isinstance(event, Told):
                signatures.append((event.candidate, event.cached, event.evaluation.scores.tobytes()))
            else:
                signatures.append((event.purpose, event.recipe, event.evaluation.scores.tobytes()))
    return signatures


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["m2n2", "genetic", "eda"])
def test_a_stopped_search_needs_the_former_run_no_more(kind, folder, tmp_path, monkeypatch):
    """Stopped in the middle of its first population; the former run is deleted; then resumed."""
    former = tmp_path / "former"
    shutil.copytree(folder / "former", former)
    strategy = {"kind": kind, ("archive" if kind == "m2n2" else "population"): 4}
    path = write(tmp_path, strategy, space=SPACES["mixture"])
    code, printed = run(monkeypatch, "search", path, "--warm-start", former, "--run", tmp_path / "whole")
    assert code == 0, printed
    assert f"warm start: 4 candidates of {former}" in printed

    record, recorded = Run.record, []

    def record_five(self, event):
        if len(recorded) == 5:
            raise KeyboardInterrupt
        recorded.append(event)
        record(self, event)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "record", record_five)
        assert run(patch, "search", path, "--warm-start", former, "--run", tmp_path / "stopped")[0] == 130
    shutil.rmtree(former)
    code, printed = run(monkeypatch, "resume", tmp_path / "stopped")
    assert code == 0, printed
    assert events(tmp_path / "stopped") == events(tmp_path / "whole")
