"""Every strategy proposes recipes in every kind of space, and the same ones again in a replay; no model is needed.

`tests/test_every_strategy.py` runs them on the zoo, from a search file to the held-out table.
"""

import numpy as np
import pytest

from evomerge.strategies import (
    STRATEGIES,
    CatCmaConfig,
    CmaEsConfig,
    CmaMeConfig,
    CycleqdConfig,
    EdaConfig,
    Evaluated,
    EvoMergingConfig,
    GeneticConfig,
    GreedyConfig,
    GridConfig,
    M2n2Config,
    MapConfig,
    MapElitesConfig,
    NevergradConfig,
    Nsga2Config,
    Nsga3Config,
    OptunaConfig,
    PpoConfig,
    RandomConfig,
    StagedConfig,
)
from evomerge.testing.planted import evaluate
from search_spaces.recipes.layout import ModelLayout
from search_spaces.spaces.context import SpaceContext
from search_spaces.spaces.data_flow import DataFlowConfig
from search_spaces.spaces.depth.layer_actions import LayerActionsConfig
from search_spaces.spaces.depth.tailoring import TailoringConfig
from search_spaces.spaces.layer_coefficients import CoefficientConfig
from search_spaces.spaces.mixture import MixtureConfig
from search_spaces.spaces.registry import SPACES as REGISTERED
from search_spaces.spaces.registry import build_space
from search_spaces.spaces.two_stage import TwoStageConfig

LAYER = ("input_layernorm.w", "self_attn.o_proj.w", "post_attention_layernorm.w", "mlp.down_proj.w")
LAYOUT = ModelLayout(("embed",), (LAYER,) * 4, "layers.{}.", ("norm",), None, "self_attn", "mlp")
MODELS = {"base": "/m/base", "a": "/m/a", "b": "/m/b"}

CONFIGS = {
    "cma_es": CmaEsConfig(population=6),
    "eda": EdaConfig(population=6),
    "catcma": CatCmaConfig(population=6),
    "m2n2": M2n2Config(archive=4, mutation=0.5),
    "genetic": GeneticConfig(population=6),
    "genome": GeneticConfig(preset="genome", population=6),
    "genome_plus": GeneticConfig(preset="genome_plus", population=6),
    "replace_worst": GeneticConfig(preset="replace_worst", population=6, mutation=0.5),
    "map_elites": MapElitesConfig(mutation=0.5),
    "cma_me": CmaMeConfig(emitters=2, population=6),
    "cycleqd": CycleqdConfig(warm_up=8),
    "map": MapConfig(generations=4, population=12),
    "nsga2": Nsga2Config(population=6),
    "nsga3": Nsga3Config(population=6),
    "nevergrad:TwoPointsDE": NevergradConfig(optimizer="TwoPointsDE"),
    "ppo": PpoConfig(population=6, epochs=3),
    "optuna:QMC": OptunaConfig(sampler="QMC"),
    "random": RandomConfig(),
    "greedy": GreedyConfig(samples=8, stop=1.0),
    "grid": GridConfig(),
    "evo_merging": EvoMergingConfig(evaluations=20),
    "staged": StagedConfig(evaluations=20, first=CmaEsConfig(population=6), second=EdaConfig(population=6)),
}
SPACES = {
    "methods": CoefficientConfig(layers_per_group=4, method=["task_arithmetic", "ties", "slerp"]),
    "simplex with noise": MixtureConfig(
        chunks=3, crossover="linear", weights="simplex", noise={"terms": 2, "sigma": 0.01}
    ),
    "layer orders": DataFlowConfig(order="free", scales="transition"),
    "tailored": TailoringConfig(remove=(1, 2)),
    "actions": LayerActionsConfig(merges=("ties",)),
    "stacked": TwoStageConfig(parameters={"kind": "mixture", "chunks": 3, "crossover": "linear"}, flow={"repeats": 1}),
}
"""Choices with conditional reals; integers with an own crossover; switches with conditional reals; keys, switches and a
number; choices alone; all in one."""
EVALUATIONS = 40


def space_of(name):
    context = SpaceContext(MODELS, LAYOUT, dict.fromkeys(LAYOUT.tensors(), 10))
    return build_space(SPACES[name], context)


def drive(config, space):
    """Ask and tell one by one; return the candidates."""
    objectives = 2 if config.objectives == "several" else 1
    strategy = config.resolved(space, noise=0.05, evaluations=200).build(space, 3)
    asked = []
    while len(asked) < EVALUATIONS:
        (candidate,) = strategy.ask(1)
        asked.append(candidate)
        strategy.tell([Evaluated(candidate.id, evaluate(space, candidate.genotype, objectives))])
    return asked


def test_none_is_left_out():
    assert {config.kind for config in CONFIGS.values()} == set(STRATEGIES) - {
        "gradient",  # no derivatives are planted
        "auto",  # one of them
        "least_change",  # no answers are planted
    }
    assert {config.kind for config in SPACES.values()} == set(REGISTERED)


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("name", CONFIGS)
def test_every_proposal_is_a_recipe(name, space):
    config, methods, space = CONFIGS[name], space == "methods", space_of(space)
    if name == "grid" and space.dimension > 3:
        with pytest.raises(ValueError, match=r"has more points than budget.evaluations"):
            config.resolved(space, noise=0.05, evaluations=200)
        return
    if name == "map" and space.discrete.any():
        with pytest.raises(ValueError, match=r"strategy.kind map fits quadratic forms of real genes and .* nsga2"):
            config.resolved(space, noise=0.05, evaluations=200)
        return
    if name == "greedy" and space.discrete.all():
        with pytest.raises(ValueError, match=r"greedy takes means .* write space.kind: mixture, or strategy.kind: eda"):
            config.resolved(space, noise=0.05, evaluations=200)
        return
    if name == "evo_merging" and not methods:
        with pytest.raises(ValueError, match=r"evo_merging searches densities, then weights, .* breadcrumbs"):
            config.resolved(space, noise=0.05, evaluations=200)
        return
    if name == "staged" and not hasattr(space, "flow"):
        with pytest.raises(ValueError, match=r"staged is for space.kind two_stage"):
            config.build(space, 0)
        return
    if name == "ppo" and not all(space.discrete):
        with pytest.raises(ValueError, match="ppo chooses among options"):
            config.resolved(space, noise=0.05, evaluations=200)
        return
    asked = drive(config, space)
    for candidate in asked:
        assert np.all(candidate.genotype >= space.low) and np.all(candidate.genotype <= space.high)
        space.decode(candidate.genotype)
    assert len({candidate.genotype.tobytes() for candidate in asked}) > EVALUATIONS / 4
    for one, other in zip(asked, drive(config, space), strict=True):
        assert np.array_equal(one.genotype, other.genotype)
