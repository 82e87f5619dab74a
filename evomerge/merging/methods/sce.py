"""SCE: select, calculate, erase (Wan et al. 2024, FuseChat, arXiv:2408.07990).

Per tensor: keep the entries whose variance over the models is among the top k = ⌊select_topk · nonzero⌋; weigh each
model by the mean square of what is kept of its task vector, w_t ∝ mean τ_t²; drop the entries against the elected
sign; θ = θ_0 + Σ w_t m_t τ_t / Σ w_t m_t.

As in mergekit 0.1.5: the weights are equal when the mean squares sum to less than 1e-6, which many fine-tunes do; the
election is by the unweighted sum.

The variances are prepared; another `select_topk` costs a partial sort (10 to 30 ns/entry) and a pass for the weights.
Entries of equal variance, which half precision has many of, are selected as in mergekit, by the same call of `topk`.
"""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from evomerge.merging.methods.blocks import Block
from evomerge.merging.methods.election import agreeing, elect
from evomerge.merging.methods.last_value_cache import LastValueCache
from evomerge.merging.methods.parameters import INT8_MASK, Real
from evomerge.merging.methods.registry import SourceGroup, WholeTensor, WholeTensorState, merge_method

SMALLEST = 1e-6  # sum of mean squares, and of weights, to divide by


class Selection(WholeTensorState):
    """Variance of each entry over the models, float32[n], and what follows from a selection."""

    def __init__(self, group: SourceGroup) -> None:
        self._variance = torch.stack(group.deltas()).var(dim=0, unbiased=False)
        self._nonzero = torch.count_nonzero(self._variance)
        self._group = group
        self._chosen: LastValueCache[Tensor] = LastValueCache()
        self._weights: LastValueCache[list[float]] = LastValueCache()

    def size(self, select_topk: float) -> int | None:
        """Return how many entries are selected; None for all."""
        return None if select_topk >= 1 else number_selected(self._nonzero, select_topk)

    def chosen(self, size: int) -> Tensor:
        """Return which entries are the `size` of largest variance, bool[n]."""
        return self._chosen.get(size, lambda: self._choose(size))

    def weights(self, size: int | None) -> list[float]:
        """Return each model's share of the mean squares over the selected entries."""
        return self._weights.get(("size", size), lambda: self._measure(size))

    def _choose(self, size: int) -> Tensor:
        chosen = torch.zeros_like(self._variance, dtype=torch.bool)
        if size:
            chosen[torch.topk(self._variance, size, sorted=False).indices] = True
        return chosen

    def _measure(self, size: int | None) -> list[float]:
        squares = []
        for delta in self._group.deltas():
            if size is not None:
                delta.mul_(self.chosen(size))
            squares.append(delta.square_().view(1, -1).mean(dim=1))
        total = float(torch.stack(squares).sum())
        if total < SMALLEST:
            return [1 / len(squares)] * len(squares)
        return [float(square) / total for square in squares]


def stepwise_sce(tensor: WholeTensor, *, select_topk: float) -> Tensor:
    """Return `sce`, rounded to the models' dtype after every step."""
    if not tensor.models:
        return tensor.origin
    deltas = torch.stack(tensor.deltas())
    if select_topk < 1:
        variance = deltas.var(dim=0, unbiased=False)
        chosen = torch.zeros_like(variance)
        size = number_selected(torch.count_nonzero(variance), select_topk)
        chosen.view(-1)[torch.topk(variance.view(-1), size).indices] = 1
        deltas = deltas * chosen
    square_T = deltas.square().reshape(len(deltas), -1).mean(dim=1)
    total = float(square_T.sum())
    weight_T = torch.ones_like(square_T) / len(deltas) if total < SMALLEST else square_T / total
    weights = weight_T.view(-1, *[1] * tensor.origin.ndim) * agreeing(deltas)
    return tensor.origin + (deltas * weights).sum(dim=0) / weights.sum(dim=0).clamp(min=SMALLEST)


def number_selected(nonzero: Tensor, share: float) -> int:
    """Return ⌊share · nonzero⌋, the product in float32 as in mergekit."""
    return int(nonzero * max(share, 0.0))


@merge_method(
    "sce",
    min_models=0,
    without_effect=(INT8_MASK,),
    prepare_all=Selection,
    shared_bytes=5,
    stepwise=stepwise_sce,
)
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
        chosen_E = selection.chosen(size)[block.start :][: block.entries]
        for delta_E in deltas:
            delta_E.mul_(chosen_E)
    sign_E = elect(block, deltas)
    out_E = _weighted_mean(block, deltas, weights)
    out_E.mul_(sign_E).add_(base_E)


def _weighted_mean(block: Block, sizes: tuple[Tensor, ...], weights: list[float]) -> Tensor:
    out_E, total_E = block.out.zero_(), block.spare("total").zero_()
    for size_E, w in zip(sizes, weights, strict=True):
        total_E.add_(torch.gt(size_E, 0, out=block.spare("mask")), alpha=w)
        out_E.add_(size_E.mul_(w))  # the product is rounded
    return out_E.div_(total_E.clamp_(min=SMALLEST))
