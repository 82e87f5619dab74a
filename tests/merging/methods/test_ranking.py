"""Ranks by the compiled sort are those of torch's, which is mergekit's."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from evomerge.merging.methods import ranking
from tests.conftest import required

required("numba")


@pytest.fixture(autouse=True)
def compiled_for_all_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranking, "LARGE", 0)


def by_torch(values: Tensor, *, descending: bool) -> Tensor:
    order = torch.argsort(values, descending=descending)
    return ranking.at_sorted_places(order, torch.arange(values.shape[-1], dtype=torch.int32))


def test_torch_sorts_by_the_library_that_is_followed() -> None:
    """Where this fails, torch's own sort is used: slower, and right."""
    assert ranking._torch_sorts_alike()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 2000), st.integers(1, 3000), st.integers(0, 2**32), st.sampled_from(["drawn", "up", "down"]))
def test_ties_fall_as_in_torch(size: int, levels: int, seed: int, kind: str) -> None:
    values = torch.randint(levels, (size,), generator=torch.Generator().manual_seed(seed)) / levels
    values = values if kind == "drawn" else values.sort(descending=kind == "down").values
    assert torch.equal(ranking.descending_ranks(values), by_torch(values, descending=True))
    reversed_ = ranking.reversed_ascending_ranks(values)
    assert torch.equal(size - 1 - reversed_, by_torch(values, descending=False))
    first, end = sorted((seed % (size + 1), levels % (size + 1)))
    assert torch.equal(ranking.largest(values, end), by_torch(values, descending=True) < end)
    assert torch.equal(ranking.between(values, first, end), (first <= reversed_) & (reversed_ < end))


def test_rows_are_ranked_one_by_one() -> None:
    values = torch.randint(9, (7, 45), generator=torch.Generator().manual_seed(0)).float()
    places = torch.linspace(0, 1, 45)
    found = ranking.ascending_places(values, places)
    assert torch.equal(found, torch.stack([places[by_torch(row, descending=False).long()] for row in values]))


def test_what_the_library_sorts_by_a_heap_is_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Musser's sequence, whose medians of three are the smallest entries left, exceeds the depth of introsort."""
    half = 500
    first = [index if index % 2 else half + index - 1 for index in range(1, half + 1)]
    values = torch.tensor([*first, *range(2, 2 * half + 1, 2)]).float()
    assert ranking._by_introsort(values, torch.arange(2 * half), descending=False) is None
    ranks = ranking.reversed_ascending_ranks(values)
    assert all(a > b for a, b in pairwise(ranks[values.argsort(stable=True)].tolist()) if a != b)


def test_small_tensors_need_no_compiled_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(ranking, "_by_introsort", None)
    assert ranking.descending_ranks(torch.tensor([0.1, 0.3, 0.2])).tolist() == [2, 0, 1]
