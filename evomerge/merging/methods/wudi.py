"""WUDI's and OptMerge's quadratic in closed form, with a ridge.

WUDI: Cheng et al. 2025, arXiv:2503.08099. OptMerge: Wei et al. 2025, arXiv:2505.19892.

Per linear map, WUDI finds the τ that interferes least with each task vector on the inputs that the task vector itself
suggests: min Σ w_t ‖(τ − τ_t) τ_tᵀ‖² / ‖τ_t‖². With G_t = τ_tᵀ τ_t / ‖τ_t‖² and ridge r towards task arithmetic, + r
‖τ − Σ w_t τ_t‖², the minimum is

    τ = (Σ w_t τ_t G_t + r Σ w_t τ_t) (Σ w_t G_t + r I)⁻¹,    r = ρ Σ w_t / N,    θ = θ_0 + λ τ

ρ is the ridge in units of the mean eigenvalue of Σ w_t G_t: ρ → 0 is the exact minimum, ρ → ∞ task arithmetic.

OptMerge puts the part of τ_t in its R = ⌊K/T⌋ largest singular components in its place, and begins at the mean of the
task vectors: the same formula with τ̂_t = U_R S_R V_Rᵀ in G_t = τ̂_tᵀ τ̂_t / ‖τ_t‖² and in τ̂_t G_t, and with the
ridge towards Σ w_t τ_t / T.

Deviation: the papers stop gradient descent (Adam from Σ τ_t, 300 steps; OptMerge: momentum) long before the minimum,
which keeps their result near task arithmetic; the ridge does this with a number to choose. Weights are 1 in the
papers.

G_t and τ_t G_t, or the components, are prepared; a candidate solves one [N, N] system per linear map.
"""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from evomerge.merging.methods.blocks import Block, TensorInfo
from evomerge.merging.methods.matrices import (
    Nothing,
    TaskComponents,
    add_to_base,
    average_others,
    bytes_of_components,
    precise,
    task_components,
)
from evomerge.merging.methods.parameters import Factor, Lambda, PerModel, Real
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
    gram_NN, image_MN = _zeros(block)
    for part, w in zip(block.prepared, weight, strict=True):
        gram_NN.add_(part.gram_NN, alpha=w)
        image_MN.add_(part.image_MN, alpha=w)
    _solve(block, gram_NN, image_MN, weight, ridge, weight, lambda_)


@merge_method(
    "optmerge",
    differentiable=("weight", "lambda"),
    prepare_all=task_components,
    shared_bytes=bytes_of_components,
    scope="matrix",
)
def optmerge(
    block: Block,
    *,
    weight: Factor,
    ridge: Annotated[float, Real(0.01, 10.0, 0.1, "Pull towards the mean task vector, above 0.", default=0.1)],
    lambda_: Lambda,
) -> None:
    """The task vector that interferes least with each model's main part, pulled to the mean (arXiv:2505.19892)."""
    if not block.is_whole_matrix:
        average_others(block, weight, lambda_)
        return
    state: TaskComponents = block.shared
    values_TR, count = state.values_TR, len(weight)
    squares_T = torch.stack([delta_E.square().sum() for delta_E in block.deltas()[1]]).clamp(min=SMALLEST)
    share_T1 = (torch.tensor(list(weight), device=squares_T.device) / squares_T)[:, None]
    gram_NN = (state.right.T * (share_T1 * values_TR**2).view(-1)) @ state.right
    image_MN = (state.left * (share_T1 * values_TR**3).view(-1)) @ state.right
    _solve(block, gram_NN, image_MN, weight, ridge, [w / count for w in weight], lambda_)


def _zeros(block: Block) -> tuple[Tensor, Tensor]:
    rows, columns = block.info.shape
    device = block.out.device
    return torch.zeros(columns, columns, device=device), torch.zeros(rows, columns, device=device)


def _solve(
    block: Block,
    gram_NN: Tensor,
    image_MN: Tensor,
    weight: PerModel,
    ridge: float,
    pull: PerModel,
    lambda_: float,
) -> None:
    """Fill the block with θ_0 + λ τ, τ = (image + r Σ pull_t τ_t) (gram + r I)⁻¹; overwrites both."""
    columns = block.info.shape[1]
    r = max(ridge, 0.0) * sum(weight) / columns
    gram_NN.diagonal().add_(r or SMALLEST)
    for delta_E, part in zip(block.deltas()[1], pull, strict=True):
        image_MN.add_(delta_E.view(block.info.shape), alpha=part * r)
    solved_MN = torch.linalg.solve(precise(gram_NN), precise(image_MN), left=False)
    add_to_base(block, solved_MN.to(image_MN), lambda_)
