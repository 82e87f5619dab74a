"""SCE: select, calculate, erase (Wan et al. 2024, FuseChat, arXiv:2408.07990).

Per tensor: keep the entries whose variance over the models is among the top k = ⌊select_topk · nonzero⌋; weigh each
model by the mean square of what is kept of its task vector, w_t ∝ mean τ_t²; drop the entries against the elected
sign; θ = θ_0 + Σ w_t m_t τ_t / Σ w_t m_t.

As in mergekit 0.1.5 at ``dtype: float32``: the weights are equal when the mean squares sum to less than 1e-6, which
many fine-tunes do; the election is by the unweighted sum. Deviation: arithmetic in float32 whatever the recipe's
`dtype`.

The ranks by variance are prepared; another `select_topk` costs one pass over the tensor for the weights.
"""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from evomerge.merging.methods.blocks import Block
from evomerge.merging.methods.election import elect
from evomerge.merging.methods.last_value_cache import LastValueCache
from evomerge.merging.methods.parameters import INT8_MASK, Real
from evomerge.merging.methods.ranking import descending_ranks
from evomerge.merging.methods.registry import SourceGroup, WholeTensorState, merge_method

SMALLEST = 1e-6  # sum of mean squares, and of weights, to divide by


class Selection(WholeTensorState):
    """Rank of each entry by variance over the models, int32[n], and the weights that follow from a selection."""

    def __init__(self, group: SourceGroup) -> None:
        variance = torch.stack(group.deltas()).var(dim=0, unbiased=False)
        self._group = group
        self._weights: LastValueCache[list[float]] = LastValueCache()
        self._nonzero = torch.count_nonzero(variance)
        self.rank = descending_ranks(variance)

    def size(self, select_topk: float) -> int | None:
        """Return how many entries are selected; None for all."""
        return None if select_topk >= 1 else int(self._nonzero * max(select_topk, 0.0))

    def weights(self, size: int | None) -> list[float]:
        """Return each model's share of the mean squares over the selected entries."""
        return self._weights.get(("size", size), lambda: self._measure(size))

    def _measure(self, size: int | None) -> list[float]:
        squares = []
        for delta in self._group.deltas():
            if size is not None:
                delta.masked_fill_(self.rank >= size, 0)
            squares.append(delta.square_().mean())
        total = float(torch.stack(squares).sum())
        if total < SMALLEST:
            return [1 / len(squares)] * len(squares)
        return [float(square) / total for square in squares]


@merge_method("sce", in_mergekit=True, without_effect=(INT8_MASK,), prepare_all=Selection, shared_bytes=4)
def sce(
    block: Block,
    *,
    select_topk: Annotated[float, Real(0.1, 1.0, 0.5, "Fraction of varying entries selected.", default=1.0)],
) -> None:
    """Select entries by their variance over models, weigh models by mean squares, elect signs (arXiv:2408.07990)."""
    selection: Selection = block.shared
    size = selection.size(select_topk)
    weights = selection.weights(size)
    base_E, deltas = block.deltas()
    if size is not None:
        rank_E = selection.rank[block.start :][: block.entries]
        chosen_E = torch.lt(rank_E, size, out=block.spare("chosen"))
        for delta_E in deltas:
            delta_E.mul_(chosen_E)
    sign_E = elect(block, deltas)
    out_E = _weighted_mean(block, deltas, weights)
    out_E.mul_(sign_E).add_(base_E)


def _weighted_mean(block: Block, sizes: tuple[Tensor, ...], weights: list[float]) -> Tensor:
    out_E, total_E = block.out.zero_(), block.spare("total").zero_()
    for size_E, w in zip(sizes, weights, strict=True):
        out_E.add_(size_E, alpha=w)
        total_E.add_(torch.gt(size_E, 0, out=block.spare("mask")), alpha=w)
    return out_E.div_(total_E.clamp_(min=SMALLEST))
