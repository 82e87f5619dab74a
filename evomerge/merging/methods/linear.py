"""Weighted sums: linear (model soups), task arithmetic, passthrough.

Model soups: Wortsman et al. 2022, arXiv:2203.05482. Task arithmetic: Ilharco et al. 2023, arXiv:2212.04089.
The order of operations is mergekit 0.1.5's at ``dtype: float32``, so that results agree to the last bit.
Unlike mergekit, whatever the recipe's `dtype`, we compute in float32: a difference of bf16 tensors taken in
bf16 loses the small task vectors that the methods are about.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from evomerge.merging.blocks import Block
from evomerge.merging.methods.registry import OptionalPerModel, PerModel, merge_method

SMALLEST_SUM = 1e-8  # of weights, to divide by


@merge_method("linear")
def linear(block: Block, *, weight: PerModel, normalize: bool) -> None:
    """θ = Σ w_t θ_t, divided by Σ w_t when `normalize`."""
    total = _sum(weight) if normalize else 1.0
    if abs(total) < SMALLEST_SUM:
        raise ValueError("linear: the weights sum to 0, so they cannot be normalised; set normalize: false")
    out_E = block.out.zero_()
    for values_E, w in zip(block.models(), weight, strict=True):
        out_E.add_(values_E, alpha=w)
    if total != 1.0:
        out_E.div_(total)


@merge_method("task_arithmetic")
def task_arithmetic(block: Block, *, weight: PerModel, normalize: bool, lambda_: float) -> None:
    """θ = θ_0 + λ Σ w_t (θ_t − θ_0), the sum divided by Σ w_t when `normalize`."""
    base_E, deltas = block.deltas()
    add_and_merge(block, base_E, deltas, weight=weight, normalize=normalize, lambda_=lambda_)


@merge_method("passthrough")
def passthrough(block: Block, *, scale: OptionalPerModel) -> None:
    """θ = s θ_1; untouched when no scale is set."""
    block.copy_model(0)
    (factor,) = scale
    if factor is not None and factor != 1:
        block.out.mul_(factor)


def add_and_merge(
    block: Block,
    base_E: Tensor,
    deltas: Sequence[Tensor],
    *,
    weight: PerModel,
    normalize: bool,
    lambda_: float,
) -> None:
    """Add weighted task vectors to the base as `task_arithmetic` says; overwrites them."""
    for delta_E, w in zip(deltas, weight, strict=True):
        delta_E.mul_(w)
    out_E = total_of(deltas, block.out)
    if normalize:
        total = _sum(weight)
        out_E.div_(total if abs(total) >= SMALLEST_SUM else 1.0)
    if lambda_ != 1:
        out_E.mul_(lambda_)
    out_E.add_(base_E)


def total_of(values: Sequence[Tensor], out_E: Tensor) -> Tensor:
    """Add tensors up in `out_E`, in their order."""
    first, *rest = values
    if not rest:
        return out_E.copy_(first)
    torch.add(first, rest[0], out=out_E)
    for values_E in rest[1:]:
        out_E.add_(values_E)
    return out_E


def _sum(weight: PerModel) -> float:
    return float(torch.tensor(weight, dtype=torch.float32).sum())
