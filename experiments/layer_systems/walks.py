"""Planted walks through layers, for comparing strategies without a model: how near a path comes to a planted one."""

from __future__ import annotations

from typing import Any

import numpy as np

from evomerge.strategies import EdaConfig, Evaluated, GeneticConfig, PpoConfig, RandomConfig, StrategyConfig
from fitness.results import Evaluation
from search_spaces.recipes.layout import ModelLayout
from search_spaces.spaces.context import SpaceContext
from search_spaces.spaces.depth.layer_actions import LayerActionsConfig, LayerActionsSpace

DEPTH, MODELS = 8, 4
EVALUATIONS = 400
NOISE = 0.05
"""Standard deviation of an observed closeness."""
CONTENDERS: dict[str, StrategyConfig] = {
    "PPO": PpoConfig(),
    "random paths": RandomConfig(),
    "EDA": EdaConfig(),
    "genetic": GeneticConfig(),
}

Walk = list[tuple[int, str]]


def space() -> LayerActionsSpace:
    """Return the actions over eight layers of four models."""
    layer = ("input_layernorm.w", "self_attn.o_proj.w", "mlp.down_proj.w")
    layout = ModelLayout(("embed",), (layer,) * DEPTH, "layers.{}.", ("norm",), None, "self_attn", "mlp")
    return LayerActionsConfig().build(SpaceContext({f"m{at}": f"/m{at}" for at in range(MODELS)}, layout, {}))


def planted(seed: int) -> Walk:
    """Return a walk that leaves out one layer and repeats one, each layer of a random model."""
    rng = np.random.default_rng(seed)
    layers = rng.choice(DEPTH, DEPTH - 1, replace=False).tolist()
    layers.append(layers[int(rng.integers(DEPTH - 1))])
    return [(layer, f"m{rng.integers(MODELS)}") for layer in sorted(layers)]


def closeness(taken: Walk, wanted: Walk) -> float:
    """Return 1 minus the edit distance of two walks, as a share of the wanted one's length."""
    distance = list(range(len(wanted) + 1))
    for step in taken:
        row = [distance[0] + 1]
        for at, other in enumerate(wanted):
            row.append(min(row[-1] + 1, distance[at + 1] + 1, distance[at] + (step != other)))
        distance = row
    return 1 - distance[-1] / len(wanted)


def walked(name: str, config: StrategyConfig, seed: int, evaluations: int) -> dict[str, Any]:
    """Search for a planted walk; return the true closeness of the candidate that was seen as the best."""
    where, wanted, rng = space(), planted(seed), np.random.default_rng([seed, 1])
    strategy = config.resolved(where, noise=NOISE, evaluations=evaluations).build(where, seed)
    seen: list[tuple[float, float]] = []
    for _ in range(evaluations):
        (candidate,) = strategy.ask(1)
        true = closeness(where.path(candidate.genotype), wanted)
        observed = true + NOISE * rng.normal()
        seen.append((observed, true))
        result = Evaluation("ok", (observed,), (NOISE,), ("planted/test/0",), np.array([observed], np.float32))
        strategy.tell([Evaluated(candidate.id, result)])
    return {"part": "planted walks", "name": name, "seed": seed, "score": max(seen)[1], "layers": len(wanted)}
