"""An L1 penalty on coefficients, as LoRAHub and Evo-Merging have it: score − l1 · mean |coefficient|.

It changes what a strategy learns from, never a score that is recorded or shown.
"""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np

from evomerge.strategies.base import Genotype
from fitness.results import Evaluation
from search_spaces.spaces.genes import Real
from search_spaces.spaces.space import SearchSpace


class Penalty:
    """Lowers the score of a candidate by the mean size of its coefficients of one kind.

    Parameters
    ----------
    space
        Its real genes of that kind are penalised.
    l1
        The factor, in the unit of the score; 0: no penalty.
    parameter
        The kind, as genes are called: `weight`, `density`.

    Raises
    ------
    ValueError
        If there is a penalty and no such gene.
    """

    def __init__(self, space: SearchSpace, l1: float, parameter: str = "weight") -> None:
        self._l1 = l1
        self._genes = genes_of(space, parameter)
        if l1 > 0 and not self._genes:
            raise ValueError(
                f"strategy.l1: this space has no gene for a {parameter}, which it would keep small; remove l1, or "
                "write space.kind: layer_coefficients with weights, or mixture with a number of chunks"
            )

    def __call__(self, genotype: Genotype, evaluation: Evaluation) -> Evaluation:
        """Return the evaluation with its objectives lowered."""
        if not self._l1 or not evaluation.objectives:
            return evaluation
        lower = self._l1 * float(np.abs(genotype[self._genes]).mean())
        return replace(evaluation, objectives=tuple(value - lower for value in evaluation.objectives))


def genes_of(space: SearchSpace, parameter: str) -> list[int]:
    """Return the positions of the real genes for a parameter.

    It is part of their names, as in `ops.weight[layers 0]`, whatever a tied gene is called; the weights of a mixture in
    numbered chunks are called as `ops[0]`, its noise as `noise 0[0]`.
    """
    called = re.compile(rf"(.*\.)?{parameter}(\[.*\])?" + (r"|[\w-]+\[\d+\]" if parameter == "weight" else ""))
    named = enumerate(zip(space.genes, space.coefficients, strict=True))
    return [at for at, (gene, name) in named if isinstance(gene, Real) and called.fullmatch(name)]
