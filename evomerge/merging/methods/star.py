"""STAR: spectral truncation and rescaling (Lee et al. 2025, arXiv:2502.10339).

Per linear map, τ_t = U S Vᵀ; keep the r largest components with Σ_{i≤r} s_i ≥ η % of Σ s_i, and restore the sum:
τ̃_t = (Σ s_i / Σ_{i≤r} s_i) U_r S_r V_rᵀ. θ = θ_0 + λ Σ w_t τ̃_t / Σ w_t.

The decompositions are prepared; a candidate is a product per model.
"""

from __future__ import annotations

from typing import Annotated

import torch

from evomerge.merging.methods.blocks import Block
from evomerge.merging.methods.linear import add_and_merge
from evomerge.merging.methods.matrices import Singular, bytes_of_components, components
from evomerge.merging.methods.parameters import Flag, Lambda, PerModel, Real, optional_weight
from evomerge.merging.methods.registry import merge_method


@merge_method(
    "star", differentiable=("weight", "lambda"), prepare=components, prepared_bytes=bytes_of_components, scope="matrix"
)
def star(
    block: Block,
    *,
    weight: Annotated[PerModel, optional_weight("Share of the model.")],
    eta: Annotated[float, Real(10.0, 100.0, 40.0, "Percent of the nuclear norm kept.", default=40.0)],
    normalize: Annotated[bool, Flag(True, "Divide by the sum of the weights.")],
    lambda_: Lambda,
) -> None:
    """Average of task vectors truncated to part of their spectrum and rescaled to all of it (arXiv:2502.10339)."""
    if not block.is_whole_matrix:
        base_E, deltas = block.deltas()
        add_and_merge(block, base_E, deltas, weight=weight, normalize=normalize, lambda_=lambda_)
        return
    total = sum(weight) if normalize else 1.0
    out_MN = block.out.copy_(block.base()).view(block.info.shape)
    for prepared, w in zip(block.prepared, weight, strict=True):
        left_MR, values_R, right_RN = truncated(prepared.singular, eta)
        out_MN.addmm_(left_MR * values_R, right_RN, alpha=lambda_ * w / (total or 1.0))


def truncated(whole: Singular, eta: float) -> Singular:
    """Return the largest components that make up `eta` percent of the sum, rescaled to the whole sum."""
    cumulated_K = torch.cumsum(whole.values_K, 0)
    total = cumulated_K[-1]
    rank = len(cumulated_K)
    if eta < 100:
        rank = min(int(torch.searchsorted(cumulated_K, total * (eta / 100))) + 1, rank)
    left_MR, values_R, right_RN = whole.top(rank)
    kept = cumulated_K[rank - 1]
    return Singular(left_MR, values_R * torch.where(kept > 0, total / kept, 1.0), right_RN)
