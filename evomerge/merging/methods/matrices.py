"""Shared by the spectral methods, which decompose linear maps and average all other tensors.

A linear map is a matrix that is not an embedding or the output projection (`TensorInfo.is_matrix`). Norms, biases,
tokens and stacks of matrices take the weighted mean of the task vectors, as the papers do for all but linear maps.
GPT-2's `Conv1D` stores its maps transposed; they are decomposed as stored.

Decompositions run in float64 (float32 where the device has none) and are stored in float32: where singular values are
nearly equal or nearly zero, float32 would leave the singular vectors to rounding.

Where only the largest components or a polar factor are asked for, they follow from the eigenvectors of the smaller
Gram matrix, [K, K]: two to three times faster than a singular value decomposition (measured at K = 576, one thread).
That squares the singular values, so it is done only where those that count are above 1e-4 of the largest; then it
changes results by about 1e-8. Else the decomposition itself is computed.

Legend: T models, M rows and N columns of a matrix, K = min(M, N), R components kept, E entries of one block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple, TypeAlias, TypeVar

import torch
from torch import Tensor

from evomerge.merging.methods.blocks import Block, TensorInfo
from evomerge.merging.methods.last_value_cache import LastValueCache
from evomerge.merging.methods.linear import total_of
from evomerge.merging.methods.parameters import PerModel, Real
from evomerge.merging.methods.registry import Prepared, SourceGroup, SourceTensor, WholeTensorState

SMALLEST_VALUE = 1e-4
"""Of the largest singular value: what a Gram matrix in float64 tells apart from 0."""

Rank: TypeAlias = Annotated[
    PerModel, Real(0.05, 1.0, 1.0, "Part of the model's share of the components, K/T, that it keeps.", default=1.0)
]
Found = TypeVar("Found")


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


def leading(matrix_MN: Tensor, count: int) -> Singular:
    """Return the `count` largest components of a matrix, in its own dtype."""
    if matrix_MN.shape[0] > matrix_MN.shape[1]:
        right_NK, values_K, left_KM = leading(matrix_MN.T, count)
        return Singular(left_KM.T, values_K, right_NK.T)
    found = _by_gram(matrix_MN, count)
    if found is None:
        return singular(matrix_MN).top(count)
    return _top(matrix_MN, *found, count)


def _top(matrix_MN: Tensor, values_M: Tensor, left_MM: Tensor, count: int) -> Singular:
    """Return the largest components of a wide matrix from its singular values and left vectors."""
    values_R, left_MR = values_M[:count], left_MM[:, :count]
    return Singular(left_MR, values_R, (left_MR / values_R).T @ matrix_MN)


def leading_and_rest(matrix_MN: Tensor, count: int) -> tuple[Singular, Tensor | None]:
    """Return what `leading` does, and the other left vectors, an orthonormal basis [M, M − count].

    None instead of the basis for a matrix of more rows than columns, whose left vectors do not span the space.
    """
    if matrix_MN.shape[0] > matrix_MN.shape[1]:
        return leading(matrix_MN, count), None
    found = _by_gram(matrix_MN, count)
    if found is None:
        whole = singular(matrix_MN)
        return whole.top(count), whole.left_MK[:, count:]
    values_K, left_MK = found
    return _top(matrix_MN, values_K, left_MK, count), left_MK[:, count:]


def polar(matrix_MR: Tensor) -> Tensor:
    """Return the nearest matrix with orthonormal columns (rows, if it is wide): A B of X = A Σ B."""
    return polar_and_values(matrix_MR)[0]


def polar_and_values(matrix_MN: Tensor) -> tuple[Tensor, Tensor]:
    """Return the polar factor [M, N] and the singular values [K]."""
    if matrix_MN.shape[0] > matrix_MN.shape[1]:
        factor_NM, values_K = polar_and_values(matrix_MN.T)
        return factor_NM.T, values_K
    found = _by_gram(matrix_MN, len(matrix_MN))
    if found is None:
        left_MK, values_K, right_KN = singular(matrix_MN)
        return left_MK @ right_KN, values_K
    values_K, left_MK = found
    return (left_MK / values_K) @ (left_MK.T @ matrix_MN), values_K


def polar_beside(rows_XN: Tensor, orthonormal_YN: Tensor) -> Tensor:
    """Return the polar factor of two matrices, one above the other, of which the second has orthonormal rows.

    Only as many of those rows as there are rows in the first, after a rotation of them, are not orthogonal to it; the
    others stay. So the decomposition is of 2X rows instead of X + Y.
    """
    count = len(rows_XN)
    if count >= len(orthonormal_YN):
        return polar(torch.cat([rows_XN, orthonormal_YN]))
    rotation_YX = torch.linalg.qr(orthonormal_YN @ rows_XN.T).Q
    near_XN = rotation_YX.T @ orthonormal_YN
    factor = polar(torch.cat([rows_XN, near_XN]))
    return torch.cat([factor[:count], orthonormal_YN + rotation_YX @ (factor[count:] - near_XN)])


def _by_gram(matrix_MN: Tensor, count: int) -> tuple[Tensor, Tensor] | None:
    """Return singular values [M], descending, and left vectors [M, M] of a wide matrix; None where it is inexact."""
    if matrix_MN.dtype != torch.float64 or count == 0:
        return None
    squares_M, left_MM = torch.linalg.eigh(matrix_MN @ matrix_MN.T)
    values_M = squares_M.clamp(min=0).sqrt().flip(0)
    if values_M[count - 1] <= SMALLEST_VALUE * values_M[0]:
        return None
    return values_M, left_MM.flip(1)


def share_of_components(group: SourceGroup) -> int:
    """Return R = ⌊K/T⌋, at least 1: the components that each model may have without using those of others."""
    return max(min(group.info.shape) // len(group.models), 1)


def numbers_of_components(parts: Sequence[float], share: int) -> list[int]:
    """Return the number of components that each model keeps when it keeps a part of its share; at least 1."""
    return [min(max(round(part * share), 1), share) for part in parts]


@dataclass(frozen=True)
class Components(WholeTensorState):
    """All singular components of one task vector."""

    singular: Singular


def components(source: SourceTensor) -> Prepared:
    """Decompose the task vector of a linear map."""
    if not source.info.is_matrix:
        return Nothing()
    return Components(singular(precise(source.delta()).view(source.info.shape)).stored())


def bytes_of_components(info: TensorInfo) -> float:
    """U and V in float32, per entry: of `Components`, for each model, or of all parts of `TaskComponents`."""
    return 4 * min(info.shape) * sum(info.shape) / (info.shape[0] * info.shape[1]) if info.is_matrix else 0


class TaskComponents(WholeTensorState):
    """The R = ⌊K/T⌋ largest components of each model: left [M, T·R], values [T, R], right [T·R, N]; and what a method
    computed from them last.
    """

    def __init__(self, group: SourceGroup) -> None:
        deltas = delta_matrices(group)
        self.rank = share_of_components(group)
        kept = [leading(delta_MN, self.rank) for delta_MN in deltas]
        self.left = torch.cat([part.left_MK for part in kept], dim=1).float()
        self.values_TR = torch.stack([part.values_K for part in kept]).float()
        self.right = torch.cat([part.right_KN for part in kept]).float().contiguous()
        self._last: LastValueCache[object] = LastValueCache()

    def kept(self, parts: Sequence[float]) -> list[int]:
        """Return the numbers of the components, of all T·R, that are kept when model t keeps a part of its R."""
        counts = numbers_of_components(parts, self.rank)
        return [index * self.rank + place for index, count in enumerate(counts) for place in range(count)]

    def last(self, make: Callable[[TaskComponents, list[int]], Found], kept: list[int]) -> Found:
        """Return ``make(self, kept)``, computed once while neither changes."""
        return self._last.get((make, tuple(kept)), lambda: make(self, kept))  # type: ignore[return-value]

    def scaled_values(self, weight: PerModel, kept: list[int]) -> Tensor:
        """Return the singular values of the kept components, times the models' weights."""
        weight_T = torch.tensor(list(weight), device=self.values_TR.device)
        return (self.values_TR * weight_T[:, None]).view(-1)[kept]


