"""Sparsified task vectors with sign election: TIES and DARE-TIES.

TIES: Yadav et al. 2023, arXiv:2306.01708. DARE: Yu et al. 2024, arXiv:2311.03099.

δ_t = w_t · sparsify(θ_t − θ_0);  γ = sign(Σ δ_t), +1 at 0;  A = {t : sign δ_t = γ};
θ = θ_0 + λ Σ_A δ_t, divided by Σ_A w_t when `normalize` (by 1 where that is 0).

The order of operations is mergekit 0.1.5's at ``dtype: float32``. Deviations:

* we compute in float32 whatever the recipe's `dtype` (see `linear`);
* DARE's `rescale` multiplies by 1/density as in the paper. mergekit multiplies by the ratio of the L1 norms
  before and after, which on a short tensor at density 0.1 was measured between 4 and 287 instead of 10;
* DARE's masks are a function of (seed, weights, tensor name), not of the order in which tensors are merged,
  so that candidates of one search differ by their coefficients only and a recipe rebuilds the very same
  weights anywhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evomerge.merging.blocks import Block
from evomerge.merging.methods.linear import total_of
from evomerge.merging.methods.registry import PerModel, SourceTensor, merge_method

LEVELS = 1 << 16  # of a draw
SMALLEST_NORM = 1e-7  # below it, mergekit's rescaling is left out


class Mass:
    """What rescaling by the L1 norm needs of a whole task vector; remembers the last answer."""

    def __init__(self, rank: Tensor, source: SourceTensor) -> None:
        self.rank = rank
        self.source = source
        self._last: tuple[int, float] | None = None

    def ratio(self, kept: int) -> float:
        """Return Σ|δ| / Σ|δ kept| over the whole tensor, 1 when either vanishes."""
        if self._last is None or self._last[0] != kept:
            magnitude = self.source.delta().abs_()
            before = magnitude.sum()
            after = magnitude.masked_fill_(self.rank >= kept, 0).sum()
            vanishes = before < SMALLEST_NORM or after < SMALLEST_NORM
            self._last = kept, 1.0 if vanishes else float(before / after)
        return self._last[1]


@dataclass(frozen=True)
class Ranks:
    """Rank of each entry by magnitude of its delta, int32[n], 0 for the largest."""

    rank: Tensor
    mass: Mass

    def cut(self, span: slice) -> Ranks:
        """Return the ranks of some of the entries."""
        return Ranks(self.rank[span], self.mass)


def ranks(source: SourceTensor) -> Ranks:
    """Rank a task vector's entries by magnitude.

    Ties at the threshold fall as in mergekit, which makes this very call: the default (unstable) argsort.
    """
    order = torch.argsort(source.delta().abs_(), descending=True)
    rank = torch.empty(order.numel(), dtype=torch.int32, device=order.device)
    rank[order] = torch.arange(order.numel(), dtype=torch.int32, device=order.device)
    return Ranks(rank, Mass(rank, source))


@dataclass(frozen=True)
class Draws:
    """One uniform draw per entry, int16[n] over the whole range: 2 bytes, densities to 1.5e-5."""

    draw: Tensor

    def cut(self, span: slice) -> Draws:
        """Return the draws of some of the entries."""
        return Draws(self.draw[span])


def draws(source: SourceTensor) -> Draws:
    """Draw the uniform numbers that decide, at any density, which entries are dropped.

    Masks are nested: what a density keeps, every larger one keeps.
    """
    digest = hashlib.sha256(f"{source.seed}\0{source.name}\0".encode())
    digest.update(source.values.cpu().contiguous().view(torch.uint8).numpy().data)
    generator = torch.Generator().manual_seed(int.from_bytes(digest.digest()[:8], "little", signed=True))
    draw = torch.randint(-LEVELS // 2, LEVELS // 2, source.values.shape, dtype=torch.int16, generator=generator)
    return Draws(draw.to(source.values.device))


@merge_method("ties", prepare=ranks, prepared_bytes=4)
def ties(block: Block, *, weight: PerModel, density: PerModel, normalize: bool, lambda_: float, rescale: bool) -> None:
    """Keep the ⌊density·n⌋ largest entries (at least one) of each task vector, elect signs, merge."""
    base_E, deltas = block.deltas()
    for delta_E, ranked, d in zip(deltas, block.prepared, density, strict=True):
        kept = _kept(d, block.size)
        if kept < block.size:
            delta_E.mul_(torch.lt(ranked.rank, kept, out=block.spare("mask")))
            if rescale and kept:
                delta_E.mul_(ranked.mass.ratio(kept))
    _elect_and_merge(block, base_E, deltas, weight=weight, normalize=normalize, lambda_=lambda_)


@merge_method("dare_ties", prepare=draws, prepared_bytes=2)
def dare_ties(
    block: Block, *, weight: PerModel, density: PerModel, normalize: bool, lambda_: float, rescale: bool
) -> None:
    """Keep each entry of the task vectors with probability density, elect signs, merge."""
    base_E, deltas = block.deltas()
    for delta_E, drawn, d in zip(deltas, block.prepared, density, strict=True):
        levels = round(min(max(d, 0.0), 1.0) * LEVELS)
        if levels < LEVELS:
            delta_E.mul_(torch.lt(drawn.draw, levels - LEVELS // 2, out=block.spare("mask")))
            if rescale and levels:
                delta_E.mul_(LEVELS / levels)  # 1/density, for exactly the probability used
    _elect_and_merge(block, base_E, deltas, weight=weight, normalize=normalize, lambda_=lambda_)


def _elect_and_merge(
    block: Block,
    base_E: Tensor,
    deltas: Sequence[Tensor],
    *,
    weight: PerModel,
    normalize: bool,
    lambda_: float,
) -> None:
    """Elect a sign per entry, sum the deltas that have it, add the base; overwrites the deltas."""
    for delta_E, w in zip(deltas, weight, strict=True):
        delta_E.mul_(w)
    sign_E = total_of(deltas, block.spare("sign"))
    torch.ge(sign_E, 0, out=sign_E).mul_(2).sub_(1)
    for delta_E in deltas:
        # times the elected sign, a delta is positive exactly when it agrees; flipping signs rounds nothing
        delta_E.mul_(sign_E).clamp_(min=0)
    out_E = total_of(deltas, block.out)
    if normalize:
        out_E.div_(_agreeing_weight(block, deltas, weight))
    out_E.mul_(sign_E)
    if lambda_ != 1:
        out_E.mul_(lambda_)
    out_E.add_(base_E)


def _agreeing_weight(block: Block, agreeing: Sequence[Tensor], weight: PerModel) -> Tensor:
    """Sum, per entry, the weights of the models whose delta is above 0; 1 where the sum is 0."""
    total_E, mask_E = block.spare("total").zero_(), block.spare("mask")
    for delta_E, w in zip(agreeing, weight, strict=True):
        total_E.add_(torch.gt(delta_E, 0, out=mask_E), alpha=w)
    return total_E.add_(torch.eq(total_E, 0, out=mask_E))


def _kept(density: float, size: int) -> int:
    if density >= 1:
        return size
    return max(1, int(density * size)) if density > 0 else 0

