"""SCE against published values and a plain reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from evomerge.testing.merge_methods import MergeMethodSuite, coefficients

Merge = Callable[..., Tensor]


class TestSce(MergeMethodSuite):
    method = "sce"
    parameters = coefficients(select_topk=0.6)
    others = coefficients(select_topk=1.0)


def reference(base: Tensor, models: list[Tensor], topk: float) -> Tensor:
    deltas = [(model.double() - base.double()) for model in models]
    variance = torch.stack(deltas).var(0, unbiased=False)
    count = int((variance != 0).sum() * topk)
    chosen = set(sorted(range(len(base)), key=lambda i: -variance[i])[:count])
    mask = torch.tensor([i in chosen for i in range(len(base))]) | (topk >= 1)
    deltas = [delta * mask for delta in deltas]
    squares = [float((delta**2).mean()) for delta in deltas]
    merged = base.double().clone()
    for i in range(len(base)):
        sign = 1 if sum(float(delta[i]) for delta in deltas) >= 0 else -1
        agreeing = [(s, float(delta[i])) for s, delta in zip(squares, deltas, strict=True) if delta[i] * sign > 0]
        if agreeing:
            merged[i] += sum(s * value for s, value in agreeing) / sum(s for s, _ in agreeing)
    return merged.float()


@pytest.mark.parametrize("topk", [0.1, 0.5, 0.93, 1.0])
def test_equals_the_reference(merge: Merge, tensors: Any, topk: float) -> None:
    base, *models = tensors(4)
    found = merge("sce", base, models, select_topk=topk)
    torch.testing.assert_close(found, reference(base, models, topk), rtol=1e-5, atol=1e-5)


def test_published_values(merge: Merge, stable_tau: list[Tensor], published: Any, near: Any) -> None:
    near(merge("sce", torch.zeros(8), stable_tau), published("sce_topk1_stable"))


def test_published_selection(merge: Merge, tau: list[Tensor], published: Any, near: Any) -> None:
    near(merge("sce", torch.zeros(8), tau, select_topk=0.5), published("sce_topk0.5"))


def test_small_task_vectors_weigh_the_same(merge: Merge, tensors: Any) -> None:
    """mergekit's rule: below 1e-6 in total, mean squares do not tell models apart."""
    a, b = (1e-4 * values.abs() for values in tensors(2))
    found = merge("sce", torch.zeros(211), [a, 3 * b])
    torch.testing.assert_close(found, (a + 3 * b) / 2, rtol=1e-4, atol=1e-9)


def test_nothing_selected_is_the_base(merge: Merge, tensors: Any) -> None:
    base, *models = tensors(3)
    assert torch.equal(merge("sce", base, models, select_topk=0.0), base)
    assert torch.equal(merge("sce", base, [models[0]] * 2, select_topk=0.9), base)  # no entry varies
