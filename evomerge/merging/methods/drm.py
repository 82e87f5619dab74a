"""Decom-Renorm-Merge, the horizontal form (Chaichana et al. 2025, arXiv:2505.23117).

Per linear map, the task vectors side by side are decomposed together, [τ_1 … τ_T] = U S [V_1 … V_T], singular values
below 1e-2 of the largest dropped: a basis U that all models share. The rows of each V_t are renormalised,
V̂_t = V_t/ρ_t with ρ_t their norms, trimmed to the `density` largest of all entries of V̂_t, and given back their
lengths, X_t = S ρ_t V̂_t. The X_t are merged as in TIES, with elected signs and a disjoint mean, and
θ = θ_0 + λ U X.

Weights multiply X_t (1 in the paper). The decomposition and the ranks are prepared.
"""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from evomerge.merging.methods.blocks import Block, TensorInfo
from evomerge.merging.methods.matrices import Nothing, add_to_base, average_others, delta_matrices, singular
from evomerge.merging.methods.parameters import Factor, Lambda, PerModel, kept_fraction
from evomerge.merging.methods.ranking import descending_ranks
from evomerge.merging.methods.registry import Prepared, SourceGroup, WholeTensorState, merge_method
from evomerge.merging.methods.trimmed import number_kept

SMALLEST_VALUE = 1e-2  # of the largest singular value
SMALLEST_NORM = 1e-12  # to divide by


class SharedBasis(WholeTensorState):
    """U [M, R]; per model X_t = S V_t [R, N], not trimmed, and the ranks of |V̂_t| [R·N]."""

    def __init__(self, group: SourceGroup) -> None:
        deltas = delta_matrices(group)
        whole = singular(torch.cat(deltas, dim=1))
        kept = max(int((whole.values_K >= SMALLEST_VALUE * whole.values_K[0]).sum()), 1)
        self.left_MR, values_R, right = whole.top(kept).stored()
        parts = right.split(group.info.shape[1], dim=1)
        self.parts = [values_R[:, None] * part_RN for part_RN in parts]
        self.ranks = [descending_ranks(_renormalised(part_RN).abs_().reshape(-1)) for part_RN in parts]


def shared_basis(group: SourceGroup) -> Prepared:
    """Decompose the task vectors of a linear map together."""
    return SharedBasis(group) if group.info.is_matrix else Nothing()


def _bytes(info: TensorInfo) -> float:
    """X and ranks of a model, and its part of U, per entry; less where components are dropped."""
    return 8 + 4 * min(info.shape[0] / info.shape[1], 1) if info.is_matrix else 0


@merge_method(
    "drm", differentiable=("weight", "lambda"), prepare_all=shared_basis, prepared_bytes=_bytes, scope="matrix"
)
def drm(
    block: Block,
    *,
    weight: Factor,
    density: Annotated[PerModel, kept_fraction("Fraction of the renormalised right singular entries kept.")],
    lambda_: Lambda,
) -> None:
    """Trim and elect signs in a singular basis that the models share (arXiv:2505.23117)."""
    if not block.is_whole_matrix:
        average_others(block, weight, lambda_)
        return
    basis: SharedBasis = block.shared
    trimmed = []
    for part_RN, rank, w, d in zip(basis.parts, basis.ranks, weight, density, strict=True):
        kept = rank < number_kept(d, part_RN.numel())
        trimmed.append((part_RN * w).mul_(kept.view(part_RN.shape)))
    add_to_base(block, basis.left_MR @ _disjoint_mean(trimmed, weight), lambda_)


def _disjoint_mean(parts: list[Tensor], weight: PerModel) -> Tensor:
    """Return Σ_A x_t / Σ_A w_t, A the models whose entry has the sign of the sum; 0 where there are none."""
    total_RN = torch.stack(parts).sum(0)
    sign_RN = torch.where(total_RN >= 0, 1.0, -1.0)
    merged_RN, divisor_RN = torch.zeros_like(total_RN), torch.zeros_like(total_RN)
    for part_RN, w in zip(parts, weight, strict=True):
        agrees_RN = part_RN * sign_RN > 0
        merged_RN.add_(part_RN * agrees_RN)
        divisor_RN.add_(agrees_RN, alpha=w)
    return merged_RN.div_(torch.where(divisor_RN == 0, 1.0, divisor_RN))


def _renormalised(part_RN: Tensor) -> Tensor:
    return part_RN / part_RN.norm(dim=1, keepdim=True).clamp(min=SMALLEST_NORM)
