"""Warm starts: populations start with an earlier run's best candidates, distributions around them."""

import numpy as np
import pytest

from evomerge.strategies import (
    CatCmaConfig,
    CmaEsConfig,
    EdaConfig,
    Evaluated,
    GeneticConfig,
    M2n2Config,
    MapConfig,
    MapElitesConfig,
    NevergradConfig,
    Nsga2Config,
    RandomConfig,
    StagedConfig,
    WarmStartDistribution,
    WarmStartPopulation,
)
from evomerge.testing.planted import distances, evaluate, mixed, reals
from experiments.digits_niches.raw import RawWeights

POPULATIONS = {
    "m2n2": M2n2Config(archive=4),
    "genetic": GeneticConfig(population=4),
    "genome_plus": GeneticConfig(preset="genome_plus", population=4),
    "replace_worst": GeneticConfig(preset="replace_worst", population=4),
    "map_elites": MapElitesConfig(),
    "map": MapConfig(generations=4, population=12),
    "nsga2": Nsga2Config(population=4),
    "nevergrad:TwoPointsDE": NevergradConfig(optimizer="TwoPointsDE"),
    "nevergrad:OnePlusOne": NevergradConfig(optimizer="OnePlusOne"),
    "nevergrad:TBPSA": NevergradConfig(optimizer="TBPSA"),
    "random": RandomConfig(),
}
DISTRIBUTIONS = {
    "cma_es": CmaEsConfig(population=8),
    "eda": EdaConfig(population=8),
    "catcma": CatCmaConfig(population=8),
}
SPACES = {"reals": reals, "mixed": mixed}


def good_points(space, count=4):
    """Return points near the planted optimum."""
    rng = np.random.default_rng(0)
    points = []
    while len(points) < count:
        point = space.sample(rng)
        near = space.settled(space.low + (0.65 + 0.02 * len(points)) * (space.high - space.low))
        last = np.array([gene.discrete and hasattr(gene, "options") for gene in space.genes])
        point = np.where(last, space.high - 0.5, near)
        points.append(point)
    return points


def warmed(config, space, points):
    return config.model_copy(update={"warm_start": config.warm_start_type(run="a")}).warm_started(space, points)


def drive(config, space, count, seed=0):
    """Ask and tell one by one; return the candidates."""
    objectives = 2 if config.objectives == "several" else 1
    strategy = config.resolved(space, noise=0.0, evaluations=200).build(space, seed)
    asked = []
    for _ in range(count):
        (candidate,) = strategy.ask(1)
        asked.append(candidate.genotype)
        strategy.tell([Evaluated(candidate.id, evaluate(space, candidate.genotype, objectives))])
    return asked


@pytest.mark.parametrize("make", SPACES.values(), ids=SPACES)
@pytest.mark.parametrize("name", POPULATIONS)
def test_a_population_begins_with_them(name, make):
    if name == "map" and make is mixed:
        pytest.skip("it refuses choices")
    space = make(6)
    points = good_points(space)
    asked = drive(warmed(POPULATIONS[name], space, points), space, 40)
    for genotype, point in zip(asked, points, strict=False):
        np.testing.assert_allclose(space.settled(genotype), point, atol=1e-9)
    again = drive(warmed(POPULATIONS[name], space, points), space, 40)
    assert all(np.array_equal(a, b) for a, b in zip(asked, again, strict=True))


@pytest.mark.parametrize("make", SPACES.values(), ids=SPACES)
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_a_distribution_begins_around_them(name, make):
    """Its first eight candidates are nearer to the optimum than those of a cold start."""
    space = make(6)
    config, points = DISTRIBUTIONS[name], good_points(space)
    strategy = warmed(config, space, points).resolved(reals(6), noise=0.0, evaluations=200).build(space, 0)
    guess = space.settled(strategy.recommend())
    real = ~space.discrete
    np.testing.assert_allclose(guess[real], np.mean(points, axis=0)[real], atol=1e-9)
    assert distances(space, guess).max() < 0.2

    def off(config):
        return np.mean([distances(space, genotype).mean() for genotype in drive(config, space, 8)])

    assert off(warmed(config, space, points)) < off(config)


def test_the_spaces_own_founders_fill_what_room_is_left():
    space = reals(3)
    points = good_points(space, 2)
    for config in (M2n2Config(archive=4, warm_up=0), GeneticConfig(population=4), Nsga2Config(population=4)):
        asked = drive(warmed(config, space, points), space, 3)
        assert np.array_equal(asked[:2], points)
        assert np.array_equal(asked[2], space.start)


@pytest.mark.parametrize("name", ["m2n2", "genetic", "map_elites", "nsga2"])
def test_populations_begin_with_a_spaces_own_founders(name):
    """Such as a mixture's sources, each alone; their mean is not proposed before them."""
    experts = list(np.eye(5))
    asked = drive(POPULATIONS[name], RawWeights(5, founders=experts), 12)
    assert np.array_equal(asked[:5], experts)
    warm = warmed(POPULATIONS[name], RawWeights(5, founders=experts), [np.full(5, 0.5)])
    assert np.array_equal(drive(warm, RawWeights(5, founders=experts), 4), [np.full(5, 0.5), *experts[:3]])


def test_random_merges_leave_room_for_them():
    space = reals(3)
    config = warmed(M2n2Config(archive=6), space, good_points(space))
    assert config.resolved(reals(3), noise=0.0, evaluations=1000).warm_up == 2
    assert M2n2Config(archive=6).resolved(reals(3), noise=0.0, evaluations=1000).warm_up == 6


def test_no_value_of_a_choice_is_lost():
    space = mixed(2)  # a real and a choice of three
    config = warmed(EdaConfig(population=40), space, good_points(space))
    methods = {int(genotype[1]) for genotype in drive(config, space, 40)}
    assert methods == {0, 1, 2}


def test_points_of_another_space_are_refused():
    with pytest.raises(ValueError, match="the space has 3 genes and these points have not; remove"):
        M2n2Config(warm_up=0, warm_start=WarmStartPopulation().from_points(reals(4), [np.zeros(4)])).build(reals(3), 0)
    with pytest.raises(ValueError, match="the run 'runs/a' has not been read"):
        M2n2Config(warm_up=0, warm_start=WarmStartPopulation(run="runs/a")).build(reals(3), 0)


def test_a_stage_has_no_warm_start_of_its_own():
    with pytest.raises(ValueError, match=r"first.warm_start: both stages start from one run; write strategy"):
        StagedConfig(first=CmaEsConfig(warm_start=WarmStartDistribution(run="a")))


def test_settings_survive_the_config_file():
    config = M2n2Config(warm_start=WarmStartPopulation(run="runs/a").from_points(reals(2), [np.array([0.1, 1 / 3])]))
    assert M2n2Config.model_validate(config.model_dump(mode="json")) == config
    assert M2n2Config(warm_start="runs/a").warm_start == WarmStartPopulation(run="runs/a")
