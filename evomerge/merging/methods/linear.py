"""Weighted sums: linear (model soups), metrics-weighted averages, task arithmetic, passthrough.

Model soups: Wortsman et al. 2022, arXiv:2203.05482. Task arithmetic: Ilharco et al. 2023, arXiv:2212.04089.
Metrics-weighted averaging (MWA): Yu & Choi 2025, arXiv:2504.18580: one number to search, however many models there are.
The order of operations is mergekit 0.1.5's, so that weights agree to the last bit: in float32 here, in another `dtype`
of the recipe in the functions called `stepwise_...`. A difference of bf16 tensors taken in bf16 loses the small task
vectors that these methods merge: searches write ``dtype: float32``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Annotated, TypeVar

import torch
from torch import Tensor

from evomerge.merging.methods.blocks import GPU_BLOCK, Block
from evomerge.merging.methods.formulas import Kept, TensorContext, WeightedSum
from evomerge.merging.methods.parameters import (
    INT8_MASK,
    Flag,
    Lambda,
    MethodError,
    Normalize,
    OptionalPerModel,
    PerModel,
    Real,
    required_weight,
)
from evomerge.merging.methods.registry import WholeTensor, merge_method
from search_spaces.recipes.method_spec import Parameter

SMALLEST_SUM = 1e-8  # of weights, to divide by
LEFT_TO_RIGHT = 4  # terms that torch sums in this order wherever they stand
STRETCH = 1 << 16  # entries that are merged together step by step


def stepwise_linear(tensor: WholeTensor, *, weight: PerModel, normalize: bool) -> Tensor:
    """Return `linear` in float32 (float64 where the models are), each product fused with its sum, rounded once."""
    first = tensor.models[0]
    wide, ones = torch.promote_types(first.dtype, torch.float32), [1] * first.ndim
    weight_T = torch.tensor(weight, dtype=wide, device=first.device)
    total = torch.zeros_like(first, dtype=wide)
    for values, w in zip(tensor.models, weight_T, strict=True):
        total.addcmul_(values, w.view(ones))
    if normalize:
        total.div_(_checked(weight_T.sum()).view(ones))
    return total.to(first.dtype)


def stepwise_task_arithmetic(tensor: WholeTensor, *, weight: PerModel, normalize: bool, lambda_: float) -> Tensor:
    """Return `task_arithmetic`, rounded to the models' dtype after every step."""
    return stepwise_sum(tensor, tensor.deltas(), weight=weight, normalize=normalize, lambda_=lambda_)


def stepwise_passthrough(tensor: WholeTensor, *, scale: OptionalPerModel) -> Tensor:
    """Return `passthrough` in the model's dtype."""
    (values,), (factor,) = tensor.models, scale
    return values if factor is None else values * factor


