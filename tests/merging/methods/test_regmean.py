"""RegMean: the suite, the formula in float64, least squares by its definition; what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from evomerge.testing.merge_methods import MergeMethodSuite, coefficients, merge_tensors


class TestRegMean(MergeMethodSuite):
    method = "regmean"
    parameters = coefficients(weight=[0.4, 0.7, 0.2], ridge=0.01)
    others = coefficients(weight=1.0, reduction=0.3, ridge=0.5)
    one_model = coefficients(weight=1.0)


def by_formula(models: list[Tensor], weight: list[float], alpha: float, rho: float) -> np.ndarray[Any, Any]:
    """Return the solution with Gram matrices of the tensors' own rows, float64 and an explicit inverse."""
    values = [model.double().numpy() for model in models]
    mean = sum(w * v for w, v in zip(weight, values, strict=True)) / sum(weight)
    left, right = 0.0, 0.0
    for w, own in zip(weight, values, strict=True):
        gram = own.T @ own / len(own)
        reduced = alpha * gram + (1 - alpha) * np.diag(np.diag(gram))
        left, right = left + w * reduced, right + w * reduced @ own.T
    r = rho * np.trace(left) / len(left)
    return (np.linalg.inv(left + r * np.eye(len(left))) @ (right + r * mean.T)).T


@pytest.mark.parametrize(("alpha", "rho"), [(0.9, 1e-4), (1.0, 1e-2), (0.0, 0.1)])
def test_formula(tensors: Any, alpha: float, rho: float) -> None:
    models, weight = tensors(3, 24, 9), [0.2, 0.9, 0.4]
    found = merge_tensors("regmean", None, models, weight=weight, reduction=alpha, ridge=rho)
    expected = by_formula(models, weight, alpha, rho)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())


def test_no_other_map_is_nearer_to_the_models_outputs(tensors: Any) -> None:
    models = tensors(3, 24, 9)
    found = merge_tensors("regmean", None, models, weight=1.0, reduction=1.0, ridge=1e-9).double()

    def distance(merged: Tensor) -> float:
        return sum(float((model.double() @ (merged - model.double()).T).square().sum()) for model in models)

    generator = torch.Generator().manual_seed(1)
    least = distance(found)
    for _ in range(5):
        assert distance(found + 0.01 * torch.randn(found.shape, generator=generator)) > least
    assert distance(torch.stack(models).double().mean(0)) > least


def test_idle_channels_and_tensors_without_gram_matrices_are_averaged(tensors: Any) -> None:
    models = tensors(2, 24, 9)
    for model in models:
        model[:, 4] = 0  # no input of these rows reaches the channel
    mean = 0.25 * models[0] + 0.75 * models[1]
    found = merge_tensors("regmean", None, models, weight=[0.25, 0.75])
    assert bool((found[:, 4] == 0).all())
    assert not torch.allclose(found, mean, atol=1e-3)
    for kind in ({"by_token": True}, {}):
        others = models if kind else [model[0] for model in models]
        torch.testing.assert_close(
            merge_tensors("regmean", None, others, weight=[0.25, 0.75], **kind), 0.25 * others[0] + 0.75 * others[1]
        )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"weight": [-0.1, 1.0]}, "regmean: the weights are shares; write numbers of at least 0, one of them above"),
        ({"ridge": 0.0}, r"regmean: without a ridge, the Gram .* are singular; write a number above 0 such as 0.0001"),
    ],
)
def test_what_cannot_be_solved(tensors: Any, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        merge_tensors("regmean", None, tensors(2, 6, 5), **values)
