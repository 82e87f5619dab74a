"""What the spectral methods share: the mean of task vectors where a tensor is not a linear map."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from evomerge.merging.methods.matrices import leading, polar_and_values

Merge = Callable[..., Tensor]


@pytest.mark.parametrize("method", ["iso_c", "iso_cts", "tsv_m", "r_tsv_m", "drm", "wudi", "optmerge", "stf", "copa"])
@pytest.mark.parametrize(("shape", "by_token"), [((17,), False), ((6, 5), True)], ids=["norm", "embedding"])
def test_other_tensors_take_the_weighted_mean_of_the_task_vectors(
    merge: Merge, tensors: Any, method: str, shape: tuple[int, ...], by_token: bool
) -> None:
    base, *models = tensors(4, *shape)
    weight = [0.5, 1.0, 0.25]
    moved = [w * (model - base) for w, model in zip(weight, models, strict=True)]
    found = merge(method, base, models, weight=weight, lambda_=0.8, by_token=by_token)
    torch.testing.assert_close(found, base + 0.8 * torch.stack(moved).mean(0))


def low_rank(rows: int, columns: int, rank: int) -> Tensor:
    generator = torch.Generator().manual_seed(rank)
    left, right = (torch.randn(size, rank, generator=generator).double() for size in (rows, columns))
    return left @ right.T


@pytest.mark.parametrize(
    "matrix", [low_rank(7, 12, 7), low_rank(12, 7, 7), low_rank(7, 12, 2), torch.zeros(3, 5).double()]
)
def test_leading_components_and_polar_factor_equal_the_decomposition(matrix: Tensor) -> None:
    """By the Gram matrix where that is exact, and where components vanish by the decomposition itself."""
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    for count in (1, min(matrix.shape)):
        found = leading(matrix, count)
        torch.testing.assert_close(found.values_K, values[:count], rtol=1e-7, atol=1e-10)
        rebuilt = (found.left_MK * found.values_K) @ found.right_KN
        torch.testing.assert_close(rebuilt, (left[:, :count] * values[:count]) @ right[:count], rtol=0, atol=1e-7)
        eye = torch.eye(count).double()
        torch.testing.assert_close(found.left_MK.T @ found.left_MK, eye, rtol=0, atol=1e-7)
        torch.testing.assert_close(found.right_KN @ found.right_KN.T, eye, rtol=0, atol=1e-7)
    factor, found_values = polar_and_values(matrix)
    torch.testing.assert_close(found_values, values, rtol=1e-7, atol=1e-10)
    torch.testing.assert_close(factor, left @ right, rtol=0, atol=1e-7)
