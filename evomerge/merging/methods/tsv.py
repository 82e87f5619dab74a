"""TSV-M: merging of task singular vectors (Gargiulo et al. 2024, arXiv:2412.00081).

Per linear map, τ_t = U_t S_t V_tᵀ, of which each model keeps its R = ⌊K/T⌋ largest components. Side by side,
Û = [U_1 … U_T] and V̂ = [V_1 … V_T] are made orthogonal by their polar factors, P(X) = X (XᵀX)^{−½}, which takes away
the interference between tasks: θ = θ_0 + λ P(Û) diag(w_1 S_1, …, w_T S_T) P(V̂)ᵀ.

Weights scale a model's singular values (1 in the paper). All but the product is prepared. The authors pad Û and V̂ with
zero columns; without them the result is the same. Where components of two models coincide exactly, Û has less than
full rank and its polar factor is not unique: LAPACK's choice in float64, as with the authors.
"""

from __future__ import annotations

from typing import Annotated

import torch

from evomerge.merging.methods.blocks import Block, TensorInfo
from evomerge.merging.methods.matrices import Nothing, add_to_base, average_others, delta_matrices, polar, singular
from evomerge.merging.methods.parameters import Lambda, PerModel, optional_weight
from evomerge.merging.methods.registry import Prepared, SourceGroup, WholeTensorState, merge_method


class TaskSingularVectors(WholeTensorState):
    """Orthogonalised components of all models: left [M, T·R], values [T, R], right [T·R, N]."""

    def __init__(self, group: SourceGroup) -> None:
        deltas = delta_matrices(group)
        rank = max(min(group.info.shape) // len(deltas), 1)
        kept = [singular(delta_MN).top(rank) for delta_MN in deltas]
        self.left = polar(torch.cat([part.left_MK for part in kept], dim=1)).float()
        self.values_TR = torch.stack([part.values_K for part in kept]).float()
        self.right = polar(torch.cat([part.right_KN for part in kept])).float()


def task_singular_vectors(group: SourceGroup) -> Prepared:
    """Decompose and orthogonalise the task vectors of a linear map."""
    return TaskSingularVectors(group) if group.info.is_matrix else Nothing()


def _bytes(info: TensorInfo) -> float:
    """Both factors in float32, per entry; about, where T does not divide K."""
    return 4 * min(info.shape) * sum(info.shape) / (info.shape[0] * info.shape[1]) if info.is_matrix else 0


@merge_method(
    "tsv_m", differentiable=("weight", "lambda"), prepare_all=task_singular_vectors, shared_bytes=_bytes, scope="matrix"
)
def tsv_m(
    block: Block,
    *,
    weight: Annotated[PerModel, optional_weight("Factor of the model's singular values.")],
    lambda_: Lambda,
) -> None:
    """Sum of the models' main singular components, made orthogonal to each other (arXiv:2412.00081)."""
    if not block.is_whole_matrix:
        average_others(block, weight, lambda_)
        return
    vectors: TaskSingularVectors = block.shared
    weight_T = torch.tensor(list(weight), device=vectors.values_TR.device)
    scaled = (vectors.values_TR * weight_T[:, None]).view(-1)
    add_to_base(block, (vectors.left * scaled) @ vectors.right, lambda_)
