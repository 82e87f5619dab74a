"""The closed form of WUDI against its objective and its limits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from evomerge.testing.merge_methods import MergeMethodSuite, coefficients

Merge = Callable[..., Tensor]


class TestWudi(MergeMethodSuite):
    method = "wudi"
    parameters = coefficients(weight=[0.4, 0.9, 1.2], ridge=0.3, lambda_=0.8)
    others = coefficients(weight=1.0, ridge=0.01)
    tolerance = 2e-5


class TestOptMerge(TestWudi):
    method = "optmerge"


@pytest.mark.parametrize(("method", "rank"), [("wudi", 5), ("optmerge", 2)])
@pytest.mark.parametrize("shape", [(12, 5), (5, 12)])
def test_golden(merge: Merge, tensors: Any, near_golden: Any, method: str, rank: int, shape: tuple[int, int]) -> None:
    """The normal equations of the objective, each linear map's truncated components written out."""
    base, *models = tensors(3, *shape)
    weight, columns = [0.4, 0.9], shape[1]
    r = 0.3 * sum(weight) / columns
    left, right = r * torch.eye(columns).double(), torch.zeros(shape).double()
    for model, w in zip(models, weight, strict=True):
        delta = model.double() - base.double()
        out, values, into = torch.linalg.svd(delta, full_matrices=False)
        part = out[:, :rank] @ torch.diag(values[:rank]) @ into[:rank]
        left += w * part.T @ part / delta.square().sum()
        right += w * part @ part.T @ part / delta.square().sum() + r * w * delta / (2 if method == "optmerge" else 1)
    near_golden(merge(method, base, models, weight=weight, ridge=0.3), base.double() + right @ torch.linalg.inv(left))


@pytest.mark.parametrize("shape", [(12, 5), (5, 12)])
def test_small_ridge_is_the_minimum_that_descent_finds(merge: Merge, tensors: Any, shape: tuple[int, int]) -> None:
    """From the sum of the task vectors, as the paper's descent starts."""
    base, *models = tensors(3, *shape)
    deltas = [(model - base).double() for model in models]
    tau = sum(deltas)
    for _ in range(5000):
        gradient = sum((tau - delta) @ delta.T @ delta / delta.square().sum() for delta in deltas)
        tau = tau - gradient
    found = merge("wudi", base, models, ridge=1e-4)
    torch.testing.assert_close(found, (base.double() + tau).float(), rtol=0, atol=0.01)


def test_large_ridge_is_task_arithmetic(merge: Merge, tensors: Any) -> None:
    base, *models = tensors(3, 12, 5)
    found = merge("wudi", base, models, weight=[0.4, 0.9], ridge=1e6)
    expected = merge("task_arithmetic", base, models, weight=[0.4, 0.9])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("ridge", [0.01, 0.3])
def test_is_stationary(merge: Merge, tensors: Any, ridge: float) -> None:
    """The gradient of the whole objective, the pull towards task arithmetic included, vanishes."""
    base, *models = tensors(3, 12, 5)
    weight = (0.4, 0.9)
    deltas = [(model - base).double() for model in models]
    tau = (merge("wudi", base, models, weight=list(weight), ridge=ridge) - base).double().requires_grad_(True)
    interference = sum(
        w * ((tau - delta) @ delta.T).square().sum() / delta.square().sum()
        for w, delta in zip(weight, deltas, strict=True)
    )
    start = sum(w * delta for w, delta in zip(weight, deltas, strict=True))
    total = interference + ridge * sum(weight) / 5 * (tau - start).square().sum()
    (gradient,) = torch.autograd.grad(total, tau)
    assert gradient.abs().max() < 1e-4


def test_all_weights_zero_give_the_base(merge: Merge, tensors: Any) -> None:
    base, *models = tensors(3, 9, 14)
    torch.testing.assert_close(merge("wudi", base, models, weight=0.0), base)
