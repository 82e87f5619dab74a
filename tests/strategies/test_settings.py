"""The values of `auto`, and errors about settings, which say what to write instead."""

import sys

import numpy as np
import pytest
from pydantic import TypeAdapter

from evomerge.extras import MissingExtraError
from evomerge.strategies import (
    AnyStrategy,
    CatCmaConfig,
    CmaEsConfig,
    EdaConfig,
    GridConfig,
    NevergradConfig,
    Nsga2Config,
    Nsga3Config,
    WarmStartDistribution,
)
from evomerge.strategies.restarts import Bipop, Ipop
from evomerge.testing.planted import PlantedSpace, mixed, reals
from search_spaces.spaces.genes import Choice, Integer

AUTO = (
    CmaEsConfig(),
    EdaConfig(),
    CatCmaConfig(),
    Nsga2Config(),
    Nsga3Config(),
    GridConfig(),
    NevergradConfig(optimizer="PSO"),
)


@pytest.mark.parametrize("config", AUTO, ids=lambda config: config.kind)
def test_auto_must_be_resolved_first(config):
    with pytest.raises(ValueError, match=r"call config\.resolved"):
        config.build(reals(3), 0)
    resolved = config.resolved(reals(3), noise=0.1, evaluations=300)
    resolved.build(reals(3), 0)
    assert resolved.resolved(reals(3), noise=0.5, evaluations=3000) == resolved


def test_a_grid_that_the_budget_does_not_hold_is_refused():
    with pytest.raises(
        ValueError, match=r"2 values for each of 24 genes has more points .* \(300\); write strategy.kind: random or"
    ):
        GridConfig().resolved(reals(24), noise=0.0, evaluations=300)
    with pytest.raises(ValueError, match=r"a grid of 5 values for each of 3 genes"):
        GridConfig(points=5).resolved(reals(3), noise=0.0, evaluations=100)
    assert GridConfig().resolved(reals(3), noise=0.0, evaluations=130).points == 5


def test_the_budget_must_hold_every_option_of_a_choice():
    ten = Choice("method", tuple("abcdefghij"), "a")
    x, two = reals(1).genes[0], Choice("switch", ("off", "on"), "off")
    for config in (GridConfig(), GridConfig(points=2)):
        with pytest.raises(
            ValueError, match=r"a grid of all options of each choice has more points than .*\(5\); write"
        ):
            config.resolved(PlantedSpace([ten]), noise=0.0, evaluations=5)
        with pytest.raises(
            ValueError, match=r"a grid of 2 values for each of 1 gene and all options of each choice has"
        ):
            config.resolved(PlantedSpace([x, ten]), noise=0.0, evaluations=19)
    assert GridConfig(points=5).resolved(PlantedSpace([x, two]), noise=0.0, evaluations=10).points == 5


@pytest.mark.parametrize(
    ("kinds", "budget", "size"),
    [("x", 9, 9), ("xt", 50, 50), ("xs", 9, 8), ("xys", 40, 32), ("ts", 99, 20), ("r", 5, 5)],
)
def test_as_many_values_as_the_budget_holds_of_the_grid_as_it_is(kinds, budget, size):
    x, y = reals(2).genes
    genes = {
        "x": x,
        "y": y,
        "t": Choice("method", tuple("abcdefghij"), "a"),
        "s": Choice("switch", ("off", "on"), "off"),
        "r": Integer("rank", 0, 2**31 - 2, 0),
    }
    space = PlantedSpace([genes[kind] for kind in kinds])
    strategy = GridConfig().resolved(space, noise=0.0, evaluations=budget).build(space, 0)
    asked = strategy.ask(budget + 1)
    assert strategy.finished
    assert len({candidate.genotype.tobytes() for candidate in asked}) == len(asked) == size


def test_a_grid_has_every_option_and_few_of_many_numbers():
    axes = GridConfig(points=2).build(mixed(3), 0)._axes
    assert [len(axis) for axis in axes] == [2, 3, 2]
    assert axes[0].tolist() == [-0.5, 1.5]
    assert axes[2].tolist() == [0.0, 6.0]


