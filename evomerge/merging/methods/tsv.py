"""TSV-M and R-TSVM: merging of task singular vectors (Gargiulo et al. 2024, arXiv:2412.00081).

TSV-M: per linear map, τ_t = U_t S_t V_tᵀ, of which each model keeps its R = ⌊K/T⌋ largest components. Side by side,
Û = [U_1 … U_T] and V̂ = [V_1 … V_T] are made orthogonal by their polar factors, P(X) = X (XᵀX)^{−½}, which takes away
the interference between tasks: θ = θ_0 + λ P(Û) diag(w_1 S_1, …, w_T S_T) P(V̂)ᵀ.

Weights scale a model's singular values (1 in the paper); a model may keep fewer components, max(1, round(rank_t ·
R)), which is 1 in the paper, and which AdaRank (arXiv:2503.22178) learns. All but the product is prepared, and kept
for the last ranks: other weights cost a product, other ranks T + 2 decompositions. The authors pad Û and V̂ with zero
columns; without them the result is the same. Where components of two models coincide exactly, Û has less than full
rank and its polar factor is not unique: LAPACK's choice in float64, as with the authors.

R-TSVM: Yang et al. 2025, arXiv:2502.06876. The same with weights by outliers and ranks by sparsity, per linear map.
The abstract names the two and no code is public; the formulas are ours:

    w̃_t = w_t T o_t / Σ o_s,  o_t = Σ |τ_t| over the entries with |τ_t| > mean + 3 standard deviations of |τ_t|
    rank_t = 1 − h_t,  h_t = (√n − ‖τ_t‖₁ / ‖τ_t‖₂) / (√n − 1)

h_t is Hoyer's sparsity: 0 for equal magnitudes, 1 for a single entry. Where no model has outliers, the weights stay
as they are.
"""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from evomerge.merging.methods.blocks import Block
from evomerge.merging.methods.last_value_cache import LastValueCache
from evomerge.merging.methods.matrices import (
    Nothing,
    Rank,
    Singular,
    add_to_base,
    average_others,
    bytes_of_components,
    delta_matrices,
    numbers_of_components,
    polar,
    share_of_components,
    singular,
)
from evomerge.merging.methods.parameters import Lambda, PerModel, optional_weight
from evomerge.merging.methods.registry import Prepared, SourceGroup, WholeTensorState, merge_method

Weight = Annotated[PerModel, optional_weight("Factor of the model's singular values.")]
FAR = 3.0  # standard deviations from which an entry is an outlier


class TaskSingularVectors(WholeTensorState):
    """Orthogonalised components of all models for the last ranks, C of them: left [M, C], values [C], right [C, N]."""

    def __init__(self, group: SourceGroup) -> None:
        self._group = group
        self._rank = share_of_components(group)
        self._found: LastValueCache[Singular] = LastValueCache()

    def at(self, parts: PerModel) -> Singular:
        """Return them when model t keeps a part of its share."""
        counts = tuple(numbers_of_components(parts, self._rank))
        return self._found.get(counts, lambda: orthogonalised(delta_matrices(self._group), counts))

    def merge(self, block: Block, weight: PerModel, parts: PerModel, lambda_: float) -> None:
        """Fill the block with the merge."""
        left_MC, values_C, right_CN = self.at(parts)
        counts = numbers_of_components(parts, self._rank)
        scale_C = torch.tensor(list(weight), device=values_C.device).repeat_interleave(
            torch.tensor(counts, device=values_C.device)
        )
        add_to_base(block, (left_MC * (values_C * scale_C)) @ right_CN, lambda_)


def task_singular_vectors(group: SourceGroup) -> Prepared:
    """Decompose and orthogonalise the task vectors of a linear map, with all components of every model's share."""
    if not group.info.is_matrix:
        return Nothing()
    state = TaskSingularVectors(group)
    state.at([1.0] * len(group.models))
    return state


@merge_method(
    "tsv_m",
    differentiable=("weight", "lambda"),
    prepare_all=task_singular_vectors,
    shared_bytes=bytes_of_components,
    scope="matrix",
)
def tsv_m(block: Block, *, weight: Weight, rank: Rank, lambda_: Lambda) -> None:
    """Sum of the models' main singular components, made orthogonal to each other (arXiv:2412.00081)."""
    if not block.is_whole_matrix:
        average_others(block, weight, lambda_)
        return
    block.shared.merge(block, weight, rank, lambda_)


class Reweighted(TaskSingularVectors):
    """The same at ranks by sparsity, and each model's share of the outliers."""

    def __init__(self, group: SourceGroup) -> None:
        super().__init__(group)
        sizes = [delta_MN.abs() for delta_MN in delta_matrices(group)]
        outliers_T = torch.stack([_outliers(size_MN) for size_MN in sizes])
        total = outliers_T.sum()
        shares_T = outliers_T * len(sizes) / total if total > 0 else torch.ones_like(outliers_T)
        self.shares: list[float] = shares_T.tolist()
        self.density = [1 - _sparsity(size_MN) for size_MN in sizes]
        self.at(self.density)


def reweighted(group: SourceGroup) -> Prepared:
    """Decompose and orthogonalise the task vectors of a linear map, and measure their outliers and sparsity."""
    return Reweighted(group) if group.info.is_matrix else Nothing()


@merge_method(
    "r_tsv_m",
    differentiable=("weight", "lambda"),
    prepare_all=reweighted,
    shared_bytes=bytes_of_components,
    scope="matrix",
)
def r_tsv_m(block: Block, *, weight: Weight, lambda_: Lambda) -> None:
    """TSV-M with weights by the models' outliers and ranks by their sparsity (arXiv:2502.06876)."""
    if not block.is_whole_matrix:
        average_others(block, weight, lambda_)
        return
    state: Reweighted = block.shared
    weighted = [w * share for w, share in zip(weight, state.shares, strict=True)]
    state.merge(block, weighted, state.density, lambda_)


def orthogonalised(deltas: list[Tensor], counts: tuple[int, ...]) -> Singular:
    """Return P(Û), the singular values and P(V̂)ᵀ of the `counts` largest components of each model."""
    kept = [singular(delta_MN).top(count) for delta_MN, count in zip(deltas, counts, strict=True)]
    left = polar(torch.cat([part.left_MK for part in kept], dim=1))
    right = polar(torch.cat([part.right_KN for part in kept]))
    return Singular(left, torch.cat([part.values_K for part in kept]), right).stored()


def _outliers(size_MN: Tensor) -> Tensor:
    return size_MN[size_MN > size_MN.mean() + FAR * size_MN.std(correction=0)].sum()


def _sparsity(size_MN: Tensor) -> float:
    root = size_MN.numel() ** 0.5
    norm = float(torch.linalg.vector_norm(size_MN))
    return (root - float(size_MN.sum()) / norm) / (root - 1) if norm > 0 and root > 1 else 0.0
