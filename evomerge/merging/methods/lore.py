"""LoRE-Merging: models as low-rank changes of a base that is found with them (Liu et al. 2025, arXiv:2502.10749).

Needs no base. Per linear map, with ‖·‖_* the sum of singular values,

    min over θ_0 and all δ_t of  Σ ‖θ_0 + δ_t − θ_t‖² + μ Σ ‖δ_t‖_*

by coordinate descent from δ = 0: θ_0 = mean of θ_t − δ_t, then δ_t = U (S − μ/2)₊ Vᵀ of θ_t − θ_0 = U S Vᵀ, 20 times,
or until θ_0 stands still. Then θ = θ_0 + λ Σ w_t δ_t.

Ours, since the paper leaves it open or knows only one scale: the 20 steps, which decide the result, as several θ_0
may have the same minimum; μ/2 = `threshold` · the largest singular value of all θ_t − mean, so that it means the same
for every matrix; the δ_t are added up; norms, biases and tokens have δ_t = θ_t − mean, without a threshold. Two
models of equal weights give their average whatever the threshold: δ_2 = −δ_1. The paper's secondary sources square
the norm; the step above is that of the norm itself.

The descent does not know the weights: what it finds is kept for the last threshold. Another one costs a decomposition
of the smaller Gram matrix per model and step, and products of the components above the threshold. With two models θ_0
stays the mean, so that one decomposition gives δ_1 and δ_2 = −δ_1.
"""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from evomerge.merging.methods.blocks import Block, TensorInfo
from evomerge.merging.methods.last_value_cache import LastValueCache
from evomerge.merging.methods.linear import total_of
from evomerge.merging.methods.matrices import Nothing, precise
from evomerge.merging.methods.parameters import Factor, Lambda, Real
from evomerge.merging.methods.registry import Prepared, SourceGroup, WholeTensorState, merge_method

STEPS = 20
TOLERANCE = 1e-12
"""How far θ_0 still moves, over the largest θ_t − θ_0, when only rounding moves it."""


class LowRank(WholeTensorState):
    """The implied base θ_0 and every δ_t, float32[M, N] each, for the last threshold."""

    def __init__(self, group: SourceGroup) -> None:
        self._group = group
        self._found: LastValueCache[list[Tensor]] = LastValueCache()

    def at(self, threshold: float) -> list[Tensor]:
        """Return θ_0 and the δ_t."""

        def make() -> list[Tensor]:
            models = [precise(values).view(self._group.info.shape) for values in self._group.models]
            return [part_MN.float().reshape(-1) for part_MN in descend(models, threshold)]

        return self._found.get(threshold, make)


def low_rank(group: SourceGroup) -> Prepared:
    """Prepare for the descent, which the first threshold begins."""
    return LowRank(group) if group.info.is_matrix else Nothing()


def _shared_bytes(info: TensorInfo) -> float:
    return 4 if info.is_matrix else 0


@merge_method(
    "lore",
    base="none",
    min_models=1,
    core_space="unsupported",
    differentiable=("weight", "lambda"),
    prepare_all=low_rank,
    prepared_bytes=_shared_bytes,
    shared_bytes=_shared_bytes,
    scope="matrix",
)
def lore(
    block: Block,
    *,
    weight: Factor,
    threshold: Annotated[
        float, Real(0.0, 1.0, 0.1, "What is taken off singular values, over the largest.", default=0.1)
    ],
    lambda_: Lambda,
) -> None:
    """Low-rank changes of all models, added to the base that fits them best; needs no base (arXiv:2502.10749)."""
    if block.is_whole_matrix:
        base_E, *changes = block.shared.at(max(threshold, 0.0))
    else:
        models = block.models()
        base_E = total_of(models, block.spare("mean")).div_(len(models))
        changes = [values_E.sub_(base_E) for values_E in models]
    block.out.copy_(base_E)
    for change_E, w in zip(changes, weight, strict=True):
        block.out.add_(change_E, alpha=lambda_ * w)


def descend(models: list[Tensor], threshold: float) -> list[Tensor]:
    """Return θ_0 and the δ_t [M, N]."""
    if models[0].shape[0] > models[0].shape[1]:
        return [part_NM.T for part_NM in descend([model_MN.T for model_MN in models], threshold)]
    base_MN = torch.stack(models).mean(0)
    rests = [model_MN - base_MN for model_MN in models]
    if threshold <= 0:
        return [base_MN, *rests]
    if len(models) == 2:
        spectrum = Spectrum(rests[0])
        change_MN = spectrum.shrunk(threshold * spectrum.largest)
        return [base_MN, change_MN, -change_MN]
    spectra = [Spectrum(rest_MN) for rest_MN in rests]
    by = threshold * max(spectrum.largest for spectrum in spectra)
    far = max(float(torch.linalg.vector_norm(rest_MN)) for rest_MN in rests)
    for step in range(STEPS):
        if step:
            spectra = [Spectrum(model_MN - base_MN) for model_MN in models]
        changes = [spectrum.shrunk(by) for spectrum in spectra]
        moved_MN = (torch.stack(models) - torch.stack(changes)).mean(0)
        distance = float(torch.linalg.vector_norm(moved_MN - base_MN))
        base_MN = moved_MN
        if distance <= TOLERANCE * far:
            break
    return [base_MN, *changes]


class Spectrum:
    """Singular values and left vectors of a matrix X = U S Vᵀ with M <= N, from its Gram matrix."""

    def __init__(self, matrix_MN: Tensor) -> None:
        self._matrix_MN = matrix_MN
        self._squares_M, self._left_MM = torch.linalg.eigh(matrix_MN @ matrix_MN.T)  # ascending
        self.largest = float(self._squares_M[-1].clamp(min=0).sqrt())

    def shrunk(self, by: float) -> Tensor:
        """Return U (S − by)₊ Vᵀ, which is Σ (1 − by/s_i) u_i u_iᵀ X over the C components above `by`."""
        count = int((self._squares_M > by * by).sum())
        squares_C, left_MC = (part[..., len(part) - count :] for part in (self._squares_M, self._left_MM))
        return (left_MC * (1 - by / squares_C.sqrt())) @ (left_MC.T @ self._matrix_MN)
