"""Weighted sums: linear (model soups), task arithmetic, passthrough.

Model soups: Wortsman et al. 2022, arXiv:2203.05482. Task arithmetic: Ilharco et al. 2023, arXiv:2212.04089.
The order of operations is mergekit 0.1.5's at ``dtype: float32``, so that task arithmetic agrees to the last bit;
`linear` rounds each product, which mergekit fuses with its sum.
Unlike mergekit, whatever the recipe's `dtype`, we compute in float32: a difference of bf16 tensors taken in
bf16 loses the small task vectors that these methods merge.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated

import torch
from torch import Tensor

from evomerge.merging.methods.blocks import Block
from evomerge.merging.methods.formulas import Kept, TensorContext, WeightedSum
from evomerge.merging.methods.parameters import (
    INT8_MASK,
    Flag,
    Lambda,
    Normalize,
    OptionalPerModel,
    PerModel,
    Real,
    required_weight,
)
from evomerge.merging.methods.registry import merge_method
from search_spaces.recipes.method_spec import Parameter

SMALLEST_SUM = 1e-8  # of weights, to divide by


@merge_method(
    "linear",
    differentiable=("weight",),
    base="none",
    weighted_average=True,
    core_space="exact",
    in_mergekit=True,
    float32_in_mergekit=True,
)
def linear(
    _: TensorContext,
    *,
    weight: Annotated[PerModel, required_weight(0.0, 1.0, "Share of the model; of every source, the base included.")],
    normalize: Annotated[bool, Flag(True, "Divide by the sum of the weights.")],
) -> WeightedSum:
    """Weighted average of the models (arXiv:2203.05482).

    θ = Σ w_t θ_t, divided by Σ w_t when `normalize`.
    """
    total = _sum(weight) if normalize else 1.0
    if abs(total) < SMALLEST_SUM:
        raise ValueError("linear: the weights sum to 0, so they cannot be normalised; set normalize: false")
    return WeightedSum(weight, "models", divisor=total)


@merge_method(
    "task_arithmetic",
    min_models=0,
    differentiable=("weight", "lambda"),
    core_space="exact",
    in_mergekit=True,
    without_effect=(
        Parameter("density", True, float, 1.0, inert=True, doc="Without effect here: mergekit accepts it."),
        Parameter("rescale", False, bool, False, inert=True, doc="Restore what sparsity took."),
        INT8_MASK,
    ),
)
def task_arithmetic(
    _: TensorContext,
    *,
    weight: Annotated[PerModel, required_weight(-0.5, 1.5, "Factor of the model's task vector (model minus base).")],
    normalize: Normalize,
    lambda_: Lambda,
) -> WeightedSum:
    """Base plus weighted task vectors (arXiv:2212.04089).

    θ = θ_0 + λ Σ w_t (θ_t − θ_0), the sum divided by Σ w_t when `normalize`.
    """
    return added(weight=weight, normalize=normalize, lambda_=lambda_)


@merge_method(
    "passthrough",
    differentiable=("scale",),
    base="none",
    max_models=1,
    core_space="exact",
    in_mergekit=True,
    float32_in_mergekit=True,
)
def passthrough(
    _: TensorContext,
    *,
    scale: Annotated[OptionalPerModel, Real(0.0, 2.0, 1.0, "Factor of the tensor; untouched if unset.")],
) -> WeightedSum:
    """Take each slice from one model, scaled if asked: layer orders, repeats, skips.

    θ = s θ_1; untouched when no scale is set.
    """
    (factor,) = scale
    return WeightedSum([1.0 if factor is None else factor], "models")


def added(*, weight: PerModel, normalize: bool, lambda_: float, kept: Sequence[Kept | None] = ()) -> WeightedSum:
    """Return the formula of `task_arithmetic`, for methods that keep only some entries of the task vectors."""
    return WeightedSum(weight, divisor=_divisor(weight) if normalize else 1.0, scale=lambda_, kept=kept)


def add_and_merge(
    block: Block,
    base_E: Tensor,
    deltas: Sequence[Tensor],
    *,
    weight: PerModel,
    normalize: bool,
    lambda_: float,
) -> None:
    """Add weighted task vectors to the base as `task_arithmetic` does; overwrites them."""
    for delta_E, w in zip(deltas, weight, strict=True):
        delta_E.mul_(w)
    out_E = total_of(deltas, block.out)
    scale_by(out_E, _divisor(weight) if normalize else 1.0, lambda_)
    out_E.add_(base_E)


def scale_by(out_E: Tensor, divisor: float, factor: float) -> None:
    """Divide, then multiply, in place."""
    if divisor != 1:
        out_E.div_(divisor)
    if factor != 1:
        out_E.mul_(factor)


def total_of(values: Sequence[Tensor], out_E: Tensor) -> Tensor:
    """Sum tensors into `out_E`, in their order."""
    first, *rest = values
    if not rest:
        return out_E.copy_(first)
    torch.add(first, rest[0], out=out_E)
    for values_E in rest[1:]:
        out_E.add_(values_E)
    return out_E


def _divisor(weight: PerModel) -> float:
    total = _sum(weight)
    return total if abs(total) >= SMALLEST_SUM else 1.0


def _sum(weight: PerModel) -> float:
    return _float32_sum(tuple(weight))


@lru_cache(maxsize=256)
def _float32_sum(weight: tuple[float, ...]) -> float:
    """Add up as torch does; cached, since most tensors of a model have the same weights."""
    return float(torch.tensor(weight, dtype=torch.float32).sum())
