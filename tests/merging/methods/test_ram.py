"""RAM and RAM+ against plain references."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from evomerge.testing.merge_methods import MergeMethodSuite, coefficients, merge_tensors

Merge = Callable[..., Tensor]


class TestRam(MergeMethodSuite):
    method = "ram"
    parameters = coefficients(epsilon=0.05)
    others = coefficients(epsilon=0.1)
    one_model = coefficients(epsilon=0.0)


class TestRamplus(MergeMethodSuite):
    method = "ramplus_tl"
    parameters = coefficients(epsilon=0.05, r=0.5, alpha=0.4)
    others = coefficients(epsilon=0.1, r=0.2, alpha=1.0)
    one_model = coefficients(epsilon=0.0)


def test_alone_whole_and_together_averaged(merge: Merge) -> None:
    a, b = torch.tensor([1.0, 2.0, 0.0, 1e-6, 4.0]), torch.tensor([0.0, 4.0, 3.0, 0.0, 0.0])
    assert merge("ram", torch.zeros(5), [a, b]).tolist() == [1.0, 3.0, 3.0, 0.0, 4.0]
    # a shares one entry and has two of its own, b has one of its own
    found = merge("ramplus_tl", torch.zeros(5), [a, b], r=0.5, alpha=0.8)
    torch.testing.assert_close(found, torch.tensor([1.25, 3.0, 3 * 1.4, 0.0, 5.0]))


@given(seed=st.integers(0, 99), models=st.integers(1, 4), epsilon=st.sampled_from([0.0, 0.2, 1.0]))
def test_without_a_factor_both_are_one(seed: int, models: int, epsilon: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    base, *others = (torch.randn(23, generator=generator) for _ in range(models + 1))
    plain = merge_tensors("ram", base, others, epsilon=epsilon)
    torch.testing.assert_close(merge_tensors("ramplus_tl", base, others, epsilon=epsilon, r=0.0), plain)
    # between the smallest and the largest change, or where it was
    deltas = torch.stack([*(other - base for other in others), torch.zeros(23)])
    assert bool((plain - base <= deltas.max(0).values + 1e-5).all())
    assert bool((plain - base >= deltas.min(0).values - 1e-5).all())


@pytest.mark.parametrize("block", [1, 64])
def test_shares_are_the_tensors(merge: Merge, block: int) -> None:
    generator = torch.Generator().manual_seed(1)
    base, *others = (torch.randn(200, generator=generator) for _ in range(3))
    whole = merge("ramplus_tl", base, others, epsilon=0.7, r=1.0, alpha=9.0)
    assert torch.equal(merge("ramplus_tl", base, others, epsilon=0.7, r=1.0, alpha=9.0, block=block), whole)
    assert not torch.equal(
        whole[:100], merge("ramplus_tl", base[:100], [o[:100] for o in others], epsilon=0.7, r=1.0, alpha=9.0)
    )
