"""Isotropic merging: Iso-C and Iso-CTS (Marczak et al. 2025, arXiv:2502.04959).

Iso-C: per linear map, Σ w_t τ_t = U S Vᵀ; θ = θ_0 + λ s̄ U Vᵀ with s̄ the mean singular value: a flat spectrum, so
that no direction of one task drowns those of another. Iso-CTS: of those components, only the k = f·K largest stay as
common ones. Each model adds the R = (K − k)/T largest components of w_t τ_t − U_k U_kᵀ w_t τ_t, what the common ones
miss. Left and right vectors of all K are then made orthogonal (polar factors) and given s̄, the mean of all singular
values taken.

Weights are 1 in the papers. The spectrum depends on their ratios, and no decomposition of the single task vectors
gives that of another sum: what is kept are the last ratios, so that λ and a common factor cost nothing. For weights
that are all equal Iso-C is prepared; other ratios cost one decomposition of a Gram matrix [K, K] per linear map and
candidate. Iso-CTS needs this one, too, and smaller ones: of T matrices of (1 − f)K rows and of a Gram matrix of twice
as many. For a matrix of more rows than columns the T are of all K. Deviation: k is rounded so that R is whole, to the
nearest.

Kept Gram matrices τ_s τ_tᵀ would give that of any sum, which takes an eighth of the time of a decomposition, for
4 T (T + 1) bytes per entry of a square matrix. Polar factors by iterations (scaled Newton, QDWH) took 1.2 to 2 times as
long in float64, and in float32 they are inexact where singular values are small.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import torch
from torch import Tensor

from evomerge.merging.methods.blocks import Block, TensorInfo
from evomerge.merging.methods.last_value_cache import LastValueCache
from evomerge.merging.methods.matrices import (
    Nothing,
    add_to_base,
    average_others,
    delta_matrices,
    leading,
    leading_and_rest,
    polar,
    polar_and_values,
    polar_beside,
)
from evomerge.merging.methods.parameters import Factor, Lambda, PerModel, Real
from evomerge.merging.methods.registry import Prepared, SourceGroup, WholeTensorState, merge_method


class Flattened(WholeTensorState):
    """The merged task vector [M, N] for the last ratios of weights."""

    def __init__(self, group: SourceGroup) -> None:
        self._group = group
        self._merged: LastValueCache[Tensor] = LastValueCache()

    def merged(self, weight: PerModel, key: object, merge: Callable[[list[Tensor]], Tensor]) -> tuple[Tensor, float]:
        """Return ``merge(weighted task vectors)`` as a matrix and a factor: it is homogeneous in the weights."""
        scale = max(weight, key=abs)
        if scale == 0:
            scale = 1.0
        ratios = tuple(w / scale for w in weight)

        def make() -> Tensor:
            deltas = delta_matrices(self._group)
            return merge([delta_MN.mul_(ratio) for delta_MN, ratio in zip(deltas, ratios, strict=True)]).float()

        return self._merged.get((ratios, key), make), scale


def flattened(group: SourceGroup) -> Prepared:
    """Prepare Iso-C with equal weights."""
    if not group.info.is_matrix:
        return Nothing()
    state = Flattened(group)
    state.merged([1.0] * len(group.models), None, common)
    return state


def flattened_with_tasks(group: SourceGroup) -> Prepared:
    """Prepare Iso-CTS; its first call does the computation, for the fraction it is given."""
    return Flattened(group) if group.info.is_matrix else Nothing()


def _bytes(info: TensorInfo) -> float:
    return 4 if info.is_matrix else 0


@merge_method("iso_c", differentiable=("weight", "lambda"), prepare_all=flattened, shared_bytes=_bytes, scope="matrix")
def iso_c(block: Block, *, weight: Factor, lambda_: Lambda) -> None:
    """Sum of the task vectors with all its singular values made equal (arXiv:2502.04959)."""
    if not block.is_whole_matrix:
        average_others(block, weight, lambda_)
        return
    merged_MN, scale = block.shared.merged(weight, None, common)
    add_to_base(block, merged_MN, lambda_ * scale)


@merge_method(
    "iso_cts",
    differentiable=("weight", "lambda"),
    prepare_all=flattened_with_tasks,
    shared_bytes=_bytes,
    scope="matrix",
)
def iso_cts(
    block: Block,
    *,
    weight: Factor,
    common_fraction: Annotated[float, Real(0.0, 1.0, 0.8, "Fraction of directions in common.", default=0.8)],
    lambda_: Lambda,
) -> None:
    """Common and task-specific singular directions, all with one singular value (arXiv:2502.04959)."""
    if not block.is_whole_matrix:
        average_others(block, weight, lambda_)
        return
    merged_MN, scale = block.shared.merged(
        weight, common_fraction, lambda deltas: common_and_specific(deltas, common_fraction)
    )
    add_to_base(block, merged_MN, lambda_ * scale)


def common(deltas: list[Tensor]) -> Tensor:
    """Return s̄ U Vᵀ of the sum [M, N]."""
    factor_MN, values_K = polar_and_values(_total(deltas))
    return factor_MN * values_K.mean()


def common_and_specific(deltas: list[Tensor], fraction: float) -> Tensor:
    """Return s̄ P([U_1 … U_T U_c]) P([V_1 … V_T V_c])ᵀ [M, N].

    The U_t are in the complement of U_c, so both are made orthogonal apart; and where a basis of the complement is
    known, what the common ones miss is decomposed in it.
    """
    components = min(deltas[0].shape)
    specific = _specific_rank(components, len(deltas), fraction)
    shared, rest_MB = leading_and_rest(_total(deltas), components - specific * len(deltas))

    def missed(values: Tensor) -> Tensor:
        """Return the part of columns in the complement: [B, ·] in its basis, or [M, ·]."""
        return values - shared.left_MK @ (shared.left_MK.T @ values) if rest_MB is None else rest_MB.T @ values

    parts = [leading(missed(delta_MN), specific) for delta_MN in deltas]
    left_MC = torch.cat([part.left_MK for part in parts], dim=1)
    left_MC = polar(missed(left_MC)) if rest_MB is None else rest_MB @ polar(left_MC)
    right_KN = polar_beside(torch.cat([part.right_KN for part in parts]), shared.right_KN)
    values_K = torch.cat([*(part.values_K for part in parts), shared.values_K])
    return (torch.cat([left_MC, shared.left_MK], dim=1) * values_K.mean()) @ right_KN


def _specific_rank(components: int, models: int, fraction: float) -> int:
    """Return R, the components of each model, so that the common ones are about `fraction` of all."""
    wanted = (components - int(min(max(fraction, 0.0), 1.0) * components)) / models
    return min(round(wanted), components // models)


def _total(deltas: list[Tensor]) -> Tensor:
    return torch.stack(deltas).sum(0)
