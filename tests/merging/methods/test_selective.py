"""NearSwap and Arcee's fusion against plain references."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from evomerge.testing.merge_methods import MergeMethodSuite, coefficients

Merge = Callable[..., Tensor]


class TestNearswap(MergeMethodSuite):
    method = "nearswap"
    parameters = coefficients(t=0.03)
    others = coefficients(t=0.08)
    one_model = coefficients(t=100.0)
    models = 1


class TestArceeFusion(MergeMethodSuite):
    method = "arcee_fusion"
    one_model = None
    models = 1


def test_nearswap_moves_no_entry_by_more_than_t(merge: Merge, tensors: Any) -> None:
    base, model = tensors(2)
    found = merge("nearswap", base, [model], t=0.25)
    torch.testing.assert_close(found, base + (model - base).clamp(-0.25, 0.25))
    assert torch.equal(merge("nearswap", base, [model], t=0.0), base)


def test_fusion_takes_a_row_that_stands_out(merge: Merge) -> None:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(16, 8, generator=generator)
    model = base + 1e-4 * torch.randn(16, 8, generator=generator)
    model[3] += torch.linspace(-1, 1, 8)
    found = merge("arcee_fusion", base, [model])
    torch.testing.assert_close(found[3], model[3])
    taken = (found != base).any(1)
    assert taken[3]
    assert int((found != base).sum()) < 128 // 4


def test_fusion_takes_what_lies_above_one_and_a_half_quartile_ranges(merge: Merge) -> None:
    """Against the formula in float64, where many scores lie near the threshold."""
    generator = torch.Generator().manual_seed(0)
    base, model = torch.randn(2, 8, 512, generator=generator)
    p, q = (torch.softmax(values.double(), -1) + 1e-8 for values in (model, base))
    score = (p * (p / q).log()).sum(-1, keepdim=True) * (model - base).double().abs()
    low, middle, high = score.flatten().quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)).tolist()
    expected = score >= middle + 1.5 * (high - low)
    taken = (merge("arcee_fusion", base, [model]) - base).abs() > 0.5 * (model - base).abs()
    assert 50 < int(expected.sum()) < 2000
    assert int((taken != expected).sum()) <= 3  # scores at the threshold, where quantiles are interpolated
