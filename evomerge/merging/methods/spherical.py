"""Interpolation on the sphere for several models, and averages that depend on angles.

* NuSLERP and multi-SLERP: mergekit 0.1.5's methods of these names.
* Karcher mean: the point of the sphere with the least squared angles to all models (Karcher 1977).
* Model stock: Jang et al. 2024, arXiv:2403.19522.
* MetaGPT: Zhou et al. 2024, arXiv:2406.11385.

Each result is in the span of the models (or of their task vectors τ_t = θ_t − θ_0, when there is a base):
θ = θ_0 + Σ c_t τ_t, with coefficients c that depend on the tensors only through their Gram matrix
G = [⟨τ_s, τ_t⟩]. So G is prepared once, in float64 (nearly parallel vectors need it), all iteration happens on
T numbers, and apply is a weighted sum.

mergekit 0.1.5 works on the entries instead: `spherical_steps`. Deviations: the Karcher mean takes weights; model
stock's ratio is clamped to [0, 1], since for task vectors that disagree it is negative and diverges at cos = −1/(T−1).

Legend: T models, E entries of one block, K rows (or columns) that are treated apart, K = 1 for a whole tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal, TypeAlias

import torch
from torch import Tensor

from evomerge.merging.methods.formulas import TensorContext, WeightedSum
from evomerge.merging.methods.last_value_cache import LastValueCache
from evomerge.merging.methods.parameters import (
    Flag,
    Lambda,
    MethodError,
    PerModel,
    Real,
    optional_weight,
    required_weight,
)
from evomerge.merging.methods.registry import SourceGroup, WholeTensorState, merge_method
from evomerge.merging.methods.spherical_steps import (
    OPPOSED,
    SMALLEST_PRODUCT,
    SMALLEST_SUM,
    angle_between,
    second_share,
    stepwise_karcher,
    stepwise_model_stock,
    stepwise_multislerp,
    stepwise_nuslerp,
)

Parts: TypeAlias = Literal["whole", "rows", "columns"]
Terms: TypeAlias = Literal["models", "task vectors"]

STRETCH = 1 << 20


class Grams(WholeTensorState):
    """Inner products of a tensor's models (of their task vectors when there is a base), and coefficients from them."""

    def __init__(self, group: SourceGroup) -> None:
        self._group = group
        self.coefficients: LastValueCache[Tensor] = LastValueCache()
        """float64[K, T] for the parameters of the last call: the same for all blocks of a tensor."""
        self._grams: dict[Parts, Tensor] = {"whole": self._measure("whole")}

    def gram(self, parts: Parts = "whole") -> Tensor:
        """Return float64[K, T, T] for the parts that are treated as separate vectors."""
        if parts not in self._grams:
            self._grams[parts] = self._measure(parts)
        return self._grams[parts]

    def _measure(self, parts: Parts) -> Tensor:
        base, models = self._group.base, self._group.models
        shape = (-1, self._group.info.row)
        stretch = STRETCH if parts == "whole" else max(1, STRETCH // shape[1]) * shape[1]  # whole rows
        total: list[Tensor] = []
        for start in range(0, models[0].numel(), stretch):
            span = slice(start, start + stretch)
            vectors_TS = torch.stack([values[span].double() for values in models])
            if base is not None:
                vectors_TS -= base[span].double()
            if parts == "whole":
                total.append(torch.einsum("se,te->st", vectors_TS, vectors_TS)[None])
            else:
                subscripts = "sij,tij->ist" if parts == "rows" else "sij,tij->jst"
                vectors_TIJ = vectors_TS.view(len(models), *shape)
                total.append(torch.einsum(subscripts, vectors_TIJ, vectors_TIJ))
        gram = torch.cat(total) if parts == "rows" else torch.stack(total).sum(0)
        return gram.cpu()


class Angles(WholeTensorState):
    """The angle between a tensor's two models (their task vectors when there is a base), as mergekit computes it."""

    def __init__(self, group: SourceGroup) -> None:
        self._group = group
        self._angles: dict[Parts, tuple[Tensor, Tensor]] = {"whole": self._measure("whole")}

    def of(self, parts: Parts) -> tuple[Tensor, Tensor]:
        """Return the angles of the parts that are treated as separate vectors, float32[K], and which are colinear."""
        if parts not in self._angles:
            self._angles[parts] = self._measure(parts)
        return self._angles[parts]

    def _measure(self, parts: Parts) -> tuple[Tensor, Tensor]:
        group = self._group
        vectors = [values.float() for values in group.models] if group.base is None else list(group.deltas())
        if parts != "whole":
            vectors = [values.view(-1, group.info.row) for values in vectors]
        if parts == "columns":
            vectors = [values.transpose(0, -1) for values in vectors]
        angle, colinear = angle_between(*vectors)
        return angle.squeeze(-1), colinear.squeeze(-1)


@merge_method(
    "nuslerp",
    differentiable=("weight",),
    base="optional",
    min_models=2,
    max_models=2,
    stepwise=stepwise_nuslerp,
    prepare_all=Angles,
)
def nuslerp(
    tensor: TensorContext,
    *,
    weight: Annotated[
        PerModel, required_weight(0.0, 1.0, "Share of the model; their ratio is the position between the two.")
    ],
    nuslerp_flatten: Annotated[bool, Flag(True, "Take a tensor as one vector, not row by row.")],
    nuslerp_row_wise: Annotated[bool, Flag(False, "Without flattening: column by column.")],
) -> WeightedSum:
    """Spherical interpolation of two models, or of their task vectors when there is a base.

    C = (sin((1−t)Ω), sin(tΩ)) / sin Ω with t = w_2/(w_1+w_2); linear where the vectors are colinear.
    """
    parts: Parts = "whole" if nuslerp_flatten else "columns" if nuslerp_row_wise else "rows"
    if len(tensor.info.shape) == 1 and nuslerp_row_wise:
        parts = "whole"  # a vector's only column
    t = second_share(weight)
    angle_K, colinear_K = tensor.shared.of(parts)
    weights = [torch.where(colinear_K, share, torch.sin(share * angle_K)) for share in (1 - t, t)]
    divisor_K = torch.where(colinear_K, 1.0, torch.sin(angle_K))
    terms: Terms = "task vectors" if tensor.has_base else "models"
    if parts == "whole":
        return WeightedSum([float(each) for each in weights], terms, divisor=float(divisor_K))
    return WeightedSum(weights, terms, divisor=divisor_K, per="row" if parts == "rows" else "column")


@merge_method(
    "multislerp",
    differentiable=("weight",),
    base="optional",
    prepare_all=Grams,
    stepwise=stepwise_multislerp,
    stepwise_in_float32=True,
)
def multislerp(
    tensor: TensorContext,
    *,
    weight: Annotated[PerModel, required_weight(0.0, 1.0, "Share of the model.")],
    normalize_weights: Annotated[bool, Flag(True, "Divide by the sum of the weights.")],
    eps: Annotated[float, Real(doc="Smallest norm to divide by.", default=1e-8)],
) -> WeightedSum:
    """Barycentre of the models' directions in one tangent space of the sphere.

    Exp_m(Σ w_t (u_t − ⟨u_t, m⟩ m)) · Σ w_t ‖v_t‖ with u_t = v_t/‖v_t‖ and m = Σ w_t u_t, normalised.
    """
    return _combine(
        tensor,
        "whole",
        ("multislerp", *weight, normalize_weights, eps),
        lambda gram: _multislerp_coefficients(gram[0], _shares(weight) if normalize_weights else _vector(weight), eps),
    )


def _multislerp_coefficients(gram: Tensor, w_T: Tensor, eps: float) -> Tensor:
    if len(w_T) == 1:
        return torch.ones(1, 1, dtype=gram.dtype)
    norms_T = _norms(gram[None])[0]
    unit_T = 1 / (norms_T + eps)  # u_t = unit_t v_t
    mean_T = w_T * unit_T
    mean_norm = _length(gram, mean_T)
    if mean_norm < eps:
        if len(w_T) > 2 and bool((norms_T > eps).any()):
            raise MethodError(OPPOSED)
        return w_T[None]
    mean_T = mean_T / mean_norm
    cosines_T = unit_T * (gram @ mean_T)  # ⟨u_t, m⟩
    tangent_T = w_T * unit_T - (w_T @ cosines_T) * mean_T
    angle = _length(gram, tangent_T) + eps
    return ((mean_T * torch.cos(angle) + tangent_T * (torch.sin(angle) / angle)) * (w_T @ norms_T))[None]


@merge_method(
    "karcher",
    differentiable=("weight",),
    base="none",
    core_space="unsupported",
    prepare_all=Grams,
    stepwise=stepwise_karcher,
    stepwise_in_float32=True,
)
def karcher(
    tensor: TensorContext,
    *,
    weight: Annotated[PerModel, optional_weight("Share of the model.", extension=True)],
    max_iter: Annotated[float, Real(doc="Most steps of the iteration.", default=10.0)],
    tol: Annotated[float, Real(doc="Length of a step, in radians, at which it stops.", default=1e-5)],
) -> WeightedSum:
    """Mean of the models' directions on the sphere: the point with the least squared angles.

    U ← Exp_u(Σ α_t Log_u(u_t)) until the step is below `tol`; θ = (Σ α_t ‖θ_t‖) u, α = w/Σw.
    """
    return _combine(
        tensor,
        "whole",
        ("karcher", *weight, max_iter, tol),
        lambda gram: _karcher_coefficients(gram[0], _shares(weight), int(max_iter), tol),
    )


def _karcher_coefficients(gram: Tensor, share_T: Tensor, max_iter: int, tol: float) -> Tensor:
    if len(share_T) == 1:
        return torch.ones(1, 1, dtype=gram.dtype)
    norms_T = _norms(gram[None])[0]
    valid_T = norms_T > tol  # a zero vector has no direction
    if not bool(valid_T.any()):
        return torch.zeros(1, len(share_T), dtype=gram.dtype)
    unit_T = torch.where(valid_T, 1 / norms_T, 0.0)
    alpha_T = _shares((share_T * valid_T).tolist()) * valid_T
    mean_T = alpha_T * unit_T
    length = _length(gram, mean_T)
    first_T = torch.zeros_like(mean_T)
    first_T[int(valid_T.nonzero()[0])] = unit_T[valid_T][0]
    mean_T = first_T if length < tol else mean_T / length
    for _ in range(max_iter):
        cosine_T = (unit_T * (gram @ mean_T)).clamp(-1, 1)
        angle_T = torch.arccos(cosine_T)
        log_T = torch.where(angle_T < tol, 0.0, alpha_T * angle_T / torch.sin(angle_T).clamp(min=tol))
        step_T = log_T * unit_T - (log_T @ cosine_T) * mean_T
        step = _length(gram, step_T)
        if step < tol:
            break
        mean_T = torch.cos(step) * mean_T + torch.sin(step) * step_T / step
        mean_T = mean_T / _length(gram, mean_T)
    return (mean_T * (share_T @ norms_T))[None]


@merge_method(
    "model_stock",
    min_models=2,
    stepwise=stepwise_model_stock,
    stepwise_in_float32=True,
    deviation="its ratio is kept within [0, 1], where mergekit's is negative for task vectors that disagree",
    prepare_all=Grams,
)
def model_stock(
    tensor: TensorContext, *, filter_wise: Annotated[bool, Flag(False, "Measure angles row by row.")]
) -> WeightedSum:
    """Base plus the models' mean, as far as their task vectors agree in direction (arXiv:2403.19522).

    θ = r θ̄ + (1−r) θ_0, r = T cos/(1+(T−1) cos) in [0, 1], cos the mean cosine of pairs of task vectors.
    """
    parts: Parts = "rows" if filter_wise else "whole"
    return _combine(tensor, parts, ("model_stock", parts), _stock_coefficients)


def _stock_coefficients(gram: Tensor) -> Tensor:
    ratio_K = stock_ratio(gram).clamp(0, 1)
    count = gram.shape[-1]
    return (ratio_K / count)[:, None].expand(-1, count)


def stock_ratio(gram: Tensor) -> Tensor:
    """Return r [K] of a Gram matrix [K, T, T], not clamped."""
    count = gram.shape[-1]
    if count == 1:
        return torch.ones(len(gram), dtype=gram.dtype)
    norms = _norms(gram)
    products = (norms[:, :, None] * norms[:, None, :]).clamp(min=SMALLEST_PRODUCT)
    first, second = torch.triu_indices(count, count, offset=1)
    cosine_K = (gram / products).clamp(-1, 1)[:, first, second].mean(-1)
    denominator_K = 1 + (count - 1) * cosine_K
    return torch.where(denominator_K.abs() < SMALLEST_SUM, 0.0, count * cosine_K / denominator_K)


@merge_method("metagpt", differentiable=("lambda",), core_space="exact", prepare_all=Grams)
def metagpt(tensor: TensorContext, *, lambda_: Lambda) -> WeightedSum:
    """Task arithmetic with weights in proportion to the squared norms of the task vectors (arXiv:2406.11385).

    c_t = λ ‖τ_t‖² / Σ ‖τ_s‖².
    """
    return _combine(tensor, "whole", ("metagpt", lambda_), lambda gram: lambda_ * squared_shares(gram))


def squared_shares(gram: Tensor) -> Tensor:
    """Return each vector's part [K, T] of the sum of squared norms; equal parts of nothing."""
    squares = gram.diagonal(dim1=-2, dim2=-1)
    total = squares.sum(-1, keepdim=True)
    return torch.where(total > 0, squares / total, 1 / squares.shape[-1])


# --- coefficients into weights ---


def _combine(
    tensor: TensorContext, parts: Parts, key: tuple[object, ...], solve: Callable[[Tensor], Tensor]
) -> WeightedSum:
    """Return Σ c_t v_t (plus the base), the coefficients as `solve` gives them for the Gram matrix.

    `key` holds all that the coefficients depend on, because methods share the prepared state.
    """
    grams: Grams = tensor.shared
    terms: Terms = "task vectors" if tensor.has_base else "models"
    c_TK = grams.coefficients.get(key, lambda: solve(grams.gram(parts))).T
    if parts == "whole":
        return WeightedSum(c_TK[:, 0].tolist(), terms)
    return WeightedSum(list(c_TK), terms, per="row" if parts == "rows" else "column")


def _norms(gram: Tensor) -> Tensor:
    return gram.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()


def _length(gram: Tensor, c_T: Tensor) -> Tensor:
    """Return ‖Σ c_t v_t‖."""
    return (c_T @ gram @ c_T).clamp(min=0).sqrt()


def _vector(weight: PerModel) -> Tensor:
    return torch.tensor(list(weight), dtype=torch.float64)


def _shares(weight: PerModel) -> Tensor:
    w_T = _vector(weight)
    if abs(float(w_T.sum())) < SMALLEST_SUM:
        raise MethodError("the weights sum to 0, so they cannot be normalised; use weights above 0")
    return w_T / w_T.sum()
