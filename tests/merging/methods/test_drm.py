"""Decom-Renorm-Merge against a plain reference and its properties."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from evomerge.testing.merge_methods import MergeMethodSuite, coefficients

Merge = Callable[..., Tensor]


class TestDrm(MergeMethodSuite):
    method = "drm"
    parameters = coefficients(weight=[0.4, 0.9, 1.2], density=[0.3, 0.7, 0.5], lambda_=0.8)
    others = coefficients(weight=1.0, density=1.0)
    tolerance = 2e-5


def reference(base: Tensor, models: list[Tensor], weight: list[float], density: float) -> Tensor:
    deltas = [(model - base).double() for model in models]
    left, values, right = torch.linalg.svd(torch.cat(deltas, 1), full_matrices=False)
    rank = int((values >= 1e-2 * values[0]).sum())
    columns = base.shape[1]
    parts = []
    for index, w in enumerate(weight):
        part = right[:rank, index * columns : (index + 1) * columns]
        norms = part.norm(dim=1, keepdim=True)
        normed = part / norms
        threshold = normed.abs().flatten().sort(descending=True).values[int(density * normed.numel()) - 1]
        parts.append(w * values[:rank, None] * norms * normed * (normed.abs() >= threshold))
    merged = torch.zeros(rank, columns).double()
    for i in range(rank):
        for j in range(columns):
            column = [(float(part[i, j]), w) for part, w in zip(parts, weight, strict=True)]
            sign = 1 if sum(x for x, _ in column) >= 0 else -1
            agreeing = [(x, w) for x, w in column if x * sign > 0]
            if agreeing:
                merged[i, j] = sum(x for x, _ in agreeing) / sum(w for _, w in agreeing)
    return (base.double() + left[:, :rank] @ merged).float()


@pytest.mark.parametrize("density", [0.2, 0.7, 1.0])
@pytest.mark.parametrize("shape", [(5, 7), (13, 4)])
def test_equals_the_reference(merge: Merge, tensors: Any, density: float, shape: tuple[int, int]) -> None:
    base, *models = tensors(3, *shape)
    found = merge("drm", base, models, weight=[0.4, 0.9], density=density)
    torch.testing.assert_close(found, reference(base, models, [0.4, 0.9], density), rtol=1e-4, atol=1e-5)


def test_small_components_are_dropped(merge: Merge) -> None:
    model = torch.diag(torch.tensor([1.0, 0.5, 0.011, 0.009]))
    found = merge("drm", torch.zeros(4, 4), [model])
    torch.testing.assert_close(found, torch.diag(torch.tensor([1.0, 0.5, 0.011, 0.0])))
