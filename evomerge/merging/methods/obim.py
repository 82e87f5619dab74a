"""OBIM: each entry from the one model to which it is worth most, in turns (Optimal Brain Iterative Merging).

The saliency of an entry of task vector τ_t is ½ H_jj τ_t², what leaving it out adds to the squared error of the
layer's output: H_jj is the mean squared input of its channel on the model's text. In each of `rounds` rounds every
model in turn takes the most salient entries that no model has taken, an equal part of its `density`; masks are
mutually exclusive, and θ = θ_0 + λ Σ w_t m_t ⊙ τ_t. At density 1, every entry that some model changes belongs to a
model.

Deviations: stated from the paper's abstract and a third-party reduction; no code of the authors is public, so no
parity is claimed. The order of turns is the models'. Tensors without input channels (embeddings, norms) have H = 1.

Cost: one forward pass per model over its text; 4 bytes per input channel are kept. Preparing: T · rounds selections
per tensor and density.

Legend: n entries of a tensor.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from torch import Tensor

from evomerge.merging.methods.formulas import Kept, TensorContext, WeightedSum
from evomerge.merging.methods.last_value_cache import LastValueCache
from evomerge.merging.methods.parameters import Lambda, PerModel, Real, kept_fraction, optional_weight
from evomerge.merging.methods.registry import SourceGroup, WholeTensorState, merge_method


class Saliency(WholeTensorState):
    """The entries that each model keeps, bool[n], for the last densities."""

    def __init__(self, group: SourceGroup) -> None:
        self._group = group
        self._masks: LastValueCache[list[Tensor]] = LastValueCache()

    def masks(self, density: tuple[float, ...], rounds: int) -> list[Tensor]:
        """Return the models' masks, which are disjoint."""
        return self._masks.get((density, rounds), lambda: in_turns(self._saliencies(), density, rounds))

    def _saliencies(self) -> list[Tensor]:
        found = []
        for delta, own in zip(self._group.deltas(), self._group.statistics, strict=True):
            saliency = delta.square_()
            energy_N = own.get("energies")
            if self._group.info.is_matrix and energy_N is not None and len(energy_N) == self._group.info.row:
                saliency = (saliency.view(-1, len(energy_N)) * energy_N).view(-1)
            found.append(saliency)
        return found


@merge_method("obim", statistics=("energies",), prepare_all=Saliency, prepared_bytes=1)
def obim(
    tensor: TensorContext,
    *,
    weight: Annotated[PerModel, optional_weight("Factor of what the model keeps of its task vector.")],
    density: Annotated[PerModel, kept_fraction("Fraction of entries that the model may take.")],
    rounds: Annotated[float, Real(doc="Rounds in which models take turns, a whole number.", default=10.0)],
    lambda_: Lambda,
) -> WeightedSum:
    """Mutually exclusive masks: in turns, models take the entries whose loss would hurt them most (OBIM)."""
    masks = tensor.shared.masks(tuple(density), max(round(rounds), 1))
    return WeightedSum(weight, scale=lambda_, kept=[Kept(mask.view(torch.int8), 2, 1) for mask in masks])


def in_turns(saliencies: list[Tensor], density: tuple[float, ...], rounds: int) -> list[Tensor]:
    """Return each model's mask [n]: in each round, an equal part of its share; entries of saliency 0 are nobody's."""
    size = saliencies[0].numel()
    free = torch.ones(size, dtype=torch.bool, device=saliencies[0].device)
    masks = [torch.zeros_like(free) for _ in saliencies]
    orders = [saliency.argsort(descending=True, stable=True)[: int((saliency > 0).sum())] for saliency in saliencies]
    for number in range(rounds):
        for mask, order, d in zip(masks, orders, density, strict=True):
            share = math.floor(d * size * (number + 1) / rounds) - math.floor(d * size * number / rounds)
            taken = order[free[order]][:share]
            mask[taken] = True
            free[taken] = False
    return masks
