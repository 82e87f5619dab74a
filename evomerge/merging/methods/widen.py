"""WIDEN: weight disentanglement (Yu et al. 2024, arXiv:2408.03092).

A matrix is taken apart into the norms and the directions of its columns. Each model's columns are ranked by how far
its fine-tuning moved them, Δν = |ν_t − ν_0| and Δd = 1 − cos(d_t, d_0), in [0, 1) within the model. The scores are
the softmax of the ranks over the models; columns with a rank above `ratio` times the mean rank score `factor`
instead. θ = θ_0 + Σ w_t ⊙ τ_t, with w_t the mean of a column's two scores. Vectors are ranked entry by entry, by
|τ_t|.

Embeddings are taken transposed, a vector per token. Deviations: so is the output projection, and stacks of matrices
count as one matrix with their columns joined. Columns that changed equally, such as those that a fine-tune left
alone, share the rank of the first of them, where the authors' sort ranks them by their place: so the order of columns
does not matter. For the same reason 1 − cos is computed as ½ ‖d_t − d_0‖², which is 0 for an unchanged column
whatever rounding does.

The ranks are prepared; other parameters cost a softmax over the columns.
"""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from evomerge.merging.methods.blocks import Block, TensorInfo
from evomerge.merging.methods.last_value_cache import LastValueCache
from evomerge.merging.methods.parameters import Real
from evomerge.merging.methods.ranking import shared_ranks
from evomerge.merging.methods.registry import SourceGroup, WholeTensorState, merge_method

SMALLEST_NORM = 1e-12  # to divide by


class Importance(WholeTensorState):
    """Ranks of each model's columns by what fine-tuning changed: two kinds for matrices, one for vectors."""

    def __init__(self, group: SourceGroup) -> None:
        assert group.base is not None, "widen requires a base"
        if len(group.info.shape) == 1:
            self.ranks = [torch.stack([shared_ranks(delta.abs_()) for delta in group.deltas()])]
        else:
            base = _columns(group.base, group.info)
            changes = [_changes(_columns(values, group.info), base) for values in group.models]
            self.ranks = [torch.stack([shared_ranks(change) for change in kind]) for kind in zip(*changes, strict=True)]
        self._weights: LastValueCache[Tensor] = LastValueCache()

    def weights(self, ratio: float, factor: float) -> Tensor:
        """Return w [T, columns]."""

        def make() -> Tensor:
            return torch.stack([_scores(rank, ratio, factor) for rank in self.ranks]).mean(0)

        return self._weights.get((ratio, factor), make)


def _bytes(info: TensorInfo) -> float:
    """Two ranks and a weight per column in float32, or a rank and a weight per entry of a vector."""
    if len(info.shape) == 1:
        return 8
    return 12 / (info.row if info.by_token else _rows(info))


@merge_method("widen", core_space="unsupported", prepare_all=Importance, prepared_bytes=_bytes)
def widen(
    block: Block,
    *,
    ratio: Annotated[float, Real(0.0, 2.0, 1.0, "Rank, over the mean, to be important.", default=1.0)],
    factor: Annotated[float, Real(0.0, 2.0, 1.0, "Weight of what is important.", default=1.0)],
) -> None:
    """Task vectors weighted by column, by how much fine-tuning changed its norm and direction (arXiv:2408.03092)."""
    weights = block.shared.weights(ratio, factor)
    base_E, deltas = block.deltas()
    spread = block.by_row if block.info.by_token and len(block.info.shape) > 1 else block.by_column
    out_E = block.out.zero_()
    for delta_E, weight in zip(deltas, weights, strict=True):
        out_E.addcmul_(delta_E, spread(weight))
    out_E.add_(base_E)


def _columns(values: Tensor, info: TensorInfo) -> Tensor:
    """Return [columns, entries of a column]."""
    matrix = values.float().view(-1, info.row)
    return matrix if info.by_token else matrix.T


def _changes(columns: Tensor, base: Tensor) -> tuple[Tensor, Tensor]:
    """Return Δν and Δd."""
    norms, base_norms = columns.norm(dim=1, keepdim=True), base.norm(dim=1, keepdim=True)
    turned = columns / norms.clamp(min=SMALLEST_NORM) - base / base_norms.clamp(min=SMALLEST_NORM)
    return (norms - base_norms).abs()[:, 0], turned.square().sum(1) / 2


def _scores(rank: Tensor, ratio: float, factor: float) -> Tensor:
    """Return the scores [T, columns] of one kind of change."""
    important = rank > ratio * rank.mean(dim=1, keepdim=True)
    return torch.softmax(rank, dim=0).masked_fill_(important, factor)


def _rows(info: TensorInfo) -> int:
    rows = 1
    for size in info.shape[:-1]:
        rows *= size
    return rows
