"""Planted paths through layers: strategies find an order and its scales in the space of layer orders; chance does not.

No model is built. What a path is worth follows from how near its order and its scales are to planted ones, so that
the optimum is known, and unique. Of eight seeds each, all find it in these budgets, but for one of `eda` in free order.
"""

from collections import Counter
from itertools import combinations, pairwise

import numpy as np
import pytest

from evomerge.strategies import (
    CatCmaConfig,
    EdaConfig,
    Evaluated,
    GeneticConfig,
    M2n2Config,
    RandomConfig,
)
from fitness.results import Evaluation
from search_spaces.recipes.layout import ModelLayout
from search_spaces.spaces.context import SpaceContext
from search_spaces.spaces.data_flow import DataFlowConfig

LAYER = ("input_layernorm.w", "self_attn.o_proj.w", "post_attention_layernorm.w", "mlp.down_proj.w")
MODELS = {"base": "base", "a": "a"}
NEAR = 0.1
"""How far a found factor of the residual stream may be from the planted one."""

SLOTS = [("base", 1, 1.0), ("base", 3, 1.25), ("a", 2, 0.8), ("a", 4, 1.2), ("base", 5, 0.9)]
"""Layers as they are laid out, each with the factor on the way into it; two of base's are left out for two of a's."""
ORDER = [*(("base", layer, 1.0) for layer in (4, 2)), ("a", 3, 1.0), *(("base", layer, 1.0) for layer in (6, 1, 5, 7))]
"""Another order, with a layer of the other model in one's place: 16,384 choices of layers, and 720 orders of six."""


def space_of(depth, **config):
    layout = ModelLayout(("embed",), (LAYER,) * depth, "layers.{}.", ("norm",), None, "self_attn", "mlp")
    return DataFlowConfig(repeats=1, **config).build(SpaceContext(MODELS, layout, {}))


PROBLEMS = {
    "slots": (space_of(6), SLOTS),
    "order": (space_of(8, order="free", scales="none"), ORDER),
}


def steps(path):
    """Return model, layer and factor of each stop after the first."""
    return [(one.model, one.layer, before.scale / one.scale) for before, one in pairwise(path)]


def order_closeness(path, wanted):
    """Return the Jaccard index of the pairs of layers of which one comes before the other: 1 for the same order."""
    a, b = (Counter(combinations([("base", 0), *(step[:2] for step in each)], 2)) for each in (path, wanted))
    return sum((a & b).values()) / sum((a | b).values())


def factor_errors(path, wanted):
    """Return how far each wanted layer's factor is from the planted one; half the range where the layer is missing."""
    factors = {step[:2]: step[2] for step in path}
    return [abs(factors.get(step[:2], step[2] + 0.5) - step[2]) for step in wanted]


def found_after(config, problem, budget, seed):
    """Search; return how many evaluations it took to the planted path, None where the budget did not suffice."""
    space, wanted = PROBLEMS[problem]
    strategy = config.resolved(space, noise=0.0, evaluations=budget).build(space, seed)
    for count in range(1, budget + 1):
        (candidate,) = strategy.ask(1)
        path = steps(space.path(candidate.genotype))
        order, errors = order_closeness(path, wanted), factor_errors(path, wanted)
        if order == 1.0 and max(errors) < NEAR:
            return count
        value = 1.0 + order - float(np.mean(errors))
        scores = np.array([value], dtype=np.float32)
        strategy.tell([Evaluated(candidate.id, Evaluation("ok", (value,), (0.0,), ("planted/test/0",), scores))])
    return None


BUDGETS = {
    ("slots", "eda"): (EdaConfig(), 700),
    ("slots", "catcma"): (CatCmaConfig(), 700),
    ("slots", "genetic"): (GeneticConfig(), 1500),
    ("slots", "m2n2"): (M2n2Config(mutation=1.0), 2000),
    ("order", "eda"): (EdaConfig(), 1000),
    ("order", "catcma"): (CatCmaConfig(), 1000),
}


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("problem", "name"), BUDGETS)
def test_the_planted_path_is_found(problem, name, seed):
    config, budget = BUDGETS[problem, name]
    assert found_after(config, problem, budget, seed) is not None


@pytest.mark.parametrize("problem", PROBLEMS)
def test_chance_does_not_find_it(problem):
    most = max(budget for (planted, _), (_, budget) in BUDGETS.items() if planted == problem)
    assert found_after(RandomConfig(), problem, most, seed=0) is None
