"""Choices of entries by size, against the ranks of the same sort."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from evomerge.merging.methods.ranking import between, descending_ranks, largest, reversed_ascending_ranks


def sizes(count: int, dtype: torch.dtype) -> Tensor:
    """Return magnitudes, in half precision with many equal ones, as float32; some are infinite."""
    values = torch.randn(count, generator=torch.Generator().manual_seed(count)).abs()
    values[:: max(1, count // 7)] = torch.inf
    return values.to(dtype).float()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("count", [1, 37, 1_000, 70_001])
def test_the_largest_are_those_of_the_first_ranks(count: int, dtype: torch.dtype) -> None:
    rank = descending_ranks(sizes(count, dtype))
    for kept in {0, 1, count // 3, count // 2, count}:
        assert torch.equal(largest(sizes(count, dtype), kept), rank < kept)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("count", [1, 37, 70_001])
def test_those_between_are_those_of_the_ranks_of_the_sort_upwards(count: int, dtype: torch.dtype) -> None:
    rank = reversed_ascending_ranks(sizes(count, dtype))
    for first, end in ((0, 0), (0, count), (count // 9, count // 2)):
        assert torch.equal(between(sizes(count, dtype), first, end), (first <= rank) & (rank < end))


def test_float64_is_ranked_as_it_is() -> None:
    values = torch.tensor([1.0, 1.0 + 1e-12, 0.5, 2.0], dtype=torch.float64)
    assert largest(values.clone(), 2).tolist() == [False, True, False, True]