@merge_method(
    "linear",
    differentiable=("weight",),
    base="none",
    weighted_average=True,
    core_space="exact",
    stepwise=stepwise_linear,
    stepwise_by_entry=True,
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
    return WeightedSum(weight, "models", divisor=_checked(_sum(weight)) if normalize else 1.0, fused=True)


@merge_method(
    "metrics_weighted",
    differentiable=("power",),
    base="none",
    core_space="exact",
)
def metrics_weighted(
    _: TensorContext,
    *,
    metric: Annotated[PerModel, Real(doc="What is known of the model, above 0: its loss, its steps.", default=1.0)],
    power: Annotated[float, Real(-8.0, 8.0, -1.0, "Power of the metric; below 0 where less is better.", default=-1.0)],
) -> WeightedSum:
    """Average of the models, weighted by a power of a metric of each: a loss, a score, steps (arXiv:2504.18580).

    θ = Σ m_t^p θ_t / Σ m_t^p. With losses, p = −γ of the paper; with steps, p = γ.
    """
    if min(metric) <= 0:
        raise MethodError("metrics_weighted: every model needs a metric above 0, such as its loss; write metric: 1.37")
    shares = [(value / max(metric)) ** power for value in metric]
    return WeightedSum(shares, "models", divisor=_checked(_sum(shares)), fused=True)


@merge_method(
    "task_arithmetic",
    min_models=0,
    differentiable=("weight", "lambda"),
    core_space="exact",
    stepwise=stepwise_task_arithmetic,
    stepwise_by_entry=True,
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
    stepwise=stepwise_passthrough,
    stepwise_by_entry=True,
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


def stepwise_sum(
    tensor: WholeTensor, deltas: Sequence[Tensor], *, weight: PerModel, normalize: bool, lambda_: float
) -> Tensor:
    """Return the base and the sum of weighted task vectors, rounded to their dtype after every step."""

    def total(weighted_TE: Tensor, weight_T1: Tensor) -> Tensor:
        total_E = widened(weighted_TE).sum(dim=0).to(weighted_TE.dtype)
        if normalize:
            divisor = weight_T1.sum(dim=0)
            total_E /= torch.where(divisor.abs() < SMALLEST_SUM, 1, divisor)
        return total_E

    return base_plus(tensor, deltas, total, weight=weight, lambda_=lambda_)


def base_plus(
    tensor: WholeTensor,
    deltas: Sequence[Tensor],
    total: Callable[[Tensor, Tensor], Tensor],
    *,
    weight: PerModel,
    lambda_: float,
) -> Tensor:
    """Return the base plus λ times a total of the weighted task vectors, rounded to their dtype after every step.

    It computes a stretch of entries at a time, whose intermediate results stay in the processor's cache.

    Parameters
    ----------
    tensor
        Gives the base.
    deltas
        The task vectors, in the base's shape and dtype.
    total
        Returns [E] from the weighted task vectors [T, E], which it may overwrite, and the weights [T, 1].
    weight, lambda_
        Factors of each task vector, and of the total.
    """
    if not deltas:
        return tensor.origin
    base = tensor.origin.reshape(-1)
    merged = torch.empty_like(base)
    weight_T1 = torch.tensor(weight, dtype=base.dtype, device=base.device).view(-1, 1)
    stretch = STRETCH if base.device.type == "cpu" else GPU_BLOCK
    parts = (values.reshape(-1).split(stretch) for values in (merged, base, *deltas))
    for out_E, base_E, *deltas_TE in zip(*parts, strict=True):
        total_E = total(torch.stack(deltas_TE).mul_(weight_T1), weight_T1)
        if lambda_ != 1:
            total_E *= lambda_
        torch.add(base_E, total_E, out=out_E)
    return merged.view(tensor.origin.shape)


def widened(values_TE: Tensor) -> Tensor:
    """Return half precision as float32: torch sums it in float32 anyway, and from float32 in a quarter of the time.

    More models are returned as they are, since torch sums some columns of the two in different orders.
    """
    wide = torch.promote_types(values_TE.dtype, torch.float32)
    return values_TE.to(wide) if len(values_TE) <= LEFT_TO_RIGHT else values_TE


def rounded_like(narrow: Tensor, values: Tensor) -> Tensor:
    """Round values to the dtype of `narrow`, in place and in their own dtype."""
    return values if values.dtype == narrow.dtype else values.copy_(values.to(narrow.dtype))


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


TotalWeight = TypeVar("TotalWeight", float, Tensor)


def _checked(total: TotalWeight) -> TotalWeight:
    if abs(total) < SMALLEST_SUM:
        raise MethodError("linear: the weights sum to 0, so they cannot be normalised; set normalize: false")
    return total


def _sum(weight: PerModel) -> float:
    return _float32_sum(tuple(weight))


@lru_cache(maxsize=256)
def _float32_sum(weight: tuple[float, ...]) -> float:
    """Add up as torch does; cached, since most tensors of a model have the same weights."""
    return float(torch.tensor(weight, dtype=torch.float32).sum())
