"""The methods of `spherical` in mergekit 0.1.5's order of steps, each rounded to the models' dtype.

The angles of fine-tunes of one model are small, and small angles are lost first in rounding: what these steps give in
half precision is mergekit's result, and in float32 up to 64 units in the last place away from the exact one.

Legend: T models, n entries of the tensor.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from evomerge.merging.methods.parameters import MethodError, PerModel
from evomerge.merging.methods.registry import WholeTensor

SMALLEST_NORM = 1e-7  # to divide by
SMALLEST_SUM = 1e-6  # of weights, to divide by
COLINEAR = 1e-16  # of sin² of the angle
SMALLEST_PRODUCT = 1e-6  # of two norms, in model stock


# --- NuSLERP ---


def stepwise_nuslerp(tensor: WholeTensor, *, weight: PerModel, nuslerp_flatten: bool, nuslerp_row_wise: bool) -> Tensor:
    """Return `nuslerp`."""
    shape = tensor.models[0].shape
    vectors = list(tensor.models) if tensor.base is None else tensor.deltas()
    if nuslerp_flatten:
        vectors = [values.reshape(-1) for values in vectors]
    elif nuslerp_row_wise and len(shape) > 1:
        vectors = [values.reshape(-1, shape[-1]).transpose(0, 1) for values in vectors]
    first, second = vectors
    t = second_share(weight)
    angle, colinear = angle_between(first, second)
    arc = (torch.sin((1 - t) * angle) * first + torch.sin(t * angle) * second) / torch.sin(angle)
    merged = torch.where(colinear, (1 - t) * first + t * second, arc)
    if nuslerp_row_wise and not nuslerp_flatten and len(shape) > 1:
        merged = merged.transpose(0, 1)
    merged = merged.reshape(shape)
    return merged if tensor.base is None else tensor.base + merged


def second_share(weight: PerModel) -> float:
    """Return w_2 / (w_1 + w_2); ½ where the sum vanishes."""
    total = sum(weight)
    return 0.5 if abs(total) < SMALLEST_SUM else weight[1] / total


def angle_between(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Return the angles of vectors along the last dimension, and which are colinear, [..., 1]; those angles are π/2."""
    units = [values / torch.norm(values, dim=-1, keepdim=True).clamp(min=SMALLEST_NORM) for values in (first, second)]
    cosine = torch.sum(units[0] * units[1], dim=-1, keepdim=True).clamp(-1, 1)
    colinear = 1 - cosine.square() <= COLINEAR
    return torch.acos(torch.where(colinear, 0, cosine)), colinear


# --- multi-SLERP ---


def stepwise_multislerp(tensor: WholeTensor, *, weight: PerModel, normalize_weights: bool, eps: float) -> Tensor:
    """Return `multislerp`."""
    if len(tensor.models) == 1:
        return tensor.models[0]
    stacked = torch.stack(tensor.models)
    if tensor.base is not None:
        stacked -= tensor.base
    vector_Tn = stacked.view(len(stacked), -1)
    weight_T1 = torch.tensor(weight, dtype=stacked.dtype, device=stacked.device)
    if normalize_weights:
        weight_T1 = weight_T1 / weight_T1.sum()
    weight_T1 = weight_T1.view(-1, 1)
    merged = _barycentre(vector_Tn, weight_T1, eps).view(stacked.shape[1:])
    return merged if tensor.base is None else merged + tensor.base


def _barycentre(vector_Tn: Tensor, weight_T1: Tensor, eps: float) -> Tensor:
    norm_T1 = torch.norm(vector_Tn, dim=-1, keepdim=True)
    unit_Tn = vector_Tn / (norm_T1 + eps)
    mean_n = (unit_Tn * weight_T1).sum(0)
    length = torch.norm(mean_n)
    if bool(length < eps):
        if len(vector_Tn) > 2 and bool((norm_T1 > eps).any()):
            raise MethodError(OPPOSED)
        return (vector_Tn * weight_T1).sum(0)
    mean_n = mean_n / length
    tangent_Tn = unit_Tn - (unit_Tn * mean_n).sum(-1, keepdim=True) * mean_n
    step_n = (tangent_Tn * weight_T1).sum(0)
    angle = torch.norm(step_n) + eps
    point_n = mean_n * torch.cos(angle) + step_n * (torch.sin(angle) / angle)
    return point_n * (norm_T1 * weight_T1).squeeze(-1).sum()


