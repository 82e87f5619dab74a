"""DOGE: adaptive projective gradient descent, in closed form (Wei et al. 2025, arXiv:2501.01230).

Per linear map, all task vectors get one correction Δ, so that their weighted sum s(Δ) = Σ λ_t (τ_t + Δ) disturbs no
model, while Δ stays out of the subspace that the models share:

    λ_t = w_t η n̄ / ‖τ_t‖, n̄ the mean of the ‖τ_t‖
    min over Δ = (I − P) Z of Σ_t Σ_m ⟨τ_{t,m}, τ_{t,m} − s(Δ)_m⟩² / ‖τ_{t,m}‖² + r ‖(Σ λ_t) Z‖²,  m the rows, r = 1e-6
    θ = θ_0 + Σ λ_t m_t ⊙ (τ_t + Δ),  m_t the `density` largest entries of |τ_t|

P projects on the ⌊subspace·K⌋ largest left singular vectors of [U_1 … U_T], each the ⌊K/T⌋ largest of its model.
The minimum follows from a [T·M, T·M] system, with the matrix (I − P) ⊙ (τ̂_t τ̂_sᵀ) of unit rows. It is linear in the
λ_t, so all its parts are prepared: a candidate is a weighted sum.

Deviations: the authors stop Adam after 400 steps of 1e-4 and take squares without dividing by ‖τ_{t,m}‖² (which
changes nothing where all terms can vanish); η is in units of n̄, where theirs (0.07) is the norm itself; m_t is per
tensor; tensors that are not linear maps take the weighted mean of the task vectors, where they keep the base's.

Preparing costs T decompositions and the system's Cholesky factorisation: 8 (T·M)² bytes for a moment.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from torch import Tensor

from evomerge.merging.methods.blocks import Block, TensorInfo
from evomerge.merging.methods.last_value_cache import LastValueCache
from evomerge.merging.methods.matrices import Nothing, average_others, delta_matrices, leading
from evomerge.merging.methods.parameters import Factor, PerModel, Real, kept_fraction
from evomerge.merging.methods.registry import Prepared, SourceGroup, WholeTensorState, merge_method
from evomerge.merging.methods.trimmed import number_kept

RIDGE = 1e-6
SUBSPACE = 1 / 6
SMALLEST = 1e-30  # to divide by


class Corrections(WholeTensorState):
    """Corrections of one subspace, float32[M, N] each: the one of λ = 0, and what each λ_t takes from it."""

    def __init__(self, group: SourceGroup) -> None:
        self._group = group
        self.norms = [float(torch.linalg.vector_norm(delta_MN)) for delta_MN in delta_matrices(group)]
        self._parts: LastValueCache[list[Tensor]] = LastValueCache()
        self._thresholds: LastValueCache[list[float]] = LastValueCache()
        self.parts(SUBSPACE)

    def parts(self, subspace: float) -> list[Tensor]:
        """Return D_0 and the D_t, flat: (Σ λ_t) Δ = D_0 − Σ λ_t D_t."""

        def make() -> list[Tensor]:
            return [part_MN.float().reshape(-1) for part_MN in corrections(delta_matrices(self._group), subspace)]

        return self._parts.get(subspace, make)

    def thresholds(self, deltas: tuple[Tensor, ...], density: PerModel) -> list[float]:
        """Return the smallest magnitude that each model keeps."""

        def make() -> list[float]:
            return [_threshold(delta_E, d) for delta_E, d in zip(deltas, density, strict=True)]

        return self._thresholds.get(tuple(density), make)


def prepared_corrections(group: SourceGroup) -> Prepared:
    """Solve for the corrections of a linear map."""
    return Corrections(group) if group.info.is_matrix else Nothing()


def _bytes(info: TensorInfo) -> float:
    return 4 if info.is_matrix else 0


@merge_method(
    "doge",
    differentiable=("weight",),
    prepare_all=prepared_corrections,
    prepared_bytes=_bytes,
    shared_bytes=_bytes,
    scope="matrix",
)
def doge(
    block: Block,
    *,
    weight: Factor,
    eta: Annotated[float, Real(0.1, 1.5, 0.3, "Norm of each task vector, over the mean of all.", default=0.3)],
    density: Annotated[PerModel, kept_fraction("Fraction of entries merged, the largest of the task vector.")],
    subspace: Annotated[float, Real(doc="Part of the directions that corrections leave alone.", default=SUBSPACE)],
) -> None:
    """Task vectors of equal norm with one correction that keeps their sum off each model's own (arXiv:2501.01230)."""
    if not block.is_whole_matrix:
        average_others(block, weight, 1.0)
        return
    state: Corrections = block.shared
    mean = sum(state.norms) / len(state.norms)
    factors = [w * eta * mean / norm if norm > 0 else 0.0 for w, norm in zip(weight, state.norms, strict=True)]
    start_E, *taken = state.parts(min(max(subspace, 0.0), 1.0))
    correction_E = block.spare("correction").copy_(start_E)
    for part_E, factor in zip(taken, factors, strict=True):
        correction_E.sub_(part_E, alpha=factor)
    correction_E.div_(sum(factors) or 1.0)
    base_E, deltas = block.deltas()
    out_E, kept_E = block.out.copy_(base_E), block.spare("kept")
    for delta_E, factor, least in zip(deltas, factors, state.thresholds(deltas, density), strict=True):
        torch.ge(torch.abs(delta_E, out=kept_E), least, out=kept_E)
        out_E.add_(delta_E.add_(correction_E).mul_(kept_E), alpha=factor)


def corrections(deltas: list[Tensor], subspace: float) -> list[Tensor]:
    """Return D_0 and the D_t [M, N]: the least that have the products ⟨τ_s, τ_s⟩, and ⟨τ_s, τ_t⟩, row by row."""
    rows, columns = deltas[0].shape
    components = min(rows, columns)
    rank = max(components // len(deltas), 1)
    lefts = torch.cat([leading(delta_MN, rank).left_MK for delta_MN in deltas], dim=1)
    shared = leading(lefts, min(int(subspace * components), *lefts.shape)).left_MK
    off_MM = torch.eye(rows, dtype=lefts.dtype, device=lefts.device) - shared @ shared.T
    units = [delta_MN / delta_MN.norm(dim=1, keepdim=True).clamp(min=SMALLEST) for delta_MN in deltas]
    stacked = torch.cat(units)  # [T·M, N]
    system = (stacked @ stacked.T).mul_(off_MM.repeat(len(deltas), len(deltas)))
    system.diagonal().add_(RIDGE)
    # one column of wanted products for each D: with the model itself, then with each τ_t
    own = torch.cat([(unit_MN * delta_MN).sum(1) for unit_MN, delta_MN in zip(units, deltas, strict=True)])
    others = [torch.cat([(unit_MN * delta_MN).sum(1) for unit_MN in units]) for delta_MN in deltas]
    solved = torch.cholesky_solve(torch.stack([own, *others], dim=1), torch.linalg.cholesky(system))
    shares = solved.view(len(deltas), rows, -1)
    found = []
    for index in range(shares.shape[2]):
        rows_MN = sum(share_M[:, None] * unit_MN for share_M, unit_MN in zip(shares[..., index], units, strict=True))
        found.append(off_MM @ rows_MN)
    return found


def _threshold(delta_E: Tensor, density: float) -> float:
    kept = number_kept(density, delta_E.numel())
    if kept == 0:
        return math.inf
    return float(torch.kthvalue(delta_E.abs(), delta_E.numel() - kept + 1).values)