def test_an_adapted_rate_is_for_few_genes():
    adapted = CmaEsConfig(learning_rate="adapted")
    assert adapted.resolved(reals(64), noise=0.1, evaluations=100).population
    with pytest.raises(ValueError, match=r"up to 64 genes and the space has 65; write fixed"):
        adapted.resolved(reals(65), noise=0.1, evaluations=100)


def test_nevergrad_names():
    for section in ("nevergrad:TBPSA", {"kind": "nevergrad:TBPSA"}, {"kind": "nevergrad", "optimizer": "TBPSA"}):
        assert TypeAdapter(AnyStrategy).validate_python(section) == NevergradConfig(optimizer="TBPSA")
    with pytest.raises(ValueError, match=r"no optimiser 'TwoPointDE'; write nevergrad:TwoPointsDE"):
        NevergradConfig(optimizer="TwoPointDE").resolved(reals(4), noise=0.0, evaluations=10)


def test_an_optimiser_that_breaks_is_found_before_the_search(monkeypatch):
    import nevergrad

    def breaks(*_, **__):
        raise TypeError("only 0-dimensional arrays")

    monkeypatch.setattr(nevergrad.optimizers.base.Optimizer, "ask", breaks)
    with pytest.raises(ValueError, match=r"nevergrad:PSO fails .* \(TypeError: only 0-.*; write nevergrad:TwoPoints"):
        NevergradConfig(optimizer="PSO").resolved(reals(4), noise=0.0, evaluations=10)


@pytest.mark.parametrize(
    ("package", "config"),
    [
        ("cmaes", CatCmaConfig(population=6)),
        ("cmaes", CmaEsConfig(population=6, learning_rate="adapted")),
        ("nevergrad", NevergradConfig(budget=10)),
    ],
)
def test_a_missing_package_names_the_extra(monkeypatch, package, config):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"needs the package {package}; .*evomerge\[strategies\]"):
        config.build(reals(3), 0)
    with pytest.raises(MissingExtraError):  # before a run is made
        config.resolved(reals(3), noise=0.0, evaluations=60)


def test_ipop_doubles():
    schedule = Ipop(10, 0.2)
    assert [schedule.next(np.random.default_rng(0)) for _ in range(3)] == [(20, 0.2), (40, 0.2), (80, 0.2)]


def test_bipop_shares_the_evaluations_between_its_regimes():
    schedule, rng = Bipop(10, 0.2), np.random.default_rng(0)
    schedule.spent(500)  # the first descent: counts for neither
    used, populations = {"large": 0, "small": 0}, []
    for _ in range(60):
        regime = "large" if used["large"] <= used["small"] else "small"
        population, sigma = schedule.next(rng)
        if regime == "large":
            populations.append(population)
            assert sigma == 0.2
        else:
            assert 10 <= population <= max(10, populations[-1] // 2)
            assert 0.002 <= sigma <= 0.2
        schedule.spent(population)
        used[regime] += population
    assert populations == [10 * 2**k for k in range(1, len(populations) + 1)]
    assert used["small"] >= used["large"] - populations[-1]


def test_a_warm_start_is_the_best_tenth():
    space = reals(3)
    best_first = [space.low + index / 40 * (space.high - space.low) for index in reversed(range(40))]
    named = WarmStartDistribution(run="runs/a")
    loaded = named.from_points(space, best_first[: named.wanted(40, places=9)])
    assert loaded.is_loaded and not named.is_loaded
    assert loaded.mean == pytest.approx((37.5 / 40,) * 3)
    assert loaded.deviations == pytest.approx((np.sqrt(0.01 + np.var([36, 37, 38, 39]) / 1600),) * 3)
    assert WarmStartDistribution.model_validate("runs/a") == named
    with pytest.raises(ValueError, match=r"the run 'runs/a' has not been read; .*call warm_start.from_points"):
        CmaEsConfig(population=6, warm_start=named).build(space, 0)
