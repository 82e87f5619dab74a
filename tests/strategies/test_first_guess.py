"""The merge method that distributions start with, and how often random samples have each method."""

from collections import Counter

import numpy as np
import pytest

from evomerge.strategies import CatCmaConfig, EdaConfig
from search_spaces.recipes.layout import ModelLayout
from search_spaces.spaces.context import SpaceContext
from search_spaces.spaces.layer_coefficients import CoefficientConfig
from search_spaces.spaces.registry import build_space

LAYOUT = ModelLayout(("embed",), (("self_attn.w", "mlp.w"),) * 4, "layers.{}.", ("norm",), None, "self_attn", "mlp")
MODELS = {"base": "/m/base", "a": "/m/a", "b": "/m/b", "c": "/m/c"}
METHODS = ("ties", "dare_ties", "slerp")  # slerp in three variants, one for each pair of experts
STRATEGIES = [EdaConfig(population=400), CatCmaConfig(population=400)]


def begun(method_scope="merge", start="dare_ties", **config):
    """Return a space whose start has a method, and its number of method genes."""
    config = CoefficientConfig(method=METHODS, method_scope=method_scope, layers_per_group=2, **config)
    space = build_space(config, SpaceContext(MODELS, LAYOUT, {}, seed=5))
    choices = [index for index, gene in enumerate(space.genes) if gene.discrete]
    point = np.array(space.start)
    point[choices] = space.genes[0].coordinate(start)
    return space.starting_at(point), len(choices)


def shares(space, points):
    """Return the share of points whose first gene has each method, with any models."""
    counts = Counter(space.genes[0].value(point[0]).partition("(")[0] for point in points)
    return {method: counts[method] / len(points) for method in METHODS}


@pytest.mark.parametrize("method_scope", ["merge", "layers"])
@pytest.mark.parametrize("start", ["dare_ties", "slerp(a, c)"])
@pytest.mark.parametrize("config", STRATEGIES, ids=lambda config: config.kind)
def test_the_first_guess_has_the_starts_method(config, start, method_scope):
    space, groups = begun(method_scope, start)
    assert groups == {"merge": 1, "layers": 4}[method_scope]
    strategy = config.build(space, 0)
    guess = strategy.recommend()
    assert [space.genes[index].value(guess[index]) for index in range(groups)] == [start] * groups
    samples = [candidate.genotype for candidate in strategy.ask(400)]
    found = shares(space, samples)
    wanted = {method: 0.5 * (method == start.partition("(")[0]) + 0.5 / 3 for method in METHODS}
    assert found == pytest.approx(wanted, abs=0.08)


@pytest.mark.parametrize("config", STRATEGIES, ids=lambda config: config.kind)
def test_a_prior_from_the_config_replaces_the_start_probability(config):
    prior = {"ties": 0.7, "dare_ties": 0.1, "slerp": 0.2}
    space, _ = begun(method_prior=prior)
    strategy = config.build(space, 0)
    assert space.genes[0].value(strategy.recommend()[0]) == "ties"
    assert shares(space, [candidate.genotype for candidate in strategy.ask(400)]) == pytest.approx(prior, abs=0.08)


def test_samples_have_every_method_equally_often():
    space, _ = begun()
    rng = np.random.default_rng(0)
    found = shares(space, [space.sample(rng) for _ in range(1000)])
    assert found == pytest.approx(dict.fromkeys(METHODS, 1 / 3), abs=0.05)
