"""CABS: conflict-aware and balanced sparsification (2025, arXiv:2503.01874).

The models take turns, in the recipe's order: of every `group` consecutive entries, each keeps the `keep` largest of
its task vector among those that no earlier model took. θ = θ_0 + λ Σ w_t τ̃_t; the masks do not overlap.

Deviations: where keep/group > 1/T, the last models find too few free entries and keep what is left, while the authors'
code lets them overlap; at the end of a tensor, an incomplete group keeps its share, where their code asks for a
multiple of `group`.

Other values of `keep` and `group` cost a pass over the tensor for the masks.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from torch import Tensor

from evomerge.merging.methods.formulas import Kept, TensorContext, WeightedSum
from evomerge.merging.methods.last_value_cache import LastValueCache
from evomerge.merging.methods.parameters import Lambda, PerModel, Real, optional_weight
from evomerge.merging.methods.registry import SourceGroup, WholeTensorState, merge_method


class Turns(WholeTensorState):
    """The entries that each model keeps, bool[n], for the last pattern."""

    def __init__(self, group: SourceGroup) -> None:
        self._group = group
        self._masks: LastValueCache[list[Tensor]] = LastValueCache()

    def masks(self, keep: int, group: int) -> list[Tensor]:
        """Return the models' masks, which are disjoint."""
        return self._masks.get((keep, group), lambda: take_turns(self._group.deltas(), keep, group))


@merge_method("cabs", differentiable=("weight", "lambda"), prepare_all=Turns, prepared_bytes=1)
def cabs(
    tensor: TensorContext,
    *,
    weight: Annotated[PerModel, optional_weight("Factor of the model's thinned task vector.")],
    keep: Annotated[float, Real(doc="Entries kept of each group, a whole number (n).", default=64.0)],
    group: Annotated[float, Real(doc="Entries in a group, a whole number (m).", default=256.0)],
    lambda_: Lambda,
) -> WeightedSum:
    """Disjoint n:m sparsity: in turn, models take the largest entries that are left (arXiv:2503.01874)."""
    turns: Turns = tensor.shared
    size = max(round(group), 1)
    masks = turns.masks(min(max(round(keep), 0), size), size)
    return WeightedSum(weight, scale=lambda_, kept=[Kept(mask.view(torch.int8), 2, 1) for mask in masks])


def take_turns(deltas: tuple[Tensor, ...], keep: int, group: int) -> list[Tensor]:
    """Return the mask of each task vector [n], in turn."""
    size = deltas[0].numel()
    whole = size // group * group
    free = torch.ones(size, dtype=torch.bool, device=deltas[0].device)
    masks = []
    for delta in deltas:
        magnitude = delta.abs() * free
        parts = [_largest(magnitude[:whole].view(-1, group), keep)]
        if whole < size:
            parts.append(_largest(magnitude[None, whole:], math.ceil(keep * (size - whole) / group)))
        mask = torch.cat([part.view(-1) for part in parts])
        free &= ~mask
        masks.append(mask)
    return masks


def _largest(magnitude: Tensor, keep: int) -> Tensor:
    """Return where the `keep` largest of each row are, zeros not counted."""
    mask = torch.zeros_like(magnitude, dtype=torch.bool)
    mask.scatter_(1, magnitude.topk(keep, dim=1).indices, True)
    return mask & (magnitude > 0)
