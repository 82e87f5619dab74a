"""TIES and Model Breadcrumbs against a plain reference, published values and their properties."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from evomerge.merging.methods.blocks import TensorInfo
from evomerge.merging.methods.registry import SourceModel, SourceTensor
from evomerge.merging.methods.trimmed import ranks
from evomerge.testing.merge_methods import MergeMethodSuite, coefficients

Merge = Callable[..., Tensor]
GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "operators.json").read_text())
CASES = GOLDEN["cases"]
TAU = [torch.tensor(values, dtype=torch.float32) for values in GOLDEN["tau"]]
relaxed = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


class TestTies(MergeMethodSuite):
    method = "ties"
    needs_more_tensors = frozenset({"whole_model"})
    parameters = coefficients(weight=[0.4, 0.9, 0.2], density=[0.3, 0.7, 1.0])
    others = coefficients(weight=1.0, density=0.5, rescale=True, normalize=False)
    one_model = coefficients(weight=1.0)


class TestTiesRescaled(TestTies):
    parameters = coefficients(weight=[0.4, 0.9, 0.2], density=[0.3, 0.7, 1.0], rescale=True)
    others = coefficients(weight=1.0, density=0.5)


class TestBreadcrumbs(MergeMethodSuite):
    method = "breadcrumbs"
    parameters = coefficients(weight=[0.4, 0.9, -0.2], density=[0.3, 0.7, 0.5], gamma=[0.05, 0.1, 0.0])
    others = coefficients(weight=1.0, density=0.5, rescale=True, normalize=True)
    one_model = coefficients(weight=1.0)


class TestBreadcrumbsTies(TestBreadcrumbs):
    method = "breadcrumbs_ties"
    parameters = coefficients(weight=[0.4, 0.9, 0.2], density=[0.3, 0.7, 0.5], gamma=0.1, rescale=True)


def tensors(count: int, size: int = 211) -> list[Tensor]:
    generator = torch.Generator().manual_seed(count)
    return [torch.randn(size, generator=generator) for _ in range(count)]


def test_published_ties(merge: Merge) -> None:
    found = merge("ties", torch.zeros(8), TAU, weight=1.0, density=0.5)
    torch.testing.assert_close(found, torch.tensor(CASES["ties_mergekit_density0.5"]), rtol=0, atol=2e-6)


@pytest.mark.parametrize(("keep", "name"), [(50, "mean"), (50, "sum"), (25, "mean")])
def test_published_ties_of_the_authors(merge: Merge, keep: int, name: str) -> None:
    """The authors' code keeps k·d + 1 entries, which is a density that floors to that."""
    density = (keep / 100 * 8 + 1) / 8
    found = merge("ties", torch.zeros(8), TAU, weight=1.0, density=density, normalize=name == "mean")
    expected = torch.tensor(CASES[f"ties_official_keep{keep}_{name}"], dtype=torch.float32)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)


def test_published_ties_with_the_largest(merge: Merge) -> None:
    """The authors' `max` variant is EMR's unified vector of trimmed task vectors."""
    base = torch.zeros(8)
    trimmed = [merge("ties", base, [tau], weight=1.0, density=5 / 8) for tau in TAU]
    expected = torch.tensor(CASES["ties_official_keep50_max"], dtype=torch.float32)
    torch.testing.assert_close(merge("emr", base, trimmed), expected, rtol=0, atol=2e-6)


def ties_reference(
    base: Tensor,
    models: list[Tensor],
    *,
    weight: list[float],
    density: list[float],
    normalize: bool,
    scale: float,
) -> Tensor:
    """Entry by entry, as the paper says it."""
    trimmed = []
    for model, d in zip(models, density, strict=True):
        delta = model - base
        kept = sorted(range(len(delta)), key=lambda i: -abs(float(delta[i])))[: max(1, int(d * len(delta)))]
        trimmed.append([float(delta[i]) if d > 0 and i in set(kept) else 0.0 for i in range(len(delta))])
    merged = []
    for i, start in enumerate(base.tolist()):
        parts = [(w * delta[i], w) for w, delta in zip(weight, trimmed, strict=True)]
        sign = 1 if sum(part for part, _ in parts) >= 0 else -1
        agreeing = [(part, w) for part, w in parts if part * sign > 0]
        total = sum(part for part, _ in agreeing)
        divisor = sum(w for _, w in agreeing) if normalize else 1.0
        merged.append(start + scale * total / (divisor or 1.0))
    return torch.tensor(merged)


@relaxed
@given(
    st.lists(st.tuples(st.floats(0.1, 1.5), st.floats(0.05, 1)), min_size=1, max_size=4),
    st.booleans(),
    st.floats(0.5, 1.5),
)
def test_ties_equals_the_reference(
    merge: Merge, settings_: list[tuple[float, float]], normalize: bool, scale: float
) -> None:
    base, *models = tensors(len(settings_) + 1, 41)
    weight, density = [list(values) for values in zip(*settings_, strict=True)]
    found = merge("ties", base, models, weight=weight, density=density, normalize=normalize, lambda_=scale)
    expected = ties_reference(base, models, weight=weight, density=density, normalize=normalize, scale=scale)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["ties", "breadcrumbs", "breadcrumbs_ties"])
