"""Frank-Wolfe steps over the models' weights: FW-Merging (Chen et al. 2025, arXiv:2503.12649).

In each part of the model that has weights of its own, the merge stays in the convex hull of the models. With g the
derivatives of the loss by a part's weights w, step k = 0, 1, ... moves them towards one vertex s of that hull:

    s = argmin over vertices of ⟨g, s⟩,   w ← (1 − η) w + η s,   η = 2 / (k + 2).

∂L/∂w_t = ⟨∂L/∂θ, τ_t⟩, so this is the paper's argmin of ⟨∂L/∂θ, θ_t⟩ over the models. The vertices are the models, each
with weight 1 alone, and the base where no model lowers the loss: all weights 0, as in the authors' code for language
models. The first step goes to a vertex, whatever the start, which only decides the first derivatives.

A convex loss with curvature C over the hull is at most 2 C / (k + 2) above its minimum (Jaggi 2013, theorem 1).

Deviations: the paper's product ⟨g, θ_t⟩; the authors' code divides it by the model's norm, tensor by tensor. Each step
is asked fresh items.

Letters: G genes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from search_spaces.spaces.layer_groups import weights_by_part
from search_spaces.spaces.space import Genotype, SearchSpace

ROUNDING = 1e-9
"""Derivatives this small beside the largest are 0: of an average's weights, those by the only model that counts."""


class FrankWolfe:
    """Moves the weights of each part towards the model with the steepest descent; other genes stay where they are.

    Parameters
    ----------
    space
        One method with a weight per model.

    Raises
    ------
    ValueError
        If the space has choices or no such weights, or a range does not hold 0 and 1.
    """

    rate = 1.0
    """What multiplies η at first."""

    def __init__(self, space: SearchSpace) -> None:
        self._parts = [np.array(genes) for genes in weights_by_part(gene.name for gene in space.genes).values()]
        if space.discrete.any() or not self._parts:
            raise ValueError(
                "strategy.update frank_wolfe moves the weights of one merge method towards the models; write a space "
                "such as {method: task_arithmetic}, or update: adam"
            )
        for index in np.concatenate(self._parts):
            if space.low[index] > 0 or space.high[index] < 1:
                raise ValueError(
                    f"strategy.update frank_wolfe: {space.genes[index].name} goes from {space.low[index]:g} to "
                    f"{space.high[index]:g}, and the steps go from 0 to 1; write space.weight: {{low: 0, high: 1}}"
                )
        self._low, self._width = space.low, space.high - space.low
        self._steps = 0

    def restart(self) -> None:
        """Continue after a failed step: η continues to fall."""

    def moved(self, point: Genotype, slope: NDArray[np.float64], rate: float) -> Genotype:
        """Return the point after a step, in the unit box like `point`; `slope` are derivatives in it, float64[G]."""
        weights, gradient = self._low + point * self._width, slope / self._width
        step = rate * 2 / (self._steps + 2)
        self._steps += 1
        for part in self._parts:
            vertex, own = np.zeros(len(part)), gradient[part]
            if not own.any():
                continue
            if own.min() <= ROUNDING * np.abs(own).max():
                vertex[own.argmin()] = 1.0
            weights[part] += step * (vertex - weights[part])
        return np.clip((weights - self._low) / self._width, 0.0, 1.0)
