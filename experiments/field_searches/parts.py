"""What is compared: problems of the zoo, and the strategies that search each of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Section = Mapping[str, Any]
"""A section of a search file."""

GEN = "zoo_target_gen"
SKILLS = ("zoo_ops_en", "zoo_read_ja", "zoo_read_eo")
"""What the three experts were taught, one each."""

WEIGHT = {"low": -0.5, "high": 2.0, "start": 0.7}
SIGNED = {"kind": "layer_coefficients", "method": "task_arithmetic", "weight": WEIGHT}
NINE = SIGNED | {"layers_per_group": 6}
SHARES = {"kind": "mixture", "chunks": 1, "weights": "simplex"}
SAKANA = {
    "kind": "layer_coefficients",
    "method": "dare_ties",
    "groups": "model",
    "weight": {"low": 0.0, "high": 2.0, "start": 0.5},
    "density": {"low": 0.01, "high": 1.0, "start": 0.5},
    "fixed": {"normalize": False},
}
"""As in `experiments/sakana_ja_math/parameters.yaml`."""
SPARSE = {
    "kind": "layer_coefficients",
    "method": "breadcrumbs",
    "groups": "model",
    "density": {"low": 0.01, "high": 1.0, "start": 1.0},
    "weight": {"low": -1.5, "high": 1.5, "start": 0.3333},
    "fixed": {"gamma": 0.0},
}
"""As in `experiments/published/evo_merging.yaml`, with three experts."""

GREEDY = {"kind": "greedy", "merge": "pairs"}
CMA_ES, GENETIC = {"kind": "cma_es"}, {"kind": "genetic"}
STAGED: dict[str, Any] = {
    "kind": "evo_merging",
    "evaluations": 60,
    "first": {"kind": "cma_es", "population": 20, "sigma": 0.05, "restarts": False},
    "second": {"kind": "cma_es", "population": 20, "sigma": 0.0167, "restarts": False},
}


@dataclass(frozen=True)
class Part:
    """One comparison: a problem, and the strategies that search it.

    Attributes
    ----------
    space
        The search file's section.
    evaluations, items
        Candidates besides the founders, and search items that each is asked.
    strategies
        Name to the search file's section; the first is what the others are compared with.
    tasks
        What is asked; the score is the mean of their scores.
    checkpoints
        Whether the models are 16 checkpoints of two training runs; else the zoo's experts.
    """

    space: Section
    evaluations: int
    items: int
    strategies: Mapping[str, Section]
    tasks: tuple[str, ...] = (GEN,)
    checkpoints: bool = False


PARTS: Mapping[str, Part] = {
    "three genes": Part(SIGNED | {"groups": "model"}, 40, 40, {"CMA-ES": CMA_ES, "TPE": {"kind": "optuna:TPE"}}),
    "swarms, nine genes": Part(
        NINE,
        160,
        40,
        {
            "genetic": GENETIC,
            "Model Swarms": GENETIC | {"preset": "model_swarms"},
            "GENOME+": GENETIC | {"preset": "genome_plus"},
            "CMA-ES": CMA_ES,
        },
    ),
    "signed weights and densities": Part(
        SPARSE,
        180,
        40,
        {
            "CMA-ES": CMA_ES,
            "Evo-Merging": STAGED,
            "Evo-Merging without L1": STAGED | {"l1": 0.0},
            "Evo-Merging, our steps": {"kind": "evo_merging", "evaluations": 60, "first": CMA_ES, "second": CMA_ES},
        },
    ),
    "three skills": Part(
        NINE,
        120,
        45,
        {
            "CMA-ES": CMA_ES,
            "CycleQD": {"kind": "cycleqd"},
            "MAP-Elites": {"kind": "map_elites"},
            "CMA-ME": {"kind": "cma_me"},
        },
        SKILLS,
    ),
    "TIES with DARE": Part(
        SAKANA,
        120,
        40,
        {
            "CMA-ES": CMA_ES,
            "Sakana's CMA-ES": CMA_ES | {"sigma": 0.1667, "population": 9, "restarts": False},
            "random": {"kind": "random"},
        },
    ),
    "nine genes": Part(NINE, 120, 40, {"CMA-ES": CMA_ES, "TPE": {"kind": "optuna:TPE"}, "GP": {"kind": "optuna:GP"}}),
    "pairs of 16 checkpoints": Part(
        SHARES,
        200,
        40,
        {
            "kinship": GREEDY,
            "random partners": GREEDY | {"explore": "random"},
            "no exploration": GREEDY | {"explore": "none"},
            "greedy soup": {"kind": "greedy", "merge": "soup"},
        },
        ("zoo_ops_en", "zoo_read_ja"),
        checkpoints=True,
    ),
}
