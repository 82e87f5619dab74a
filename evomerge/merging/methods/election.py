"""The last step of TIES (Yadav et al. 2023, arXiv:2306.01708), used by many methods: elect a sign, then merge.

γ = sign(Σ δ_t), +1 at 0;  A = {t : sign δ_t = γ};  θ = θ_0 + λ Σ_A δ_t, divided by Σ_A w_t when `normalize` (by 1
where that is 0), for weighted task vectors δ_t. The order of operations is mergekit 0.1.5's.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from evomerge.merging.methods.blocks import Block
from evomerge.merging.methods.linear import base_plus, rounded_like, total_of, widened
from evomerge.merging.methods.parameters import PerModel
from evomerge.merging.methods.registry import WholeTensor


def elect_and_merge(
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
    sign_E = elect(block, deltas)
    out_E = total_of(deltas, block.out)
    if normalize:
        out_E.div_(_agreeing_weight(block, deltas, weight))
    out_E.mul_(sign_E)
    if lambda_ != 1:
        out_E.mul_(lambda_)
    out_E.add_(base_E)


def stepwise_election(
    tensor: WholeTensor, deltas: Sequence[Tensor], *, weight: PerModel, normalize: bool, lambda_: float
) -> Tensor:
    """Return the same on whole tensors, rounded to their dtype after every step."""

    def total(weighted_TE: Tensor, weight_T1: Tensor) -> Tensor:
        kept_TE = widened(weighted_TE)
        sign_E = torch.ge(rounded_like(weighted_TE, kept_TE.sum(dim=0)), 0, out=kept_TE.new_empty(kept_TE.shape[1]))
        kept_TE.mul_(sign_E.mul_(2).sub_(1))  # positive where it has the elected sign
        agrees_TE = torch.gt(kept_TE, 0, out=torch.empty_like(kept_TE))
        total_E = kept_TE.mul_(agrees_TE).sum(dim=0).mul_(sign_E).add_(0.0)  # 0 instead of -0
        if normalize:
            divisor_E = rounded_like(weighted_TE, agrees_TE.mul_(weight_T1).sum(dim=0))
            divisor_E.add_(torch.eq(divisor_E, 0, out=sign_E))
            total_E = rounded_like(weighted_TE, total_E).div_(divisor_E)
        return total_E.to(weighted_TE.dtype)

    return base_plus(tensor, deltas, total, weight=weight, lambda_=lambda_)


def agreeing(deltas: Tensor) -> Tensor:
    """Return which entries of the task vectors [T, ...] have the elected sign, bool[T, ...]."""
    elected = (deltas.sum(dim=0) >= 0).to(deltas.dtype) * 2 - 1
    return deltas.sign() == elected


def elect(block: Block, deltas: Sequence[Tensor]) -> Tensor:
    """Return the elected signs; reduce each delta to the magnitudes of entries with that sign, 0 elsewhere."""
    sign_E = total_of(deltas, block.spare("sign"))
    torch.ge(sign_E, 0, out=sign_E).mul_(2).sub_(1)
    for delta_E in deltas:
        # times the elected sign, a delta is positive exactly when it agrees; flipping signs rounds nothing
        delta_E.mul_(sign_E).clamp_(min=0)
    return sign_E


def _agreeing_weight(block: Block, agreeing: Sequence[Tensor], weight: PerModel) -> Tensor:
    """Sum, per entry, the weights of the models whose delta is above 0; 1 where the sum is 0."""
    total_E, mask_E = block.spare("total").zero_(), block.spare("mask")
    for delta_E, w in zip(agreeing, weight, strict=True):
        total_E.add_(torch.gt(delta_E, 0, out=mask_E), alpha=w)
    return total_E.add_(torch.eq(total_E, 0, out=mask_E))
