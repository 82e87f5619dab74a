"""DOGE in closed form against its objective, written as one least-squares problem in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from evomerge.testing.merge_methods import MergeMethodSuite, coefficients

Merge = Callable[..., Tensor]


class TestDoge(MergeMethodSuite):
    method = "doge"
    parameters = coefficients(weight=[0.4, 0.9, 1.2], eta=0.5, density=[0.5, 0.8, 0.3])
    others = coefficients(weight=1.0, density=0.7, subspace=0.5)
    one_model = coefficients(eta=1.0)
    tolerance = 2e-5


def corrected(deltas: list[Tensor], factors: list[float], subspace: float) -> Tensor:
    """Return Δ as the solution of one ridge problem with M·N unknowns."""
    rows, columns = deltas[0].shape
    rank = min(rows, columns) // len(deltas)
    lefts = torch.cat([torch.linalg.svd(delta).U[:, :rank] for delta in deltas], 1)
    shared = torch.linalg.svd(lefts).U[:, : int(subspace * min(rows, columns))]
    off = torch.eye(rows).double() - shared @ shared.T
    total = sum(factor * delta for factor, delta in zip(factors, deltas, strict=True))
    equations, wanted = [], []
    for delta in deltas:
        for row in range(rows):
            unit = delta[row] / delta[row].norm()
            equations.append(torch.outer(off[row], unit).reshape(-1))  # of Z: row m of (I - P) Z
            wanted.append(unit @ (delta[row] - total[row]))
    system, right = torch.stack(equations), torch.stack(wanted)
    unknown = torch.linalg.solve(system.T @ system + 1e-6 * torch.eye(rows * columns), system.T @ right)
    return off @ unknown.view(rows, columns) / sum(factors)


@pytest.mark.parametrize(("shape", "subspace"), [((6, 9), 0.4), ((9, 6), 0.2)])
def test_golden(merge: Merge, tensors: Any, near_golden: Any, shape: tuple[int, int], subspace: float) -> None:
    base, *models = tensors(3, *shape)
    deltas = [model.double() - base.double() for model in models]
    norms = [float(delta.norm()) for delta in deltas]
    factors = [w * 0.6 * sum(norms) / 2 / norm for w, norm in zip([0.5, 1.1], norms, strict=True)]
    change = corrected(deltas, factors, subspace)
    expected = base.double()
    for delta, factor, kept in zip(deltas, factors, [27, 16], strict=True):
        mask = delta.abs() >= delta.abs().flatten().sort(descending=True).values[kept - 1]
        expected = expected + factor * mask * (delta + change)
    found = merge("doge", base, models, weight=[0.5, 1.1], eta=0.6, density=[0.5, 0.3], subspace=subspace)
    near_golden(found, expected)


def test_merge_disturbs_no_model_where_it_may_move_freely(merge: Merge, tensors: Any) -> None:
    """Without a subspace every product of a row with the merge is the row's own."""
    base, *models = tensors(3, 5, 12)
    moved = merge("doge", base, models, subspace=0.0) - base
    for model in models:
        delta = model - base
        torch.testing.assert_close((delta * moved).sum(1), delta.square().sum(1), rtol=1e-4, atol=1e-4)
