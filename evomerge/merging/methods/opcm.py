"""OPCM: orthogonal projection-based continual merging (Tang et al. 2025, arXiv:2501.09522).

Models come one after the other, in the recipe's order; of each, what is in the main directions of the merge so far
is left out. With S_1 = w_1 τ_1 and per linear map S_{t−1} = U diag(s) Vᵀ,

    P = Uᵀ τ_t V, with diag(P) = 0 and P[:r, :r] = 0;  S_t = S_{t−1} + w_t U P Vᵀ
    θ = θ_0 + λ a S_T / ‖S_T‖,  a = mean of ‖w_t τ_t‖

r is the number of leading components that together hold at most `alpha` of Σ s. Other tensors are added up without a
projection, and scaled in the same way. In the paper's terms S_t = λ_t Δ_t: its λ_t keeps the norm of the merge at
the mean of the task vectors' norms.

`merged` is for continual merging without the earlier models: the first model is itself a merge of so many. Then S_1 =
√merged w_1 τ_1, since λ_t ≈ √t (so the authors log it; exact for task vectors of equal norm that are orthogonal to
each other), and its norm counts `merged` times in a.

Deviations: norms are those of a tensor, where the paper takes the whole model's; components with s below 1e-5 of the
largest are rounding, have no directions of their own and are left alone; alpha = 1 projects off all others, where the
authors' code then projects off none. Weights are 1 in the paper.

Costs T − 1 decompositions per linear map; they are kept while `alpha` and the ratios of the earlier weights stay, so
that all weights of two models share one.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from torch import Tensor

from evomerge.merging.methods.blocks import Block
from evomerge.merging.methods.last_value_cache import LastValueCache
from evomerge.merging.methods.linear import total_of
from evomerge.merging.methods.matrices import add_to_base, delta_matrices, precise, singular
from evomerge.merging.methods.parameters import Factor, Lambda, PerModel, Real
from evomerge.merging.methods.registry import SourceGroup, WholeTensorState, merge_method

SMALLEST_VALUE = 1e-5
"""Of the largest singular value: below it are what rounding of the models' weights leaves of no change at all."""


class InTurn(WholeTensorState):
    """Inner products of the task vectors [T, T]; for linear maps also what the last coefficients left of each task
    vector but the first, float32[M, N].
    """

    def __init__(self, group: SourceGroup) -> None:
        self._group = group
        deltas = group.deltas()
        rows = [[float((a * b).sum(dtype=torch.float64)) for b in deltas] for a in deltas]
        self._products_TT = torch.tensor(rows, dtype=torch.float64)
        self._left: list[LastValueCache[Tensor]] = [LastValueCache() for _ in deltas]

    def norms(self, weight: PerModel) -> list[float]:
        """Return ‖w_t τ_t‖ of each model."""
        return [abs(w) * math.sqrt(square) for w, square in zip(weight, self._products_TT.diagonal(), strict=True)]

    def norm_of_sum(self, weight: PerModel) -> float:
        """Return ‖Σ w_t τ_t‖."""
        weight_T = torch.tensor(list(weight), dtype=torch.float64)
        return math.sqrt(max(float(weight_T @ self._products_TT @ weight_T), 0.0))

    def total(self, weight: PerModel, alpha: float) -> Tensor:
        """Return S_T [M, N] of a linear map."""
        deltas = delta_matrices(self._group)
        total_MN = deltas[0] * weight[0]
        for index, delta_MN in enumerate(deltas[1:], start=1):
            left_MN = self._left[index].get(
                (alpha, *_ratios(weight[:index])),
                lambda so_far=total_MN, new=delta_MN: projected(so_far, new, alpha).float(),  # type: ignore[misc]
            )
            total_MN.add_(precise(left_MN), alpha=weight[index])
        return total_MN


@merge_method(
    "opcm",
    differentiable=("weight", "lambda"),
    core_space="exact",
    prepare_all=InTurn,
    prepared_bytes=4,
    scope="matrix",
)
def opcm(
    block: Block,
    *,
    weight: Factor,
    alpha: Annotated[float, Real(0.0, 1.0, 0.5, "Part of the spectrum that a new model must not touch.", default=0.5)],
    merged: Annotated[float, Real(doc="Number of models, a whole number, that the first is a merge of.", default=1.0)],
    lambda_: Lambda,
) -> None:
    """Models merged in turn, each projected off the main directions of the merge so far (arXiv:2501.09522)."""
    state: InTurn = block.shared
    earlier = max(round(merged), 1)
    first, *others = state.norms(weight)
    norm = (earlier * first + sum(others)) / (earlier + len(others))
    parts = [math.sqrt(earlier) * weight[0], *weight[1:]]
    if block.is_whole_matrix:
        total_MN = state.total(parts, alpha)
        add_to_base(block, total_MN.float(), _ratio(lambda_ * norm, float(torch.linalg.vector_norm(total_MN))))
        return
    base_E, deltas = block.deltas()
    for delta_E, part in zip(deltas, parts, strict=True):
        delta_E.mul_(part)
    total_of(deltas, block.out).mul_(_ratio(lambda_ * norm, state.norm_of_sum(parts))).add_(base_E)


def projected(total_MN: Tensor, delta_MN: Tensor, alpha: float) -> Tensor:
    """Return U P Vᵀ: a task vector without its part in the main directions of a sum, and without its diagonal."""
    left_MK, values_K, right_KN = singular(total_MN)
    present = int((values_K > SMALLEST_VALUE * values_K[0]).sum())
    main = min(int((values_K.cumsum(0) <= alpha * values_K.sum()).sum()), present) if alpha < 1 else present
    found_MN = delta_MN.clone()
    left_MR, right_RN = left_MK[:, :main], right_KN[:main]
    found_MN -= left_MR @ (left_MR.T @ delta_MN @ right_RN.T) @ right_RN
    left_MD, right_DN = left_MK[:, main:present], right_KN[main:present]
    diagonal_D = ((left_MD.T @ delta_MN) * right_DN).sum(1)
    return found_MN.sub_((left_MD * diagonal_D) @ right_DN)


def _ratios(weight: PerModel) -> tuple[float, ...]:
    """Return the weights up to a common factor, on which directions do not depend."""
    scale = max(weight, key=abs) or 1.0
    return tuple(w / scale for w in weight)


def _ratio(value: float, divisor: float) -> float:
    return value / divisor if divisor > 0 else 0.0
