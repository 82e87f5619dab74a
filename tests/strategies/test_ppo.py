"""PPO: its derivatives, what it learns, and what it refuses."""

import numpy as np
import pytest

from evomerge.strategies import EdaConfig, Evaluated, PpoConfig, RandomConfig
from evomerge.strategies.ppo import Network, softmax
from evomerge.testing.planted import PlantedSpace, mixed, reals, switched
from fitness.results import Evaluation
from search_spaces.recipes.layout import ModelLayout
from search_spaces.spaces.context import SpaceContext
from search_spaces.spaces.depth.layer_actions import LayerActionsConfig

LAYER = ("input_layernorm.w", "self_attn.o_proj.w", "mlp.down_proj.w")
LAYOUT = ModelLayout(("embed",), (LAYER,) * 6, "layers.{}.", ("norm",), None, "self_attn", "mlp")
SPACE = LayerActionsConfig().build(SpaceContext({name: f"/m/{name}" for name in ("base", "a", "b")}, LAYOUT, {}))
WANTED = [(0, "base"), (1, "b"), (2, "a"), (2, "a"), (3, "b"), (5, "base")]


def closeness(genotype):
    """Return 1 minus the edit distance of the path from the planted one, as a share of its length."""
    taken = SPACE.path(genotype)
    distance = np.arange(len(WANTED) + 1)
    for step in taken:
        row = [distance[0] + 1]
        for at, wanted in enumerate(WANTED):
            row.append(min(row[-1] + 1, distance[at + 1] + 1, distance[at] + (step != wanted)))
        distance = np.array(row)
    return 1 - distance[-1] / len(WANTED)


def best_of(config, seed, budget=240):
    strategy = config.resolved(SPACE, noise=0.0, evaluations=budget).build(SPACE, seed)
    best = 0.0
    for _ in range(budget):
        (candidate,) = strategy.ask(1)
        value = closeness(candidate.genotype)
        best = max(best, value)
        scores = np.array([value], dtype=np.float32)
        strategy.tell([Evaluated(candidate.id, Evaluation("ok", (value,), (0.0,), ("planted/test/0",), scores))])
    return best


def test_it_finds_paths_that_random_ones_do_not_reach():
    learnt = [best_of(PpoConfig(), seed) for seed in range(3)]
    chance = [best_of(RandomConfig(), seed) for seed in range(3)]
    assert np.mean(learnt) > np.mean(chance) + 0.1


def test_the_networks_derivatives_are_those_of_differences():
    rng = np.random.default_rng(0)
    network = Network((3, 5, 2), 1e-3, rng)
    network._weights[1][:] = rng.normal(size=(5, 2))
    inputs, target = rng.normal(size=(4, 3)), rng.normal(size=(4, 2))

    def loss():
        return 0.5 * float(((network.outputs(inputs) - target) ** 2).sum())

    before = [weight.copy() for weight in network._weights]
    for at, weight in enumerate(before):
        place = (0,) * weight.ndim
        values = []
        for shift in (1e-6, -1e-6):
            network._weights[at][place] = weight[place] + shift
            values.append(loss())
        network._weights[at][place] = weight[place]
        network.step(network.outputs(inputs) - target)
        assert 10 * network._first[at][place] == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-5)
        network._first = [np.zeros_like(moment) for moment in network._first]
        network._weights = [weight.copy() for weight in before]


def test_an_update_makes_good_choices_likelier_and_bad_ones_rarer():
    strategy = PpoConfig(population=4, epochs=5).build(SPACE, 0)
    seen = SPACE.observation(np.full(SPACE.dimension, np.nan))[None]
    before = softmax(strategy._policy.outputs(seen) + strategy._prior[:1])[0]
    samples = np.array([strategy._samples()[0] for _ in range(4)])
    samples[:2, 0], samples[2:, 0] = 1.5, 2.5  # a, b
    strategy._update(samples, np.array([1.0, 1.0, 0.0, 0.0]))
    after = softmax(strategy._policy.outputs(seen) + strategy._prior[:1])[0]
    assert after[1] > before[1]
    assert after[2] < before[2]
    assert after[1] / before[1] < 1 + 3 * strategy.config.clip


def test_the_start_is_likelier_at_first_and_impossible_values_are_never_drawn():
    strategy = PpoConfig(population=50, start_probability=0.8).build(SPACE, 0)
    first = [candidate.genotype[0] for candidate in strategy.ask(50)]
    assert 0.7 < np.mean(np.array(first) == SPACE.start[0]) < 1
    uneven = PlantedSpace([*mixed(9).genes[1::3], *mixed(9).genes[2::3]])  # of three and of seven values
    for candidate in PpoConfig(population=20).build(uneven, 0).ask(20):
        uneven.decode(candidate.genotype)


@pytest.mark.parametrize("space", [reals(2), mixed(3), switched(2)])
def test_it_refuses_numbers(space):
    with pytest.raises(ValueError, match=r"ppo chooses among options, and \w+ is a number; write space.kind layer_act"):
        PpoConfig().resolved(space, noise=0.1, evaluations=100)


def test_the_population_follows_from_genes_and_budget():
    assert PpoConfig().resolved(SPACE, noise=0.1, evaluations=10_000).population == 22
    assert PpoConfig().resolved(SPACE, noise=0.1, evaluations=200).population == 10
    assert EdaConfig().resolved(SPACE, noise=0.1, evaluations=200).population == 10
