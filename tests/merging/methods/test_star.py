"""STAR against published values and a plain reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from evomerge.testing.merge_methods import MergeMethodSuite, coefficients

Merge = Callable[..., Tensor]


class TestStar(MergeMethodSuite):
    method = "star"
    parameters = coefficients(weight=[0.4, 0.9, 1.2], eta=60.0, lambda_=0.8)
    others = coefficients(weight=1.0, eta=30.0, normalize=False)
    one_model = coefficients(eta=100.0)
    tolerance = 1e-5


def test_published_values(merge: Merge, golden: dict[str, Any], near: Any) -> None:
    spectral = golden["spectral"]
    model = torch.tensor(spectral["A1"], dtype=torch.float32)
    found = merge("star", torch.zeros(4, 4), [model], eta=60.0)
    near(found, torch.tensor(spectral["star_eta60_of_A1"]))


@pytest.mark.parametrize("eta", [1.0, 40.0, 99.0, 100.0])
def test_equals_the_reference(merge: Merge, tensors: Any, eta: float) -> None:
    base, *models = tensors(3, 9, 14)
    expected = base.double()
    for model, share in zip(models, (0.25, 0.75), strict=True):
        left, values, right = torch.linalg.svd((model - base).double(), full_matrices=False)
        rank = next(r for r in range(1, 10) if r == 9 or values[:r].sum() >= eta / 100 * values.sum())
        scale = values.sum() / values[:rank].sum()
        expected = expected + share * scale * left[:, :rank] @ torch.diag(values[:rank]) @ right[:rank]
    found = merge("star", base, models, weight=[1.0, 3.0], eta=eta)
    torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-5)


def test_nuclear_norm_is_restored(merge: Merge, tensors: Any) -> None:
    (model,) = tensors(1, 9, 14)
    found = merge("star", torch.zeros(9, 14), [model], eta=30.0)
    torch.testing.assert_close(torch.linalg.svdvals(found).sum(), torch.linalg.svdvals(model).sum())


@pytest.mark.parametrize("form", [{"shape": (20,)}, {"shape": (6, 8), "by_token": True}, {"shape": (2, 4, 5)}])
def test_all_but_linear_maps_are_averaged(merge: Merge, tensors: Any, form: dict[str, Any]) -> None:
    base, a, b = tensors(3, *form["shape"])
    found = merge("star", base, [a, b], weight=[1.0, 3.0], eta=10.0, by_token=form.get("by_token", False))
    torch.testing.assert_close(found, 0.25 * a + 0.75 * b)
