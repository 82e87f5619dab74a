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

RegMean++ (arXiv:2508.03121) is the same where X_t are the inputs that model t's layer has behind the *merged* layers
before it, so that a layer corrects what the merge of the earlier ones has changed; α is 0.1 there. Deviation: those
layers are merged with equal weights, α = 0.1 and ρ = 0.0001, whatever the recipe's own are, so that the matrices are
measured once for all candidates; at these defaults the result is the paper's. Cost: three passes of one layer after the
other through each model's text.

Legend: T models, M rows and N columns of a linear map, E entries of one block.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Tensor

from evomerge.merging.methods.blocks import Block, TensorInfo
from evomerge.merging.methods.matrices import Nothing, average, precise
from evomerge.merging.methods.parameters import MethodError, PerModel, Real, check_shares
from evomerge.merging.methods.registry import Prepared, SourceTensor, WholeTensorState, merge_method

SMALLEST = 1e-30  # ridge of a map whose inputs are all 0


RIDGE = 1e-4
REDUCTION_PLUS_PLUS = 0.1


class Regression(WholeTensorState):
    """G_t [N, N] of one model, float32."""

    def __init__(self, gram_NN: Tensor) -> None:
        self.gram_NN = gram_NN


def reduced(gram_NN: Tensor, alpha: float) -> Tensor:
    """Return α G + (1 − α) diag(G), [N, N], in the precision of decompositions."""
    reduced_NN = precise(gram_NN) * alpha
    reduced_NN.diagonal().add_(precise(gram_NN.diagonal()), alpha=1 - alpha)
    return reduced_NN


def least_squares(
    models: Sequence[Tensor], grams: Sequence[Tensor], ridge: float, weight: Sequence[float] | None = None
) -> Tensor:
    """Return the solution W [M, N].

    Parameters
    ----------
    models, grams
        W_t [M, N] and Ĝ_t [N, N], in the precision of decompositions.
    ridge
        ρ, above 0.
    weight
        w_t; None: 1.

    Raises
    ------
    MethodError
        If the system is singular to rounding.
    """
    shares = [1.0] * len(models) if weight is None else weight
    mean_MN = torch.zeros_like(models[0])
    for values_MN, w in zip(models, shares, strict=True):
        mean_MN.add_(values_MN, alpha=w / sum(shares))
    left_NN, right_MN = torch.zeros_like(grams[0]), torch.zeros_like(mean_MN)
    for values_MN, gram_NN, w in zip(models, grams, shares, strict=True):
        left_NN.add_(gram_NN, alpha=w)
        right_MN.addmm_(values_MN - mean_MN, gram_NN, alpha=w)
    left_NN.diagonal().add_(ridge * float(left_NN.trace()) / len(left_NN) or SMALLEST)
    factor, failed = torch.linalg.cholesky_ex(left_NN)
    if int(failed):
        raise MethodError(f"the Gram matrices are singular to rounding with ridge {ridge}; write a larger one")
    return mean_MN + torch.cholesky_solve(right_MN.T, factor).T


def regression(source: SourceTensor) -> Prepared:
    """Return the Gram matrix of a linear map; nothing for tensors without."""
    return _state(source, "gram")


def merged_regression(source: SourceTensor) -> Prepared:
    """Return the Gram matrix of a linear map behind merged layers; nothing for tensors without."""
    return _state(source, "merged_gram")


def _state(source: SourceTensor, statistic: str) -> Prepared:
    gram_NN = source.statistics.get(statistic)
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
    ridge: Annotated[float, Real(doc="Pull to the average, over the Gram matrices' mean eigenvalue.", default=RIDGE)],
) -> None:
    """Least squares of all models' outputs on their own inputs, one linear map at a time (arXiv:2212.09849)."""
    solve(block, weight, reduction, ridge, "regmean")


@merge_method(
    "regmean_plus_plus",
    base="none",
    statistics=("merged_gram",),
    prepare=merged_regression,
    prepared_bytes=regression_bytes,
    scope="matrix",
)
def regmean_plus_plus(
    block: Block,
    *,
    weight: Annotated[PerModel, Real(0.05, 1.0, 0.5, "Weight of the model's inputs.", default=1.0)],
    reduction: Annotated[
        float,
        Real(0.0, 1.0, 0.1, "Factor of the Gram matrices off the diagonal.", default=REDUCTION_PLUS_PLUS),
    ],
    ridge: Annotated[float, Real(doc="Pull to the average, over the Gram matrices' mean eigenvalue.", default=RIDGE)],
) -> None:
    """RegMean on the inputs that the merged layers before give (RegMean++, arXiv:2508.03121)."""
    solve(block, weight, reduction, ridge, "regmean_plus_plus")


def solve(block: Block, weight: PerModel, reduction: float, ridge: float, method: str) -> None:
    """Fill a block with the least squares' solution; one that is not a linear map with a Gram matrix, with the average.

    Raises
    ------
    MethodError
        If the weights are not shares, or the ridge is 0.
    """
    check_shares(weight, method)
    if ridge <= 0:
        raise MethodError(
            f"{method}: without a ridge, the Gram matrices of channels that are idle or depend on each other are "
            "singular; write a number above 0 such as 0.0001"
        )
    models = block.models()
    average(models, weight, out=block.out)
    if not (block.is_whole_matrix and all(isinstance(state, Regression) for state in block.prepared)):
        return
    values = [precise(values_E).view(block.info.shape) for values_E in models]
    grams = [reduced(state.gram_NN, reduction) for state in block.prepared]
    try:
        block.out.copy_(least_squares(values, grams, ridge, weight).reshape(-1))
    except MethodError as error:
        raise MethodError(f"{method}: {error}") from None
