"""Founders are proposed first, and every strategy begins with them."""

from __future__ import annotations

import numpy as np
import pytest

from evomerge.strategies import (
    CmaEsConfig,
    EdaConfig,
    GeneticConfig,
    GridConfig,
    M2n2Config,
    MapConfig,
    MapElitesConfig,
    Nsga2Config,
    RandomConfig,
    StrategyConfig,
)
from evomerge.strategies.base import Candidate, Evaluated
from evomerge.strategies.founded import Founded
from evomerge.strategies.gradient import GradientConfig
from evomerge.testing.planted import ITEMS, reals
from fitness.results import Evaluation

CONFIGS: dict[str, StrategyConfig] = {
    "cma_es": CmaEsConfig(population=6),
    "eda": EdaConfig(population=6),
    "genetic": GeneticConfig(population=6),
    "genome_plus": GeneticConfig(preset="genome_plus"),
    "grid": GridConfig(points=2),
    "m2n2": M2n2Config(archive=6, warm_up=2),
    "map": MapConfig(generations=4, population=12),
    "map_elites": MapElitesConfig(population=6, warm_up=2),
    "nsga2": Nsga2Config(population=6),
    "random": RandomConfig(),
}
GENES = 3
SPACE = reals(GENES)
FOUNDERS = [np.full(GENES, x) for x in (0.1, 0.9)] + [SPACE.start.copy()]


def told(candidate: Candidate, best: float = 0.9, error: float = 0.01) -> Evaluated:
    """Return a score that is the higher the nearer the genes are to `best`."""
    fitness = 1.0 - float(np.abs(candidate.genotype - best).mean())
    scores = np.full(len(ITEMS), fitness, np.float32)
    return Evaluated(candidate.id, Evaluation("ok", (fitness,), (error,), ITEMS, scores))


def build(config: StrategyConfig) -> Founded:
    return Founded(SPACE, 0, config.resolved(SPACE, noise=0.1, evaluations=60), FOUNDERS)


def proposals(strategy: Founded, count: int, **scores: float) -> list[Candidate]:
    """Ask one candidate at a time and tell each at once."""
    asked: list[Candidate] = []
    while len(asked) < count and not strategy.finished:
        asked += strategy.ask(1)
        strategy.tell([told(asked[-1], **scores)])
    return asked


@pytest.mark.parametrize("name", CONFIGS)
def test_they_come_first_and_are_never_proposed_again(name: str) -> None:
    asked = proposals(build(CONFIGS[name]), 14)
    assert [one.kind for one in asked[:3]] == ["founder"] * 3
    np.testing.assert_array_equal([one.genotype for one in asked[:3]], FOUNDERS)
    assert [one.id for one in asked] == list(range(len(asked)))
    assert all(one.generation == 0 for one in asked[:3]) and all(one.generation > 0 for one in asked[3:])
    assert all(one.kind != "founder" for one in asked[3:])
    for one in asked[3 : 3 + len(FOUNDERS)]:
        assert all(np.abs(one.genotype - founder).max() > 1e-9 for founder in FOUNDERS)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_order_of_results_of_the_founders_does_not_matter(name: str) -> None:
    one, other = build(CONFIGS[name]), build(CONFIGS[name])
    for strategy, order in ((one, [0, 1, 2]), (other, [2, 0, 1])):
        asked = strategy.ask(3)
        assert strategy.ask(1) == []  # they are in flight
        strategy.tell([told(asked[at]) for at in order])
    for first, second in zip(proposals(one, 10), proposals(other, 10), strict=True):
        np.testing.assert_array_equal(first.genotype, second.genotype)


@pytest.mark.parametrize("name", ["cma_es", "eda"])
def test_a_distribution_begins_at_the_best_if_that_is_beyond_doubt(name: str) -> None:
    for error, center in ((0.01, 0.9), (0.5, SPACE.start[0])):
        strategy = build(CONFIGS[name])
        proposals(strategy, 4, error=error)
        guess = strategy.recommend()
        assert guess is not None
        np.testing.assert_allclose(guess, center, atol=1e-6)


@pytest.mark.parametrize("name", ["genetic", "m2n2", "map_elites", "nsga2"])
def test_a_population_contains_them(name: str) -> None:
    strategy = build(CONFIGS[name])
    asked = proposals(strategy, 40)
    assert max(told(one).evaluation.fitness for one in asked) == pytest.approx(1.0)
    guess = strategy.recommend()  # NSGA-II has none
    assert guess is None or told(Candidate(0, guess, "sample", 0)).evaluation.fitness == pytest.approx(1.0)


def test_steps_start_at_the_best() -> None:
    strategy = build(GradientConfig(steps=3))
    asked = [strategy.ask(1)[0] for _ in range(3)]
    strategy.tell([told(one) for one in asked])
    (step,) = strategy.ask(1)
    assert step.kind == "gradient"
    np.testing.assert_allclose(step.genotype, 0.9)


def test_a_failed_founder_is_no_start_and_all_may_fail() -> None:
    strategy = build(CmaEsConfig(population=4))
    asked = strategy.ask(3)
    strategy.tell([Evaluated(one.id, Evaluation.failed("no")) for one in asked])
    assert strategy.ask(1)[0].kind == "sample"
    np.testing.assert_allclose(strategy.recommend(), SPACE.start, atol=1e-9)


def test_the_start_must_be_among_them() -> None:
    with pytest.raises(ValueError, match="the space's start is not among them; add it"):
        Founded(SPACE, 0, CmaEsConfig(population=4), FOUNDERS[:2])
