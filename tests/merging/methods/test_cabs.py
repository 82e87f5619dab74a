"""CABS against published values and its properties."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from evomerge.merging.methods.cabs import take_turns
from evomerge.testing.merge_methods import MergeMethodSuite, coefficients

Merge = Callable[..., Tensor]


class TestCabs(MergeMethodSuite):
    method = "cabs"
    ordered = True
    parameters = coefficients(weight=[0.4, 0.9, 1.2], keep=2.0, group=8.0)
    others = coefficients(weight=1.0, keep=1.0, group=3.0)
    one_model = coefficients(keep=4.0, group=4.0)


def test_published_masks(merge: Merge, tau: list[Tensor], published: Any, near: Any) -> None:
    masks = take_turns(tuple(tau), 1, 4)
    expected = published("cabs_1of4_sequential")
    near(torch.stack([values * mask for values, mask in zip(tau, masks, strict=True)]), expected)
    near(merge("cabs", torch.zeros(8), tau, keep=1.0, group=4.0), expected.sum(0))


@pytest.mark.parametrize(("keep", "group"), [(1, 4), (2, 7), (64, 256), (5, 5)])
def test_masks_are_disjoint_and_balanced(tensors: Any, keep: int, group: int) -> None:
    deltas = tuple(tensors(3, 1000))
    masks = torch.stack(take_turns(deltas, keep, group))
    assert int(masks.sum(0).max()) == 1
    for start in range(0, 1000 - group + 1, group):
        counts = masks[:, start : start + group].sum(1).tolist()
        free = group
        for count in counts:
            assert count == min(keep, free)
            free -= count


def test_incomplete_group_keeps_its_share(tensors: Any) -> None:
    (mask,) = take_turns(tuple(tensors(1, 64)), 64, 256)
    assert int(mask.sum()) == 16


def test_each_keeps_the_largest_that_are_free(tensors: Any) -> None:
    first, second = tensors(2, 20)
    masks = take_turns((first, second), 3, 10)
    for start in (0, 10):
        part = slice(start, start + 10)
        taken = set(first[part].abs().topk(3).indices.tolist())
        assert set(masks[0][part].nonzero().view(-1).tolist()) == taken
        left = second[part].abs().clone()
        left[list(taken)] = 0
        assert set(masks[1][part].nonzero().view(-1).tolist()) == set(left.topk(3).indices.tolist())
