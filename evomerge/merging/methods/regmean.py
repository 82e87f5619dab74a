"""RegMean: the linear map nearest to every model's on that model's own inputs (Jin et al. 2023, arXiv:2212.09849).

Per linear map, with G_t = X_tᵀ X_t / tokens of the inputs X_t that model t's map reads on its text, W minimises
Σ w_t ‖X_t (W − W_t)ᵀ‖². Off-diagonal entries are multiplied by α (`reduction`): Ĝ_t = α G_t + (1 − α) diag(G_t), and

    W = (Σ w_t W_t Ĝ_t + r W̄) (Σ w_t Ĝ_t + r I)⁻¹,    r = ρ tr(Σ w_t Ĝ_t) / N,    W̄ = Σ w_t W_t / Σ w_t
      = W̄ + Σ w_t (W_t − W̄) Ĝ_t (Σ w_t Ĝ_t + r I)⁻¹,

computed as the second line says: it loses no digits to the models' common part. All other tensors are W̄. The ridge ρ
pulls channels that no text reaches, and directions that none has, to the average.

Deviations: the authors' code has no ridge and inverts in float32; here a Cholesky decomposition in float64. They
average other tensors with equal weights. α is 0.9 there, 0.5 in MergeBench.

Cost: one forward pass per model over its text; an [N, N] float32 matrix per distinct input on disk, mapped. A candidate
takes T products [M, N] × [N, N] and solves one [N, N] system per linear map.

Legend: T models, M rows and N columns of a linear map, E entries of one block.
"""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from evomerge.merging.methods.blocks import Block, TensorInfo
from evomerge.merging.methods.matrices import Nothing, precise
from evomerge.merging.methods.parameters import PerModel, Real, check_shares
from evomerge.merging.methods.registry import Prepared, SourceTensor, WholeTensorState, merge_method

SMALLEST = 1e-30  # ridge of a map whose inputs are all 0


class Regression(WholeTensorState):
    """G_t [N, N] of one model, float32."""

    def __init__(self, gram_NN: Tensor) -> None:
        self.gram_NN = gram_NN

    def reduced(self, alpha: float) -> Tensor:
        """Return Ĝ_t [N, N] in the precision of decompositions."""
        reduced_NN = precise(self.gram_NN) * alpha
        reduced_NN.diagonal().add_(precise(self.gram_NN.diagonal()), alpha=1 - alpha)
        return reduced_NN


def regression(source: SourceTensor) -> Prepared:
    """Prepare one model's part of the least squares of a linear map; nothing for tensors without a Gram matrix."""
    gram_NN = source.statistics.get("gram")
    if gram_NN is None or not source.info.is_matrix or gram_NN.shape[0] != source.info.shape[1]:
        return Nothing()
    return Regression(gram_NN)


def regression_bytes(info: TensorInfo) -> float:
    """Return the bytes per entry of a `Regression`."""
    return 4 * info.shape[1] / info.shape[0] if info.is_matrix else 0


@merge_method(
    "regmean",
    base="none",
    statistics=("gram",),
    prepare=regression,
    prepared_bytes=regression_bytes,
    scope="matrix",
)
def regmean(
    block: Block,
    *,
    weight: Annotated[PerModel, Real(0.05, 1.0, 0.5, "Weight of the model's inputs.", default=1.0)],
    reduction: Annotated[float, Real(0.0, 1.0, 0.9, "Factor of the Gram matrices off the diagonal.", default=0.9)],
    ridge: Annotated[float, Real(doc="Pull to the average, over the Gram matrices' mean eigenvalue.", default=1e-4)],
) -> None:
    """Least squares of all models' outputs on their own inputs, one linear map at a time (arXiv:2212.09849)."""
    solve(block, weight, reduction, ridge, "regmean")


def solve(block: Block, weight: PerModel, reduction: float, ridge: float, method: str) -> None:
    """Fill a block with the least squares' solution; one that is no linear map with a Gram matrix, with the average.

    Raises
    ------
    ValueError
        If the weights are no shares, or the ridge is 0.
    """
    check_shares(weight, method)
    if ridge <= 0:
        raise ValueError(
            f"{method}: without a ridge, the Gram matrices of channels that are idle or depend on each other are "
            "singular; write a number above 0 such as 0.0001"
        )
    mean_E = block.out.zero_()
    models = block.models()
    for values_E, w in zip(models, weight, strict=True):
        mean_E.add_(values_E, alpha=w / sum(weight))
    if not (block.is_whole_matrix and all(isinstance(state, Regression) for state in block.prepared)):
        return
    shape = block.info.shape
    mean_MN = precise(mean_E).view(shape)
    left_NN, right_MN = precise(mean_E).new_zeros(shape[1], shape[1]), torch.zeros_like(mean_MN)
    for state, values_E, w in zip(block.prepared, models, weight, strict=True):
        reduced_NN = state.reduced(reduction).mul_(w)
        left_NN.add_(reduced_NN)
        right_MN.addmm_(precise(values_E).view(shape) - mean_MN, reduced_NN)
    left_NN.diagonal().add_(ridge * float(left_NN.trace()) / shape[1] or SMALLEST)
    factor, failed = torch.linalg.cholesky_ex(left_NN)
    if int(failed):
        raise ValueError(f"{method}: a Gram matrix is singular to rounding with ridge {ridge}; write a larger one")
    block.out.copy_((mean_MN + torch.cholesky_solve(right_MN.T, factor).T).reshape(-1))
