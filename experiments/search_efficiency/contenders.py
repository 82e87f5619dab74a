"""Who competes: the default, the strategies at their defaults, and the field's programs."""

from __future__ import annotations

from experiments.search_efficiency.field import FIELD, Program
from experiments.search_efficiency.ours import Default, Ours
from experiments.search_efficiency.problems import Problem

__all__ = ["CONTENDERS", "DEFAULT", "DERIVATIVES", "FIELD", "STRATEGIES", "Contender", "enters"]

Contender = Ours | Program

DEFAULT = Default()

STRATEGIES = (
    Ours("gradient", {"kind": "gradient"}),
    Ours("CMA-ES, σ 0.1, 25 fresh items", {"kind": "cma_es", "sigma": 0.1}, items=25, fresh=True),
    Ours("CMA-ES", {"kind": "cma_es"}),
    Ours("CMA-ES, adapted rate", {"kind": "cma_es", "learning_rate": "adapted"}, most_genes=64),
    Ours("EDA", {"kind": "eda"}),
    Ours("CatCMA", {"kind": "catcma"}),
    Ours("genetic", {"kind": "genetic"}),
    Ours("M2N2", {"kind": "m2n2"}),
    Ours("MAP-Elites", {"kind": "map_elites"}, tasks=2),
    Ours("NSGA-II", {"kind": "nsga2"}, tasks=2, apart=True),
    Ours("nevergrad:TBPSA", {"kind": "nevergrad:TBPSA"}),
    Ours("nevergrad:TwoPointsDE", {"kind": "nevergrad:TwoPointsDE"}),
    Ours("optuna:TPE", {"kind": "optuna:TPE"}),
    Ours("optuna:GP", {"kind": "optuna:GP"}, most_genes=20),
    Ours("random", {"kind": "random"}),
)
DERIVATIVES = {"gradient"}
"""Strategies of ours that use derivatives, as the default does."""

CONTENDERS: tuple[Contender, ...] = (DEFAULT, *STRATEGIES, *FIELD)


def enters(contender: Contender, problem: Problem) -> bool:
    """Return whether a contender is made for a problem: some take several tasks only, or few genes."""
    return len(problem.weights) >= contender.tasks and problem.space.dimension <= contender.most_genes
