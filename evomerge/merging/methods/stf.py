"""STF: superposed task-specific features (Qiu et al. 2025, arXiv:2502.10698).

Per linear map, τ_t = Σ s_{t,i} u_{t,i} v_{t,i}ᵀ: an input along the feature v_{t,i} moves the output by s_{t,i}
u_{t,i}. The merged τ has to move it likewise for the R_t largest components of every model at once,

    τ v_{t,i} = w_t s_{t,i} u_{t,i}   for all t and i;   τ = C (B Bᵀ)⁺ B,   θ = θ_0 + λ τ

with the rows of B all v_{t,i}ᵀ and the columns of C all w_t s_{t,i} u_{t,i}: the solution of least norm or, where
features of several models coincide, the one of least squares.

Ours, since we know the paper's steps only from its objective: R_t = max(1, round(rank_t · ⌊K/T⌋)), so that there are
no more equations than a linear map can meet; eigenvalues of B Bᵀ below 1e-6 count as 0; other tensors take the mean
of the task vectors. Weights are 1 in the paper.

Costs the components of every model once, then a product per candidate; other ranks one [T·R, T·R] decomposition.
"""

from __future__ import annotations

import torch
from torch import Tensor

from evomerge.merging.methods.blocks import Block, TensorInfo
from evomerge.merging.methods.matrices import (
    Rank,
    TaskComponents,
    add_to_base,
    average_others,
    bytes_of_components,
    precise,
    task_components,
)
from evomerge.merging.methods.parameters import Factor, Lambda
from evomerge.merging.methods.registry import merge_method

SMALLEST = 1e-6
"""Of the eigenvalues of B Bᵀ, which are between 0 and T."""


def _bytes(info: TensorInfo) -> float:
    """The components of all models, and the solved right factor."""
    return 1.5 * bytes_of_components(info)


@merge_method(
    "stf", differentiable=("weight", "lambda"), prepare_all=task_components, shared_bytes=_bytes, scope="matrix"
)
def stf(block: Block, *, weight: Factor, rank: Rank, lambda_: Lambda) -> None:
    """The task vector that maps the main singular features of every model as that model does (arXiv:2502.10698)."""
    if not block.is_whole_matrix:
        average_others(block, weight, lambda_)
        return
    state: TaskComponents = block.shared
    kept = state.kept(rank)
    left_MC = state.left[:, kept] * state.scaled_values(weight, kept)
    add_to_base(block, left_MC @ state.last(solved, kept), lambda_)


def solved(state: TaskComponents, kept: list[int]) -> Tensor:
    """Return (B Bᵀ)⁺ B, float32[C, N], for C kept features."""
    features_CN = precise(state.right[kept])
    values_C, vectors_CC = torch.linalg.eigh(features_CN @ features_CN.T)
    inverse_C = torch.where(values_C > SMALLEST, 1 / values_C, 0.0)
    return ((vectors_CC * inverse_C) @ (vectors_CC.T @ features_CN)).float()
