"""Iso-C and Iso-CTS against published values and their properties."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from evomerge.merging.methods import isotropic
from evomerge.testing.merge_methods import MergeMethodSuite, coefficients

Merge = Callable[..., Tensor]


class TestIsoC(MergeMethodSuite):
    method = "iso_c"
    parameters = coefficients(weight=[0.4, 0.9, 1.2], lambda_=0.8)
    others = coefficients(weight=1.0)
    one_model = None  # a flat spectrum is another model
    tolerance = 2e-5


class TestIsoCts(TestIsoC):
    method = "iso_cts"
    others = coefficients(weight=1.0, common_fraction=0.5)


def models_of(golden: dict[str, Any]) -> list[Tensor]:
    return [torch.tensor(golden["spectral"][name], dtype=torch.float32) for name in ("A1", "A2")]


def test_published_iso_c(merge: Merge, golden: dict[str, Any], near: Any) -> None:
    near(merge("iso_c", torch.zeros(4, 4), models_of(golden)), torch.tensor(golden["spectral"]["iso_c"]))


def test_published_iso_cts(merge: Merge, golden: dict[str, Any], near: Any) -> None:
    found = merge("iso_cts", torch.zeros(4, 4), models_of(golden), common_fraction=0.5)
    near(found, torch.tensor(golden["spectral"]["iso_cts_f0.5"]))


@pytest.mark.parametrize("method", ["iso_c", "iso_cts"])
def test_spectrum_is_flat(merge: Merge, tensors: Any, method: str) -> None:
    *models, _ = tensors(4, 9, 14)
    values = torch.linalg.svdvals(merge(method, torch.zeros(9, 14), models, weight=[0.4, 0.9, 0.1]))
    torch.testing.assert_close(values, values.mean().expand(9), rtol=1e-4, atol=1e-5)


def test_iso_c_keeps_the_nuclear_norm(merge: Merge, tensors: Any) -> None:
    a, b = tensors(2, 9, 14)
    found = merge("iso_c", torch.zeros(9, 14), [a, b], weight=[0.4, 0.9])
    expected = torch.linalg.svdvals(0.4 * a + 0.9 * b).sum()
    torch.testing.assert_close(torch.linalg.svdvals(found).sum(), expected, rtol=1e-4, atol=1e-5)


def test_only_common_directions_are_iso_c(merge: Merge, tensors: Any) -> None:
    base, *models = tensors(3, 9, 14)
    found = merge("iso_cts", base, models, common_fraction=1.0)
    torch.testing.assert_close(found, merge("iso_c", base, models), rtol=1e-4, atol=1e-5)


def by_the_paper(models: list[Tensor], weight: list[float], common: int, specific: int) -> Tensor:
    """Return Iso-CTS by full decompositions, as the formulas stand."""

    def decomposed(matrix: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        return left[:, :count], values[:count], right[:count]

    deltas = [w * model.double() for w, model in zip(weight, models, strict=True)]
    shared = decomposed(sum(deltas[1:], deltas[0]), common)
    parts = [decomposed(delta - shared[0] @ shared[0].T @ delta, specific) for delta in deltas] + [shared]
    left, right = torch.cat([part[0] for part in parts], dim=1), torch.cat([part[2] for part in parts])
    factors = [a @ b for a, _, b in (torch.linalg.svd(each, full_matrices=False) for each in (left, right))]
    return torch.cat([part[1] for part in parts]).mean() * (factors[0] @ factors[1])


@pytest.mark.parametrize("shape", [(10, 14), (10, 10), (14, 10)], ids=["wide", "square", "tall"])
@pytest.mark.parametrize(("fraction", "common"), [(0.8, 8), (0.4, 4), (0.0, 0)])
def test_golden_of_iso_cts(
    merge: Merge, tensors: Any, near_golden: Any, shape: tuple[int, int], fraction: float, common: int
) -> None:
    """Where fewer rows than the common ones are added to them, only a part of both is made orthogonal."""
    models = tensors(2, *shape)
    expected = by_the_paper(models, [0.4, 0.9], common, (10 - common) // 2)
    found = merge("iso_cts", torch.zeros(shape), models, weight=[0.4, 0.9], common_fraction=fraction)
    near_golden(found, expected)


def test_equal_weights_need_no_decomposition(tensors: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from evomerge.testing.merge_methods import Merge as PreparedMerge

    base, *models = tensors(3, 9, 14)
    merge = PreparedMerge("iso_c", base, models)
    monkeypatch.setattr(isotropic, "polar_and_values", None)  # any further call fails
    halves = merge.run(weight=0.5)
    torch.testing.assert_close(halves - base, 0.5 * (merge.run(weight=1.0) - base), rtol=1e-4, atol=1e-5)


def test_all_weights_zero_give_the_base(merge: Merge, tensors: Any) -> None:
    base, *models = tensors(3, 9, 14)
    for method in ("iso_c", "iso_cts"):
        assert torch.equal(merge(method, base, models, weight=0.0), base)


@pytest.mark.parametrize(("components", "models", "fraction"), [(9, 2, 0.8), (9, 4, 0.0), (3, 5, 0.1), (8, 3, 1.0)])
def test_specific_rank_leaves_no_component_out(components: int, models: int, fraction: float) -> None:
    specific = isotropic._specific_rank(components, models, fraction)
    assert 0 <= specific * models <= components
    assert abs(specific * models - (components - int(fraction * components))) <= models
