"""Linear, task arithmetic and passthrough against plain formulas and their properties."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from evomerge.merging.methods import linear
from evomerge.merging.methods.election import stepwise_election
from evomerge.merging.methods.linear import stepwise_sum
from evomerge.merging.methods.registry import WholeTensor
from evomerge.testing.merge_methods import MergeMethodSuite, coefficients

Merge = Callable[..., Tensor]
relaxed = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
weights = st.lists(st.floats(-2, 2, width=32), min_size=1, max_size=5)


def tensors(count: int, size: int = 97) -> list[Tensor]:
    generator = torch.Generator().manual_seed(count)
    return [torch.randn(size, generator=generator) for _ in range(count)]


class TestLinear(MergeMethodSuite):
    method = "linear"
    parameters = coefficients(weight=[0.4, 0.9, 0.2])
    others = coefficients(weight=[0.4, 0.9, 0.2], normalize=False)
    one_model = coefficients(weight=1.0)


class TestMetricsWeighted(MergeMethodSuite):
    method = "metrics_weighted"
    parameters = coefficients(metric=[0.4, 0.9, 0.2], power=-1.5)
    others = coefficients(metric=[0.7, 0.3, 0.2], power=2.0)


class TestTaskArithmetic(MergeMethodSuite):
    method = "task_arithmetic"
    parameters = coefficients(weight=[0.4, -0.9, 0.2])
    others = coefficients(weight=[0.4, 0.9, 0.2], normalize=True, lambda_=0.5)
    one_model = coefficients(weight=1.0)


class TestPassthrough(MergeMethodSuite):
    method = "passthrough"
    models = 1
    parameters = coefficients(scale=0.7)
    others = coefficients()


@pytest.mark.parametrize("power", [-1.0, 2.5])
def test_golden_of_metrics_weighted(merge: Merge, near_golden: Callable[..., None], power: float) -> None:
    models, losses = tensors(3), [1.3, 0.8, 2.1]
    shares = [loss**power for loss in losses]
    expected = sum(share * model.double() for share, model in zip(shares, models, strict=True)) / sum(shares)
    near_golden(merge("metrics_weighted", None, models, metric=losses, power=power), expected)


def test_metrics_have_to_be_above_0(merge: Merge) -> None:
    with pytest.raises(ValueError, match="every model needs a metric above 0"):
        merge("metrics_weighted", None, tensors(2), metric=[1.2, 0.0])


@relaxed
@given(weights)
def test_linear_is_the_weighted_sum(merge: Merge, weight: list[float]) -> None:
    models = tensors(len(weight))
    expected = sum(w * model.double() for w, model in zip(weight, models, strict=True))
    torch.testing.assert_close(
        merge("linear", None, models, weight=weight, normalize=False).double(), expected, rtol=1e-5, atol=1e-5
    )


@relaxed
@given(weights.filter(lambda w: abs(sum(w)) > 0.1))
def test_linear_normalized_divides_by_the_sum(merge: Merge, weight: list[float]) -> None:
    models = tensors(len(weight))
    plain = merge("linear", None, models, weight=weight, normalize=False)
    torch.testing.assert_close(merge("linear", None, models, weight=weight), plain / sum(weight), rtol=1e-4, atol=1e-5)


@relaxed
@given(weights, st.floats(0.125, 2, width=32))
def test_task_arithmetic_adds_scaled_task_vectors(merge: Merge, weight: list[float], scale: float) -> None:
    base, *models = tensors(len(weight) + 1)
    deltas = sum(w * (model.double() - base.double()) for w, model in zip(weight, models, strict=True))
    found = merge("task_arithmetic", base, models, weight=weight, lambda_=scale)
    torch.testing.assert_close(found.double(), base.double() + scale * deltas, rtol=1e-5, atol=1e-5)


@relaxed
@given(weights)
def test_task_arithmetic_without_deltas_is_the_base(merge: Merge, weight: list[float]) -> None:
    (base,) = tensors(1)
    assert torch.equal(merge("task_arithmetic", base, [base] * len(weight), weight=weight), base)


def test_task_arithmetic_normalized_divides_by_the_sum(merge: Merge) -> None:
    base, *models = tensors(3)
    found = merge("task_arithmetic", base, models, weight=[0.5, 1.5], normalize=True)
    halves = merge("task_arithmetic", base, models, weight=[0.25, 0.75])
    torch.testing.assert_close(found, halves)


def test_task_arithmetic_with_a_vanishing_sum_divides_by_one(merge: Merge) -> None:
    base, *models = tensors(3)
    found = merge("task_arithmetic", base, models, weight=[1.0, -1.0], normalize=True)
    assert torch.equal(found, merge("task_arithmetic", base, models, weight=[1.0, -1.0]))


def test_linear_refuses_a_vanishing_sum(merge: Merge) -> None:
    with pytest.raises(ValueError, match=r"sum to 0, so they cannot be normalised; set normalize: false"):
        merge("linear", None, tensors(2), weight=[1.0, -1.0])


@pytest.mark.parametrize("method", ["linear", "task_arithmetic"])
def test_order_of_two_models_does_not_matter(merge: Merge, method: str) -> None:
    base, *models = tensors(3)
    found = merge(method, base, models, weight=[0.3, 0.9])
    swapped = merge(method, base, models[::-1], weight=[0.9, 0.3])
    torch.testing.assert_close(found, swapped)


def test_passthrough_copies_and_scales(merge: Merge) -> None:
    (model,) = tensors(1)
    assert torch.equal(merge("passthrough", None, [model]), model)
    assert torch.equal(merge("passthrough", None, [model], scale=0.25), model * 0.25)
    assert torch.equal(merge("passthrough", None, [model], scale=0.0), torch.zeros_like(model))


def test_result_is_rounded_once(merge: Merge) -> None:
    """Float32 inside, bf16 outside: 1 + 2^-8 + 2^-9 rounds up, though each step in bf16 would stay at 1."""
    one, small, smaller = (torch.tensor([value]) for value in (1.0, 2.0**-8, 2.0**-9))
    found = merge("linear", None, [one, small, smaller], weight=[1.0] * 3, normalize=False, out_dtype=torch.bfloat16)
    assert found.item() == 1 + 2**-7


def test_weights_with_a_negative_sum_are_divided_by_it(merge: Merge) -> None:
    """Weights of -1 and -3 have shares of 1/4 and 3/4."""
    base, *models = tensors(3)
    expected = base + 0.25 * (models[0] - base) + 0.75 * (models[1] - base)
    found = merge("task_arithmetic", base, models, weight=[-1.0, -3.0], normalize=True)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(5, 7), (35,)])
def test_steps_on_stretches_are_those_on_whole_tensors(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    base, *models = (values.bfloat16().view(shape) for values in tensors(4, 35))
    tensor = WholeTensor(tuple(models), base)
    weights = {"weight": [0.4, -0.9, 0.2], "normalize": True, "lambda_": 0.7}
    for merged in (stepwise_sum, stepwise_election):
        whole = merged(tensor, tensor.deltas(), **weights)
        assert whole.shape == shape
        with monkeypatch.context() as patch:
            patch.setattr(linear, "STRETCH", 8)
            assert torch.equal(merged(tensor, tensor.deltas(), **weights), whole)


def plain_sum(weighted_TE: Tensor, weight_T1: Tensor) -> Tensor:
    total_E, divisor = weighted_TE.sum(dim=0), weight_T1.sum(dim=0)
    return total_E / torch.where(divisor.abs() < linear.SMALLEST_SUM, 1, divisor)


def plain_election(weighted_TE: Tensor, weight_T1: Tensor) -> Tensor:
    agrees_TE = weighted_TE.sign() == (weighted_TE.sum(dim=0) >= 0).to(weighted_TE.dtype) * 2 - 1
    divisor_E = (weight_T1 * agrees_TE).sum(dim=0)
    return (weighted_TE * agrees_TE).sum(dim=0) / torch.where(divisor_E == 0, 1, divisor_E)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("models", [1, 2, 4, 9])
def test_steps_are_those_of_torch_to_the_bit(models: int, dtype: torch.dtype) -> None:
    """mergekit leaves sums in half precision to torch; signs of zeros, infinities and NaN are the same, too."""
    base, *others = (values.to(dtype) for values in tensors(1 + models, 4001))
    base[::5], others[0][::3] = -0.0, base[::3]
    others[-1][::7] = torch.finfo(dtype).max
    tensor, weight = WholeTensor(tuple(others), base), [2.5 * (-1) ** at / (1 + at) for at in range(models)]
    weight_T1 = torch.tensor(weight, dtype=dtype).view(-1, 1)
    for merged, total in ((stepwise_sum, plain_sum), (stepwise_election, plain_election)):
        found = merged(tensor, tensor.deltas(), weight=weight, normalize=True, lambda_=1.0)
        expected = base + total(torch.stack(tensor.deltas()) * weight_T1, weight_T1)
        assert torch.equal(found.signbit() & ~found.isnan(), expected.signbit() & ~expected.isnan())
        assert torch.equal(found.nan_to_num(0.5), expected.nan_to_num(0.5))


@pytest.mark.parametrize("scale", [-0.5, 0.5, 1.0, 2.0])
def test_steps_scale_the_total(scale: float) -> None:
    base, *models = tensors(3)
    tensor = WholeTensor(tuple(models), base)
    found = stepwise_sum(tensor, tensor.deltas(), weight=[0.4, -0.9], normalize=False, lambda_=scale)
    expected = base + scale * (0.4 * (models[0] - base) - 0.9 * (models[1] - base))
    torch.testing.assert_close(found, expected)
