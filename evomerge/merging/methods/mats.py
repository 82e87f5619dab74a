"""MaTS: models matched in their task parameter subspaces, by conjugate gradients (Tam et al. 2023, arXiv:2312.04339).

Per linear map, with A_t = X_tᵀX_t / tokens of its inputs and B_t the same of the loss's gradients by its outputs, the
K-FAC approximation of model t's Fisher information is B_t ⊗ A_t, and the merge minimises Σ w_t (W − W_t)' (B_t ⊗ A_t)
(W − W_t) + r ‖W − W̄‖²: it solves

    Σ w_t B_t W A_t + r W = Σ w_t B_t W_t A_t + r W̄,    r = ρ Σ w_t tr(A_t) tr(B_t) / (M N),

by `steps` steps of conjugate gradients from the average W̄, where few steps are themselves a regularisation, as the
paper observes. All other tensors are W̄.

Deviations: A and B are means over a text's tokens, and B is the empirical Fisher's (of the text's own tokens); the
paper starts from other merges, too. There is no ridge there.

Cost: one forward pass per model over its text for A, and forward and backward passes for B, again for every group of
layers whose matrices fit into a gigabyte; both on disk, mapped. A candidate takes 2 T products per step and linear
map, in float64.

Legend: T models, M rows and N columns of a linear map.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import torch
from torch import Tensor

from evomerge.merging.methods.blocks import Block, TensorInfo
from evomerge.merging.methods.matrices import Nothing, average, precise
from evomerge.merging.methods.parameters import MethodError, PerModel, Real, check_shares
from evomerge.merging.methods.registry import Prepared, SourceTensor, WholeTensorState, merge_method


class Factors(WholeTensorState):
    """A_t [N, N] and B_t [M, M] of one model, float32."""

    def __init__(self, inputs_NN: Tensor, outputs_MM: Tensor) -> None:
        self.inputs_NN = inputs_NN
        self.outputs_MM = outputs_MM


def factors(source: SourceTensor) -> Prepared:
    """Return the factors of a linear map; nothing for other tensors."""
    inputs_NN, outputs_MM = (source.statistics.get(name) for name in ("gram", "output_gram"))
    shape = source.info.shape
    if inputs_NN is None or outputs_MM is None or (len(outputs_MM), len(inputs_NN)) != shape:
        return Nothing()
    return Factors(inputs_NN, outputs_MM)


def _bytes(info: TensorInfo) -> float:
    rows, columns = info.shape[0], info.shape[-1]
    return 4 * (rows**2 + columns**2) / (rows * columns) if info.is_matrix else 0


@merge_method(
    "mats", base="none", statistics=("gram", "output_gram"), prepare=factors, prepared_bytes=_bytes, scope="matrix"
)
def mats(
    block: Block,
    *,
    weight: Annotated[PerModel, Real(0.05, 1.0, 0.5, "Weight of the model's information.", default=1.0)],
    steps: Annotated[float, Real(doc="Steps of conjugate gradients, a whole number.", default=10.0)],
    ridge: Annotated[float, Real(doc="Pull to the average, over the mean eigenvalue.", default=1e-4)],
) -> None:
    """Nearest to all models by their K-FAC information, by conjugate gradients from the average (arXiv:2312.04339)."""
    check_shares(weight, "mats")
    if ridge <= 0:
        raise MethodError(
            "mats: without a ridge, directions that no text reaches have no solution; write a number above 0 such as "
            "0.0001"
        )
    models = block.models()
    mean_E = average(models, weight, out=block.out)
    if not (block.is_whole_matrix and all(isinstance(state, Factors) for state in block.prepared)):
        return
    shape = block.info.shape
    mean_MN = precise(mean_E).view(shape)
    pairs = [
        (precise(state.outputs_MM) * w, precise(state.inputs_NN))
        for state, w in zip(block.prepared, weight, strict=True)
    ]
    r = ridge * sum(float(b.trace() * a.trace()) for b, a in pairs) / mean_MN.numel()
    right_MN = torch.zeros_like(mean_MN)
    for (b, a), values_E in zip(pairs, models, strict=True):
        right_MN += b @ (precise(values_E).view(shape) - mean_MN) @ a

    def apply(x_MN: Tensor) -> Tensor:
        result = r * x_MN
        for b, a in pairs:
            result += b @ x_MN @ a
        return result

    block.out.copy_((mean_MN + conjugate_gradients(apply, right_MN, max(round(steps), 0))).reshape(-1))


def conjugate_gradients(apply: Callable[[Tensor], Tensor], right: Tensor, steps: int) -> Tensor:
    """Return an approximate solution x of apply(x) = right, from 0; `apply` is symmetric and positive."""
    x, rest = torch.zeros_like(right), right.clone()
    direction, size = rest.clone(), float(rest.square().sum())
    for _ in range(steps):
        if size == 0:
            break
        image = apply(direction)
        curvature = float((direction * image).sum())
        if curvature <= 0:
            break
        x += size / curvature * direction
        rest -= size / curvature * image
        last, size = size, float(rest.square().sum())
        direction = rest + size / last * direction
    return x
