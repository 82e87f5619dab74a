"""CoPA-Merging, also RobustMerge: complementary adaptation of low-rank factors (Zeng et al. 2025, arXiv:2502.17159).

Small entries of an adapter's factors are cut, and each of its directions is scaled for what it lost. Per linear map,
τ_t = U S Vᵀ with the factors B = U √S and A = √S Vᵀ, of which the `density` largest entries stay: B̂ and Â. Then

    s_{t,i} = ‖A_i‖₁ / ‖Â_i‖₁ for each row i of A, at most 1/density; 1 where nothing is left
    ŝ_{t,i} = T s_{t,i} / Σ_s s_{s,i}, the normalisation over the tasks
    θ = θ_0 + λ Σ w_t B̂_t diag(ŝ_t) Â_t

Deviations: A and B are the singular factors, since an adapter's own are defined up to an invertible matrix only, so
that its components are paired by size and not by their place in the adapter; products are added up, where the
authors' code adds up A and B apart, which gives products of one model's A with another's B; a model with weight 1
keeps its size (their factors are doubled). Made for adapters (`adapters: core`), where it is a merge of small
matrices; merges of full models are possible.

The decompositions are prepared; a candidate costs a pass over the factors and a product per model.
"""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from evomerge.merging.methods.blocks import Block
from evomerge.merging.methods.matrices import Singular, average_others, bytes_of_components, components
from evomerge.merging.methods.parameters import Factor, Lambda, PerModel, kept_fraction
from evomerge.merging.methods.registry import merge_method
from evomerge.merging.methods.trimmed import number_kept


@merge_method(
    "copa",
    differentiable=("weight", "lambda"),
    prepare=components,
    prepared_bytes=bytes_of_components,
    scope="matrix",
)
def copa(
    block: Block,
    *,
    weight: Factor,
    density: Annotated[PerModel, kept_fraction("Fraction of the entries of both factors kept.")],
    lambda_: Lambda,
) -> None:
    """Low-rank factors cut by magnitude, their directions scaled for the loss, in balance (arXiv:2502.17159)."""
    if not block.is_whole_matrix:
        average_others(block, weight, lambda_)
        return
    cut = [_cut(prepared.singular, d) for prepared, d in zip(block.prepared, density, strict=True)]
    total_K = torch.stack([scale_K for _, scale_K, _ in cut]).sum(0)
    out_MN = block.out.copy_(block.base()).view(block.info.shape)
    for (left_MK, scale_K, right_KN), w in zip(cut, weight, strict=True):
        out_MN.addmm_(left_MK * (scale_K * len(cut) / total_K), right_KN, alpha=lambda_ * w)


def _cut(whole: Singular, density: float) -> Singular:
    """Return B̂ [M, K], s [K] and Â [K, N] of one model."""
    roots_K = whole.values_K.sqrt()
    left_MK, right_KN = _largest(whole.left_MK * roots_K, density), roots_K[:, None] * whole.right_KN
    kept_KN = _largest(right_KN, density)
    before_K, after_K = right_KN.abs().sum(1), kept_KN.abs().sum(1)
    scale_K = torch.where(after_K > 0, before_K / after_K, 1.0)
    return Singular(left_MK, scale_K.clamp(max=1 / density) if density > 0 else scale_K, kept_KN)


def _largest(factor: Tensor, density: float) -> Tensor:
    """Return a factor with its largest entries only; entries that equal the smallest of them stay."""
    kept = number_kept(density, factor.numel())
    if kept == factor.numel():
        return factor
    sizes = factor.abs()
    if kept == 0:
        return torch.zeros_like(factor)
    return factor * (sizes >= torch.kthvalue(sizes.reshape(-1), factor.numel() - kept + 1).values)