OPPOSED = "multislerp: the weighted directions sum to zero, so they have no mean; use other weights, or linear"


# --- Karcher mean ---


def stepwise_karcher(tensor: WholeTensor, *, max_iter: float, tol: float) -> Tensor:
    """Return `karcher` with equal weights; lengths are float32 at least."""
    models = tensor.models
    if len(models) == 1:
        return models[0]
    wide = torch.promote_types(models[0].dtype, torch.float32)
    norms = [torch.linalg.vector_norm(values.to(wide)) for values in models]
    share = 1.0 / len(models)
    valid = [(values / norm).to(values.dtype) for values, norm in zip(models, norms, strict=True) if float(norm) > tol]
    if not valid:
        return torch.zeros_like(models[0])
    shares = [share / sum([share] * len(valid))] * len(valid)
    mean = _karcher_mean(valid, shares, int(max_iter), tol, wide)
    radius = sum((share * norm for norm in norms), start=torch.zeros_like(norms[0]))
    return radius * mean


def _karcher_mean(
    units: Sequence[Tensor], shares: Sequence[float], steps: int, tol: float, wide: torch.dtype
) -> Tensor:
    mean = torch.zeros_like(units[0])
    for share, unit in zip(shares, units, strict=True):
        mean += share * unit
    length = torch.linalg.vector_norm(mean.to(wide))
    mean = units[0].clone() if float(length) < tol else (mean / length).to(mean.dtype)
    for _ in range(steps):
        step = _tangent(mean, units, shares, tol)
        angle = torch.linalg.vector_norm(step.to(wide))
        if float(angle) < tol:
            break
        mean = (torch.cos(angle) * mean + torch.sin(angle) * (step / angle)).to(mean.dtype)
        length = torch.linalg.vector_norm(mean.to(wide))
        if float(length) > tol:
            mean = (mean / length).to(mean.dtype)
    return mean


def _tangent(mean: Tensor, units: Sequence[Tensor], shares: Sequence[float], tol: float) -> Tensor:
    """Return Σ α_t Log_u(u_t)."""
    tangent = torch.zeros_like(mean)
    for share, unit in zip(shares, units, strict=True):
        cosine = torch.clamp(torch.dot(mean.flatten(), unit.flatten()), -1.0, 1.0)
        angle = torch.arccos(cosine)
        if float(angle) >= tol:
            tangent += share * (angle / torch.sin(angle)) * (unit - cosine * mean)
    return tangent


# --- model stock ---


def stepwise_model_stock(tensor: WholeTensor, *, filter_wise: bool) -> Tensor:
    """Return `model_stock`; its ratio is kept within [0, 1] here, too."""
    shape = tensor.origin.shape
    rows = (-1,) if not filter_wise else (1, -1) if len(shape) == 1 else shape
    base, models = tensor.origin.reshape(rows), [values.reshape(rows) for values in tensor.models]
    mean = sum(models[1:], start=models[0]) / len(models)
    ratio = _stock_ratio([values - base for values in models]).clamp(0, 1)
    return (ratio * mean + (1 - ratio) * base).reshape(shape)


def _stock_ratio(deltas: Sequence[Tensor]) -> Tensor:
    """Return r of vectors along the last dimension, [..., 1]."""
    count = len(deltas)
    cosines = []
    for index, first in enumerate(deltas):
        for second in deltas[index + 1 :]:
            norms = torch.norm(first, dim=-1) * torch.norm(second, dim=-1)
            cosines.append(((first * second).sum(dim=-1) / norms.clamp(min=SMALLEST_PRODUCT)).clamp(-1, 1))
    cosine = torch.stack(cosines).mean(dim=0).unsqueeze(-1)
    divisor = 1 + (count - 1) * cosine
    singular = divisor.abs() < SMALLEST_SUM
    return torch.where(singular, 0, count * cosine / torch.where(singular, 1, divisor))
