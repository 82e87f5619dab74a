"""Shared by the spectral methods, which decompose linear maps and average all other tensors.

A linear map is a matrix that is not an embedding or the output projection (`TensorInfo.is_matrix`). Norms, biases,
tokens and stacks of matrices take the weighted mean of the task vectors, as the papers do for all but linear maps.
GPT-2's `Conv1D` stores its maps transposed; they are decomposed as stored.

Decompositions run in float64 (float32 where the device has none) and are stored in float32: where singular values are
nearly equal or nearly zero, float32 would leave the singular vectors to rounding.

Legend: T models, M rows and N columns of a matrix, K = min(M, N), R components kept, E entries of one block.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from evomerge.merging.methods.blocks import Block
from evomerge.merging.methods.linear import total_of
from evomerge.merging.methods.parameters import PerModel
from evomerge.merging.methods.registry import SourceGroup, WholeTensorState


class Singular(NamedTuple):
    """A singular value decomposition: left [M, K], values [K] descending, right [K, N]."""

    left_MK: Tensor
    values_K: Tensor
    right_KN: Tensor

    def top(self, count: int) -> Singular:
        """Return the `count` largest components."""
        return Singular(self.left_MK[:, :count], self.values_K[:count], self.right_KN[:count])

    def stored(self) -> Singular:
        """Return float32 copies that share no memory with the decomposition."""
        return Singular(*(part.float().contiguous() for part in self))


class Nothing(WholeTensorState):
    """The prepared state of a tensor for which a method prepares nothing."""


def singular(matrix_MN: Tensor) -> Singular:
    """Decompose a matrix, in its own dtype."""
    return Singular(*torch.linalg.svd(matrix_MN, full_matrices=False))


def polar(matrix_MR: Tensor) -> Tensor:
    """Return the nearest matrix with orthonormal columns (rows, if it is wide): A B of X = A Σ B."""
    left, _, right = torch.linalg.svd(matrix_MR, full_matrices=False)
    return left @ right


def delta_matrices(group: SourceGroup) -> list[Tensor]:
    """Return the task vectors as [M, N], in the precision of decompositions."""
    return [precise(delta).view(group.info.shape) for delta in group.deltas()]


def precise(values: Tensor) -> Tensor:
    """Return float64, or float32 on devices without."""
    return values.float() if values.device.type == "mps" else values.double()


def add_to_base(block: Block, matrix_MN: Tensor, lambda_: float) -> None:
    """Fill the block with θ_0 + λ τ."""
    torch.add(block.base(), matrix_MN.reshape(-1), alpha=lambda_, out=block.out)


def average_others(block: Block, weight: PerModel, lambda_: float) -> None:
    """Fill a block of a tensor that is not a linear map: θ_0 + λ Σ w_t τ_t / T."""
    base_E, deltas = block.deltas()
    for delta_E, w in zip(deltas, weight, strict=True):
        delta_E.mul_(w)
    total_of(deltas, block.out).mul_(lambda_ / len(deltas)).add_(base_E)
