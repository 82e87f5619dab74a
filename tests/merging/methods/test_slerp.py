"""SLERP against the formula, its end points and a published example."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from evomerge.merging.methods import slerp as module
from evomerge.testing.merge_methods import MergeMethodSuite, coefficients

Merge = Callable[..., Tensor]
GOLDEN = Path(__file__).parents[2] / "golden" / "operators.json"


class TestSlerp(MergeMethodSuite):
    method = "slerp"
    needs_more_tensors = frozenset({"whole_model"})
    models = 1
    parameters = coefficients(t=0.3)
    others = coefficients(t=0.8)
    one_model = coefficients(t=1.0)


def pair(size: int = 50) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(size)
    return torch.randn(size, generator=generator), torch.randn(size, generator=generator)


def test_norms_of_spans_are_added_up_as_in_mergekit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The norm of each tensor's norms by itself: torch adds up those of two tensors side by side in another order."""
    monkeypatch.setattr(module, "STRETCH", 64)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        a, b = torch.randn(2, 640, generator=generator)
        spans = list(zip(a.split(64), b.split(64), strict=True))
        norms = [
            torch.stack([torch.linalg.vector_norm(x[None], dim=1) for x in each]) for each in zip(*spans, strict=True)
        ]
        norm_a, norm_b = (torch.linalg.vector_norm(each[..., None], dim=0) for each in norms)
        dot = torch.stack([(x[None] / norm_a * (y[None] / norm_b)).sum(dim=1) for x, y in spans]).sum(dim=0)
        assert torch.equal(module._cosine(a, b, torch.float32), dot.squeeze())


def test_published_example(merge: Merge) -> None:
    case = json.loads(GOLDEN.read_text())["slerp"]
    a, b = torch.tensor(case["a"]), torch.tensor(case["b"])
    found = merge("slerp", a, [b], t=case["t"])
    torch.testing.assert_close(found, torch.tensor(case["expected"]), rtol=0, atol=1e-6)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.floats(0, 1, width=32))
def test_formula(merge: Merge, t: float) -> None:
    a, b = pair()
    omega = math.acos(float(a.double() @ b.double() / (a.double().norm() * b.double().norm())))
    expected = (math.sin((1 - t) * omega) * a.double() + math.sin(t * omega) * b.double()) / math.sin(omega)
    torch.testing.assert_close(merge("slerp", a, [b], t=t).double(), expected, rtol=1e-5, atol=1e-6)


def test_end_points_are_the_models(merge: Merge) -> None:
    a, b = pair()
    assert torch.equal(merge("slerp", a, [b], t=0.0), a)
    assert torch.equal(merge("slerp", a, [b], t=1.0), b)


@pytest.mark.parametrize("factor", [1.0001, 3.0, -2.0])
def test_parallel_and_opposite_tensors_are_interpolated_linearly(merge: Merge, factor: float) -> None:
    a, _ = pair()
    torch.testing.assert_close(merge("slerp", a, [a * factor], t=0.25), 0.75 * a + 0.25 * factor * a)


def test_zero_tensor_gives_no_nan(merge: Merge) -> None:
    a, _ = pair()
    assert bool(torch.isfinite(merge("slerp", torch.zeros_like(a), [a], t=0.3)).all())


def test_angle_is_measured_in_stretches(merge: Merge, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = pair(1000)
    expected = merge("slerp", a, [b], t=0.3)
    monkeypatch.setattr(module, "STRETCH", 64)
    torch.testing.assert_close(merge("slerp", a, [b], t=0.3), expected)
