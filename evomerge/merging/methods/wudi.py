"""WUDI's quadratic in closed form, with a ridge (Cheng et al. 2025, arXiv:2503.08099; OptMerge, arXiv:2505.19892).

Per linear map, WUDI finds the τ that interferes least with each task vector on the inputs that the task vector
itself suggests: min Σ w_t ‖(τ − τ_t) τ_tᵀ‖² / ‖τ_t‖². With G_t = τ_tᵀ τ_t / ‖τ_t‖² and ridge r towards task arithmetic,
+ r ‖τ − Σ w_t τ_t‖², the minimum is

    τ = (Σ w_t τ_t G_t + r Σ w_t τ_t) (Σ w_t G_t + r I)⁻¹,    r = ρ Σ w_t / N,    θ = θ_0 + λ τ

ρ is the ridge in units of the mean eigenvalue of Σ w_t G_t: ρ → 0 is the exact minimum, ρ → ∞ task arithmetic.

Deviation: the papers stop gradient descent (Adam from Σ τ_t, 300 steps) long before the minimum, which keeps their
result near task arithmetic; the ridge does this with a number to choose. Weights are 1 in the papers.

G_t and τ_t G_t are prepared; a candidate solves one [N, N] system per linear map.
"""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from evomerge.merging.methods.blocks import Block, TensorInfo
from evomerge.merging.methods.matrices import Nothing, add_to_base, average_others, precise
from evomerge.merging.methods.parameters import Factor, Lambda, Real
from evomerge.merging.methods.registry import Prepared, SourceTensor, WholeTensorState, merge_method

SMALLEST = 1e-30  # to divide by


class Interference(WholeTensorState):
    """G_t [N, N] and τ_t G_t [M, N] of one model."""

    def __init__(self, delta_MN: Tensor) -> None:
        self.gram_NN = (delta_MN.T @ delta_MN).div_(delta_MN.square().sum().clamp(min=SMALLEST))
        self.image_MN = delta_MN @ self.gram_NN


def interference(source: SourceTensor) -> Prepared:
    """Prepare one model's part of the quadratic for a linear map."""
    return Interference(source.delta().view(source.info.shape)) if source.info.is_matrix else Nothing()


def _bytes(info: TensorInfo) -> float:
    return 4 * (1 + info.shape[1] / info.shape[0]) if info.is_matrix else 0


@merge_method("wudi", differentiable=("weight", "lambda"), prepare=interference, prepared_bytes=_bytes, scope="matrix")
def wudi(
    block: Block,
    *,
    weight: Factor,
    ridge: Annotated[float, Real(0.01, 10.0, 0.1, "Pull towards task arithmetic, above 0.", default=0.1)],
    lambda_: Lambda,
) -> None:
    """The task vector that interferes least with each model's, pulled towards task arithmetic (arXiv:2503.08099)."""
    if not block.is_whole_matrix:
        average_others(block, weight, lambda_)
        return
    columns = block.info.shape[1]
    r = max(ridge, 0.0) * sum(weight) / columns
    right_MN = torch.zeros(block.info.shape, device=block.out.device)
    left_NN = torch.eye(columns, device=block.out.device).mul_(r or SMALLEST)
    _, deltas = block.deltas()
    for part, delta_E, w in zip(block.prepared, deltas, weight, strict=True):
        left_NN.add_(part.gram_NN, alpha=w)
        right_MN.add_(part.image_MN, alpha=w).add_(delta_E.view(block.info.shape), alpha=w * r)
    solved_MN = torch.linalg.solve(precise(left_NN), precise(right_MN), left=False)
    add_to_base(block, solved_MN.to(right_MN), lambda_)
