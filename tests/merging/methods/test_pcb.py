"""PCB against published values and a plain reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from evomerge.testing.merge_methods import MergeMethodSuite, coefficients

Merge = Callable[..., Tensor]


class TestPcb(MergeMethodSuite):
    method = "pcb"
    parameters = coefficients(weight=[0.4, 0.9, 1.2], ratio=0.3, percentile=0.05, lambda_=0.8)
    others = coefficients(weight=1.0, ratio=1.0)
    one_model = None  # the largest entry is clamped, the smallest scores 0
    tolerance = 5e-6


def test_published_values(merge: Merge, tau: list[Tensor], published: Any, near: Any) -> None:
    near(merge("pcb", torch.zeros(8), tau, ratio=0.5), published("pcb_pairwise_r0.5"))


def reference(base: Tensor, models: list[Tensor], weight: list[float], ratio: float, q: float = 0.01) -> Tensor:
    size, count = len(base), len(models)
    clamped, shares = [], []
    for model in models:
        delta = (model - base).double()
        ordered = delta.abs().sort().values
        low, high = ordered[int(size * q)], ordered[int(size * (1 - q) - 1)]
        magnitude = delta.abs().clamp(low, high)
        clamped.append(delta.sign() * magnitude)
        shares.append(delta.sign() * (magnitude - low) / (high - low))
    numerator, denominator = torch.zeros(size).double(), torch.zeros(size).double()
    for values, share, w in zip(clamped, shares, weight, strict=True):
        score = torch.exp(count * share**2) * sum(torch.tanh(share * other) for other in shares)
        low = score.sort().values[min(int(size * (1 - ratio)), size - 1)]
        scale = (score.clamp(min=low) - low) / (score.max() - low)
        numerator += w * values * scale
        denominator += scale
    return base.double() + torch.where(denominator > 0, numerator / denominator, 0.0)


@pytest.mark.parametrize(("ratio", "size"), [(0.05, 211), (0.5, 211), (1.0, 211), (0.5, 20_000)])
def test_equals_the_reference(merge: Merge, tensors: Any, ratio: float, size: int) -> None:
    """In the largest tensor, the percentiles are not the smallest and largest entry."""
    base, *models = tensors(4, size)
    weight = [0.4, 0.9, 1.2]
    found = merge("pcb", base, models, weight=weight, ratio=ratio)
    torch.testing.assert_close(found.double(), reference(base, models, weight, ratio), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("percentile", [0.0001, 0.02])
def test_percentile_of_the_clamp(merge: Merge, tensors: Any, percentile: float) -> None:
    base, *models = tensors(3, 600)
    found = merge("pcb", base, models, ratio=0.5, percentile=percentile)
    expected = reference(base, models, [1.0, 1.0], 0.5, percentile)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


def test_percentile_of_a_half_or_more_is_refused(merge: Merge, tensors: Any) -> None:
    base, *models = tensors(3, 20)
    with pytest.raises(ValueError, match=r"write a number from 0 to below 0\.5"):
        merge("pcb", base, models, percentile=0.5)


def test_scores_do_not_know_the_scale(merge: Merge, tensors: Any) -> None:
    models = tensors(3)
    found = merge("pcb", torch.zeros(211), [1e-3 * model for model in models], ratio=0.3)
    torch.testing.assert_close(1e3 * found, merge("pcb", torch.zeros(211), models, ratio=0.3), rtol=1e-3, atol=1e-4)


def test_ratio_is_the_fraction_that_counts(merge: Merge, tensors: Any) -> None:
    (model,) = tensors(1, 1000)
    found = merge("pcb", torch.zeros(1000), [model], ratio=0.2)
    assert int((found != 0).sum()) == 199  # the entry at the quantile scores 0
