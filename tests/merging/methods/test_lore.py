"""LoRE against its objective and a descent with full decompositions in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from evomerge.testing.merge_methods import MergeMethodSuite, coefficients

Merge = Callable[..., Tensor]


class TestLore(MergeMethodSuite):
    method = "lore"
    parameters = coefficients(weight=[0.4, 0.9, 1.2], threshold=0.3, lambda_=0.8)
    others = coefficients(weight=1.0)
    tolerance = 2e-5


def descent(models: list[Tensor], threshold: float) -> tuple[Tensor, list[Tensor]]:
    models = [model.double() for model in models]
    base = sum(models) / len(models)
    by = threshold * max(float(torch.linalg.svdvals(model - base)[0]) for model in models)
    changes = [torch.zeros_like(base)] * len(models)
    for _ in range(20):
        base = sum(model - change for model, change in zip(models, changes, strict=True)) / len(models)
        changes = []
        for model in models:
            left, values, right = torch.linalg.svd(model - base, full_matrices=False)
            changes.append((left * (values - by).clamp(min=0)) @ right)
    return sum(model - change for model, change in zip(models, changes, strict=True)) / len(models), changes


@pytest.mark.parametrize(
    ("count", "shape", "threshold"),
    [(3, (6, 11), 0.3), (3, (11, 6), 0.05), (2, (6, 11), 0.3), (2, (11, 6), 0.05), (3, (6, 6), 0.0)],
)
def test_golden(
    merge: Merge, tensors: Any, near_golden: Any, count: int, shape: tuple[int, int], threshold: float
) -> None:
    models = tensors(count, *shape)
    base, changes = descent(models, threshold)
    weight = [0.4, 0.9, 1.2][:count]
    expected = base + 0.8 * sum(w * change for w, change in zip(weight, changes, strict=True))
    near_golden(merge("lore", None, models, weight=weight, threshold=threshold, lambda_=0.8), expected)


def test_two_models_of_equal_weight_give_their_average(merge: Merge, tensors: Any) -> None:
    a, b = tensors(2, 6, 11)
    torch.testing.assert_close(merge("lore", None, [a, b], threshold=0.4), (a + b) / 2, rtol=1e-5, atol=1e-5)


def test_lambda_0_is_the_implied_base_of_low_rank_changes(merge: Merge, tensors: Any) -> None:
    """A base with three rank-1 changes is found again, up to what the threshold takes."""
    base, *_ = tensors(1, 8, 8)
    models = [base.clone() for _ in range(3)]
    for index, model in enumerate(models):
        model[index, index] += 10.0
    found = merge("lore", None, models, threshold=0.1, lambda_=0.0)
    assert (found - base).norm() < 0.2 * (sum(models) / 3 - base).norm()
