"""TIES and DARE-TIES against a plain reference, published values and their properties."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

Merge = Callable[..., Tensor]
GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "merge_methods.json").read_text())
relaxed = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


def tensors(count: int, size: int = 211) -> list[Tensor]:
    generator = torch.Generator().manual_seed(count)
    return [torch.randn(size, generator=generator) for _ in range(count)]


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


@pytest.mark.parametrize("case", GOLDEN["cases"])
def test_published_values(merge: Merge, case: dict[str, object]) -> None:
    models = [torch.tensor(values, dtype=torch.float32) for values in GOLDEN["task_vectors"]]
    found = merge(
        case["method"],
        torch.zeros(8),
        models,
        weight=case["weight"],
        density=case["density"],
        normalize=case["normalize"],
    )
    torch.testing.assert_close(found, torch.tensor(case["expected"]), rtol=0, atol=1e-6)


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


@pytest.mark.parametrize("method", ["ties", "dare_ties"])
def test_no_deltas_give_the_base(merge: Merge, method: str) -> None:
    (base,) = tensors(1)
    assert torch.equal(merge(method, base, [base, base], weight=[0.7, 0.4], density=0.5), base)


@pytest.mark.parametrize("method", ["ties", "dare_ties"])
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


def test_conflicting_signs_go_to_the_larger_sum(merge: Merge) -> None:
    base = torch.zeros(3)
    a, b = torch.tensor([1.0, -1.0, 1.0]), torch.tensor([-2.0, 0.5, 1.0])
    found = merge("dare_ties", base, [a, b], weight=1.0, density=1.0, normalize=False)
    assert found.tolist() == [-2.0, -1.0, 2.0]


def test_dare_rescales_by_the_inverse_density(merge: Merge) -> None:
    """The paper's 1/density: what is kept is scaled alike on every tensor, and the mean is kept."""
    base, model = torch.zeros(200_000), torch.ones(200_000)
    found = merge("dare_ties", base, [model], weight=1.0, density=0.1)
    kept = found[found != 0]
    torch.testing.assert_close(kept, torch.full_like(kept, 10.0), rtol=1e-4, atol=0)
    assert abs(len(kept) / 200_000 - 0.1) < 0.003  # four standard errors
    unscaled = merge("dare_ties", base, [model], weight=1.0, density=0.1, rescale=False)
    assert unscaled.unique().tolist() == [0.0, 1.0]


def test_dare_masks_are_decided_by_the_seed(merge: Merge) -> None:
    base, model = tensors(2)

    def run(seed: int) -> Tensor:
        return merge("dare_ties", base, [model], weight=1.0, density=0.5, seed=seed)

    assert torch.equal(run(3), run(3))
    assert not torch.equal(run(3), run(4))


def test_dare_masks_are_nested(merge: Merge) -> None:
    base, model = tensors(2)
    masks = [merge("dare_ties", base, [model], weight=1.0, density=density) != base for density in (0.2, 0.5, 0.8)]
    assert masks[0].sum() < masks[1].sum() < masks[2].sum()
    assert not bool((masks[0] & ~masks[1]).any())
    assert not bool((masks[1] & ~masks[2]).any())


def test_dare_does_not_depend_on_the_order_of_models(merge: Merge) -> None:
    base, *models = tensors(3)
    found = merge("dare_ties", base, models, weight=[0.3, 0.8], density=[0.4, 0.6])
    swapped = merge("dare_ties", base, models[::-1], weight=[0.8, 0.3], density=[0.6, 0.4])
    assert torch.equal(found, swapped)


def test_dare_masks_differ_between_models(merge: Merge) -> None:
    base, *models = tensors(3)
    masks = [merge("dare_ties", base, [model], weight=1.0, density=0.5) != base for model in models]
    assert not torch.equal(masks[0], masks[1])