def test_no_deltas_give_the_base(merge: Merge, method: str) -> None:
    (base,) = tensors(1)
    assert torch.equal(merge(method, base, [base, base], weight=[0.7, 0.4], density=0.5), base)


@pytest.mark.parametrize("method", ["ties", "breadcrumbs", "breadcrumbs_ties"])
def test_density_zero_gives_the_base(merge: Merge, method: str) -> None:
    base, *models = tensors(3)
    assert torch.equal(merge(method, base, models, weight=1.0, density=0.0), base)


def test_dense_ties_of_one_model_is_task_arithmetic(merge: Merge) -> None:
    base, model = tensors(2)
    found = merge("ties", base, [model], weight=0.7, density=1.0, normalize=False)
    assert torch.equal(found, merge("task_arithmetic", base, [model], weight=0.7))


def test_ties_keeps_at_least_one_entry(merge: Merge) -> None:
    base, model = torch.zeros(5), torch.tensor([0.1, -3.0, 0.2, 0.0, 1.0])
    assert merge("ties", base, [model], weight=1.0, density=0.01).tolist() == [0, -3, 0, 0, 0]


def test_ties_rescale_restores_the_l1_norm(merge: Merge) -> None:
    base, model = torch.zeros(211), tensors(2)[1]
    found = merge("ties", base, [model], weight=1.0, density=0.3, rescale=True, normalize=False, block=64)
    torch.testing.assert_close(found.abs().sum(), model.abs().sum())
    assert int((found != 0).sum()) == int(0.3 * 211)


def test_published_breadcrumbs(merge: Merge) -> None:
    found = merge("breadcrumbs", torch.zeros(8), TAU, weight=1.0, density=5 / 8, gamma=1 / 8)
    expected = torch.tensor(CASES["breadcrumbs_drop2small_1large_sum"])
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("size", [1, 2, 50, 99, 100, 1000])
@pytest.mark.parametrize("density", [0.0, 0.5, 0.995, 1.0])
def test_breadcrumbs_keeps_the_density_of_any_tensor(merge: Merge, size: int, density: float) -> None:
    """Where γ·n < 1 a published implementation kept nothing; where d + γ > 1 the outliers give way."""
    model = torch.linspace(1, 2, size)
    found = merge("breadcrumbs", torch.zeros(size), [model], weight=1.0, density=density, gamma=0.01)
    kept = int(density * size)
    cut = min(int(0.01 * size), size - kept)
    expected = [0.0] * (size - kept - cut) + model[size - kept - cut : size - cut].tolist() + [0.0] * cut
    assert found.tolist() == expected


def test_breadcrumbs_without_outliers_is_a_trimmed_sum(merge: Merge) -> None:
    base, *models = tensors(3)
    found = merge("breadcrumbs_ties", base, models, weight=[0.4, 0.9], density=0.3, gamma=0.0)
    expected = merge("ties", base, models, weight=[0.4, 0.9], density=0.3, normalize=False)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("block", [64, 1000])
def test_breadcrumbs_rescale_restores_the_l1_norm(merge: Merge, block: int) -> None:
    base, model = torch.zeros(211), tensors(2)[1]
    found = merge("breadcrumbs", base, [model], weight=1.0, density=0.3, gamma=0.1, rescale=True, block=block)
    torch.testing.assert_close(found.abs().sum(), model.abs().sum())
    assert int((found != 0).sum()) == int(0.3 * 211)


# --- trimmed over the whole model ---


def model_of(parts: list[Tensor], base: list[Tensor], density: float) -> list[Tensor]:
    """Merge the tensors of a model one by one, each knowing the whole."""
    joined = SourceModel(
        lambda: iter([(part.view(-1), start.view(-1)) for part, start in zip(parts, base, strict=True)])
    )
    found = []
    for part, start in zip(parts, base, strict=True):
        source = SourceTensor("tensor", part, start, 0, TensorInfo((part.numel(),)), joined)
        kept = ranks(source).magnitudes.kept_of_model(density)
        rank = ranks(source).rank
        found.append((part - start) * (rank < kept))
    return found


@pytest.mark.parametrize("density", [0.0, 0.05, 0.5, 0.9])
def test_whole_model_keeps_the_largest_of_all_tensors(density: float) -> None:
    parts = [scale * tensor for scale, tensor in zip((1.0, 0.1, 3.0), tensors(3, 500), strict=True)]
    base = [torch.zeros(500)] * 3
    found = torch.cat(model_of(parts, base, density))
    everything = torch.cat(parts)
    threshold = everything.abs().sort(descending=True).values[max(int(density * 1500) - 1, 0)]
    expected = everything * (everything.abs() >= threshold) * (density > 0)
    assert int((found != expected).sum()) <= 2  # a threshold is known to 1/4096
    assert int((found != 0).sum()) >= int(density * 1500)


def test_whole_model_of_one_tensor_is_the_tensor(merge: Merge) -> None:
    base, *models = tensors(3)
    options = {"weight": [0.4, 0.9], "density": [0.3, 0.6]}
    whole = merge("ties", base, models, whole_model=True, **options)
    assert int((whole != merge("ties", base, models, **options)).sum()) <= 2
