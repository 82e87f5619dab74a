"""STF against its equations and a pseudo-inverse in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from evomerge.testing.merge_methods import MergeMethodSuite, coefficients

Merge = Callable[..., Tensor]


class TestStf(MergeMethodSuite):
    method = "stf"
    parameters = coefficients(weight=[0.4, 0.9, 1.2], rank=[1.0, 0.5, 0.75], lambda_=0.8)
    others = coefficients(weight=1.0)
    tolerance = 2e-5


def features(base: Tensor, models: list[Tensor], counts: list[int]) -> list[tuple[Tensor, Tensor, Tensor]]:
    found = []
    for model, count in zip(models, counts, strict=True):
        left, values, right = torch.linalg.svd(model.double() - base.double(), full_matrices=False)
        found.append((left[:, :count], values[:count], right[:count]))
    return found


@pytest.mark.parametrize(("shape", "rank", "counts"), [((9, 14), [1.0, 0.5], [4, 2]), ((14, 9), [0.25, 1.0], [1, 4])])
def test_golden(
    merge: Merge, tensors: Any, near_golden: Any, shape: tuple[int, int], rank: list[float], counts: list[int]
) -> None:
    base, *models = tensors(3, *shape)
    parts = features(base, models, counts)
    outputs = torch.cat([w * left * values for w, (left, values, _) in zip([0.4, 0.9], parts, strict=True)], 1)
    inputs = torch.cat([right for *_, right in parts])
    expected = base.double() + 0.8 * outputs @ torch.linalg.pinv(inputs.T)
    near_golden(merge("stf", base, models, weight=[0.4, 0.9], rank=rank, lambda_=0.8), expected)


def test_maps_every_feature_as_its_model_does(merge: Merge, tensors: Any) -> None:
    base, *models = tensors(3, 9, 14)
    moved = (merge("stf", base, models) - base).double()
    for left, values, right in features(base, models, [4, 4]):
        torch.testing.assert_close(moved @ right.T, left * values, rtol=1e-4, atol=1e-4)


def test_equal_models_give_that_model(merge: Merge, tensors: Any) -> None:
    """Their features coincide: the equations cannot be met one by one, but all at once."""
    base, model = tensors(2, 4, 8)
    left, values, right = torch.linalg.svd(model - base, full_matrices=False)
    found = merge("stf", base, [model, model])
    torch.testing.assert_close(found, base + (left[:, :2] * values[:2]) @ right[:2], rtol=1e-4, atol=1e-4)
