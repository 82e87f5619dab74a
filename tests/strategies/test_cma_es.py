import math

import numpy as np
import pytest
from pydantic import ValidationError

from evomerge.strategies import CmaEsConfig, Evaluated, RandomConfig
from evomerge.testing.planted import reals
from fitness.results import Evaluation
from search_spaces.spaces.genes import Real


def run(strategy, fitness_of, count):
    best = -math.inf
    for _ in range(count):
        (candidate,) = strategy.ask(1)
        value = fitness_of(candidate.genotype)
        best = max(best, value)
        strategy.tell([Evaluated(candidate.id, Evaluation("ok", (value,), (0.0,)))])
    return best


def test_it_finds_the_optimum_of_a_quadratic(make_space, fitness_of):
    strategy = CmaEsConfig(population=10).build(make_space(6), 0)
    run(strategy, fitness_of, 900)
    assert fitness_of(strategy.recommend()) > -1e-6


def test_it_beats_random_search_at_equal_budget(make_space, fitness_of):
    budget = 300
    for seed in range(5):
        found = run(CmaEsConfig(population=10).build(make_space(8), seed), fitness_of, budget)
        baseline = run(RandomConfig().build(make_space(8), seed), fitness_of, budget)
        assert found > baseline


def test_an_optimum_on_the_boundary_is_reached(make_space):
    strategy = CmaEsConfig(population=10).build(make_space(4), 0)
    space = strategy.space
    run(strategy, lambda genotype: float(np.sum(genotype)), 800)
    assert np.allclose(strategy.recommend(), space.high, atol=1e-2)


def test_with_noise_the_mean_is_nearer_to_the_optimum_than_the_best_sample(make_space, fitness_of):
    nearer = 0
    for seed in range(8):
        rng = np.random.default_rng(seed)
        strategy = CmaEsConfig(population=24).build(make_space(8), seed)
        best = (-math.inf, None)
        for _ in range(600):
            (candidate,) = strategy.ask(1)
            noisy = fitness_of(candidate.genotype) + rng.normal(0, 0.3)
            if candidate.kind == "sample":
                best = max(best, (noisy, candidate.id, candidate.genotype), key=lambda entry: entry[0])
            strategy.tell([Evaluated(candidate.id, Evaluation("ok", (noisy,), (0.3,)))])
        nearer += fitness_of(strategy.recommend()) > fitness_of(best[2])
    assert nearer >= 7


def test_the_mean_is_offered_every_few_generations_and_first_of_all_the_start(make_space, fitness_of):
    space = make_space(4)
    strategy = CmaEsConfig(population=5, score_mean_every=3).build(space, 0)
    candidates = []
    for _ in range(5 * 7 + 3):
        (candidate,) = strategy.ask(1)
        candidates.append(candidate)
        strategy.tell([Evaluated(candidate.id, Evaluation("ok", (fitness_of(candidate.genotype),), (0.0,)))])
    means = [candidate for candidate in candidates if candidate.kind == "mean"]
    assert [mean.generation for mean in means] == [0, 3, 6]
    assert np.allclose(means[0].genotype, space.start)


def test_one_gene(make_space):
    space = make_space(3)
    space.genes = (Real("only", -1.0, 2.0, 0.0),)
    for name in ("low", "high", "start"):
        space.__dict__.pop(name, None)
    strategy = CmaEsConfig(population=6).build(space, 0)
    run(strategy, lambda genotype: -((genotype[0] - 1.3) ** 2), 300)
    assert strategy.recommend() == pytest.approx([1.3], abs=1e-3)


def test_a_stall_restarts_with_twice_the_population(make_space):
    strategy = CmaEsConfig(population=4).build(make_space(3), 0)
    run(strategy, lambda genotype: 0.5, 600)
    doublings = np.log2(strategy.population / 4)
    assert doublings >= 1 and doublings.is_integer()


def test_after_a_restart_the_better_mean_is_recommended(make_space, fitness_of):
    strategy = CmaEsConfig(population=4, score_mean_every=1).build(make_space(3), 0)
    while strategy.population == 4:
        run(strategy, fitness_of, 1)
    assert fitness_of(strategy.recommend()) > -1e-4


def test_without_restarts_the_descent_goes_on(make_space):
    strategy = CmaEsConfig(population=4, restarts=False).build(make_space(3), 0)
    run(strategy, lambda genotype: 0.5, 300)
    assert strategy.population == 4


@pytest.mark.parametrize(
    ("noise", "evaluations", "expected"),
    [
        (0.0, 10_000, 4 + 8),  # pycma's own: 4 + floor(3 ln 16)
        (0.05, 10_000, 48),  # four times as many
        (0.05, 300, 25),  # but at least 12 generations
        (0.05, 50, 12),  # and never fewer than pycma's own
    ],
)
def test_population_auto(noise, evaluations, expected):
    config = CmaEsConfig().resolved(reals(16), noise=noise, evaluations=evaluations)
    assert config.population == expected
    assert config.resolved(reals(99), noise=9.0, evaluations=1) == config


def test_a_given_population_stays():
    assert CmaEsConfig(population=7).resolved(reals(16), noise=1.0, evaluations=9).population == 7


def test_auto_must_be_resolved_first(make_space):
    with pytest.raises(ValueError, match=r"call config\.resolved"):
        CmaEsConfig().build(make_space(3), 0)


@pytest.mark.parametrize(
    "bad", [{"population": 3}, {"sigma": 0}, {"sigma": 1.5}, {"score_mean_every": 0}, {"popsize": 9}]
)
def test_bad_settings_are_refused(bad):
    with pytest.raises(ValidationError):
        CmaEsConfig(**bad)


def test_above_two_hundred_genes_the_covariance_is_diagonal(make_space):
    few, many = (CmaEsConfig(population=8).build(make_space(genes), 0) for genes in (200, 201))
    assert not few._descent._es.opts["CMA_diagonal"]
    assert many._descent._es.opts["CMA_diagonal"]


def test_restarts_are_charged_for_every_sample_of_a_generation(make_space, fitness_of):
    """BIPOP compares what its regimes have cost in evaluations, not in generations."""
    strategy = CmaEsConfig(population=6, restarts="bipop", score_mean_every=100).build(make_space(4), 0)
    charged = []
    strategy._restarts.spent = charged.append
    run(strategy, fitness_of, 1 + 3 * 6)  # and the first mean
    assert sum(charged) == 3 * 6