def task_components(group: SourceGroup) -> Prepared:
    """Decompose the task vectors of a linear map; methods that prepare this share it."""
    return TaskComponents(group) if group.info.is_matrix else Nothing()


def delta_matrices(group: SourceGroup) -> list[Tensor]:
    """Return the task vectors as [M, N], in the precision of decompositions."""
    return [precise(delta).view(group.info.shape) for delta in group.deltas()]


def precise(values: Tensor) -> Tensor:
    """Return float64, or float32 on devices without."""
    return values.float() if values.device.type == "mps" else values.double()


def add_to_base(block: Block, matrix_MN: Tensor, lambda_: float) -> None:
    """Fill the block with θ_0 + λ τ."""
    torch.add(block.base(), matrix_MN.reshape(-1), alpha=lambda_, out=block.out)


def average(models: Sequence[Tensor], weight: PerModel, *, out: Tensor) -> Tensor:
    """Fill `out` with the average of the models by their shares, and return it."""
    out.zero_()
    for values, w in zip(models, weight, strict=True):
        out.add_(values, alpha=w / sum(weight))
    return out


def average_others(block: Block, weight: PerModel, lambda_: float) -> None:
    """Fill a block of a tensor that is not a linear map: θ_0 + λ Σ w_t τ_t / T."""
    base_E, deltas = block.deltas()
    for delta_E, w in zip(deltas, weight, strict=True):
        delta_E.mul_(w)
    total_of(deltas, block.out).mul_(lambda_ / len(deltas)).add_(base_E)
