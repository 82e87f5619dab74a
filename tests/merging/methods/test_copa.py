"""CoPA against its formula in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from evomerge.testing.merge_methods import MergeMethodSuite, coefficients

Merge = Callable[..., Tensor]


class TestCopa(MergeMethodSuite):
    method = "copa"
    parameters = coefficients(weight=[0.4, 0.9, 1.2], density=[0.5, 0.8, 0.3], lambda_=0.8)
    others = coefficients(weight=1.0)
    tolerance = 2e-5


def cut(factor: Tensor, density: float) -> Tensor:
    kept = int(density * factor.numel())
    return factor * (factor.abs() >= factor.abs().flatten().sort(descending=True).values[kept - 1])


@pytest.mark.parametrize("shape", [(6, 11), (11, 6)])
def test_golden(merge: Merge, tensors: Any, near_golden: Any, shape: tuple[int, int]) -> None:
    base, *models = tensors(3, *shape)
    density, weight = [0.5, 0.3], [0.4, 0.9]
    factors, scales = [], []
    for model, d in zip(models, density, strict=True):
        left, values, right = torch.linalg.svd(model.double() - base.double(), full_matrices=False)
        out, into = left @ torch.diag(values.sqrt()), torch.diag(values.sqrt()) @ right
        factors.append((cut(out, d), cut(into, d)))
        lost = into.abs().sum(1) / factors[-1][1].abs().sum(1)
        scales.append(torch.where(lost.isfinite(), lost, 1.0).clamp(max=1 / d))
    expected = base.double()
    for w, (out, into), scale in zip(weight, factors, scales, strict=True):
        expected = expected + 0.8 * w * out @ torch.diag(2 * scale / sum(scales)) @ into
    near_golden(merge("copa", base, models, weight=weight, density=density, lambda_=0.8), expected)


def test_nothing_cut_is_task_arithmetic_of_equally_scaled_directions(merge: Merge, tensors: Any) -> None:
    base, *models = tensors(3, 6, 11)
    found = merge("copa", base, models, weight=[0.4, 0.9])
    torch.testing.assert_close(found, merge("task_arithmetic", base, models, weight=[0.4, 0.9]), rtol=1e-4, atol=1e-5)
