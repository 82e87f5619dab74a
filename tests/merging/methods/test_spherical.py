"""Spherical averages against published values, the formulas in full space, and their properties."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from evomerge.merging.methods.blocks import TensorInfo
from evomerge.merging.methods.registry import SourceGroup
from evomerge.merging.methods.spherical import Grams, squared_shares, stock_ratio
from evomerge.testing.merge_methods import MergeMethodSuite, coefficients

MergeTensors = Callable[..., Tensor]
GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "operators.json").read_text())
TAU = [torch.tensor(values, dtype=torch.float32) for values in GOLDEN["tau"]]
CASES = GOLDEN["cases"]


def near(found: Tensor, expected: list[float]) -> None:
    torch.testing.assert_close(found, torch.tensor(expected), rtol=0, atol=2e-6)


def tensors(count: int, *shape: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for _ in range(count)]


class TestNuslerp(MergeMethodSuite):
    method = "nuslerp"
    models = 2
    parameters = coefficients(weight=[0.4, 0.9])
    others = coefficients(weight=[0.4, 0.9], nuslerp_flatten=False)
    one_model = coefficients(weight=[0.3, 0.9])


class TestNuslerpByColumn(TestNuslerp):
    parameters = coefficients(weight=[0.4, 0.9], nuslerp_flatten=False, nuslerp_row_wise=True)
    others = coefficients(weight=[0.4, 0.9])


class TestMultislerp(MergeMethodSuite):
    method = "multislerp"
    parameters = coefficients(weight=[0.4, 0.9, 0.2])
    others = coefficients(weight=[0.4, 0.9, 0.2], normalize_weights=False, eps=0.01)
    one_model = coefficients(weight=1.0)


class TestKarcher(MergeMethodSuite):
    method = "karcher"
    parameters = coefficients(weight=[0.4, 0.9, 0.2])
    others = coefficients(weight=[1.0, 1.0, 1.0], max_iter=0.0, tol=1e-3)


class TestModelStock(MergeMethodSuite):
    method = "model_stock"
    others = coefficients(filter_wise=True)

    @staticmethod
    def tensors(info: TensorInfo, count: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        """With a common part, as the method supposes: independent task vectors give the base."""
        base, *models = MergeMethodSuite.tensors(info, count)
        common = torch.linspace(-0.2, 0.3, base.numel()).reshape(info.shape)
        return [base.to(dtype), *((model + common).to(dtype) for model in models)]


class TestModelStockByRow(TestModelStock):
    parameters = coefficients(filter_wise=True)
    others = coefficients()


class TestMetagpt(MergeMethodSuite):
    method = "metagpt"
    parameters = coefficients(lambda_=0.8)
    others = coefficients()


# --- published values ---


def test_published_karcher_means(merge: MergeTensors) -> None:
    case = GOLDEN["karcher_uniform"]
    a, b, c = (torch.tensor(case[name]).float() for name in "abc")
    near(merge("karcher", None, [a, b]), case["expected_ab"])
    near(merge("karcher", None, [a, b, c], tol=1e-8), case["expected_abc"])
    stopped = merge("karcher", None, [a, b, c])  # mergekit's tolerance, 1e-5, stops 1.6e-5 short of it
    torch.testing.assert_close(stopped, torch.tensor(case["expected_abc"]), rtol=0, atol=2e-5)


def test_published_metagpt(merge: MergeTensors) -> None:
    gram = Grams(SourceGroup(tuple(TAU), torch.zeros(8), TensorInfo((8,)))).gram()
    near(squared_shares(gram)[0].float(), CASES["metagpt_lambda"])
    near(merge("metagpt", torch.zeros(8), TAU), CASES["metagpt"])


def test_published_model_stock(merge: MergeTensors) -> None:
    """The ratio of these vectors is negative; ours is clamped, which gives the base."""
    gram = Grams(SourceGroup(tuple(TAU), torch.zeros(8), TensorInfo((8,)))).gram()
    ratio = stock_ratio(gram)[0]
    assert ratio.item() == pytest.approx(CASES["model_stock_ratio_unclamped"], abs=2e-6)
    cosine = ratio / (3 - 2 * ratio)  # the ratio's formula solved for it
    assert cosine.item() == pytest.approx(CASES["model_stock_mean_cos"], abs=2e-6)
    assert CASES["model_stock_ratio_ours"] == 0
    assert torch.equal(merge("model_stock", torch.ones(8), [1 + tau for tau in TAU]), torch.ones(8))


def test_nuslerp_of_whole_models_is_slerp(merge: MergeTensors) -> None:
    case = GOLDEN["slerp"]
    a, b = torch.tensor(case["a"]), torch.tensor(case["b"])
    near(merge("nuslerp", None, [a, b], weight=[1 - case["t"], case["t"]]), case["expected"])


# --- plain references: the same in full space, float64 ---


def karcher_reference(models: list[Tensor], weight: list[float]) -> Tensor:
    alpha = [w / sum(weight) for w in weight]
    vectors = [model.double() for model in models]
    units = [vector / vector.norm() for vector in vectors]
    u = sum(a * unit for a, unit in zip(alpha, units, strict=True))
    u = u / u.norm()
    for _ in range(200):
        step = torch.zeros_like(u)
        for a, unit in zip(alpha, units, strict=True):
            angle = torch.arccos((unit @ u).clamp(-1, 1))
            step = step + a * angle / torch.sin(angle) * (unit - (unit @ u) * u)
        if step.norm() < 1e-12:
            break
        u = torch.cos(step.norm()) * u + torch.sin(step.norm()) * step / step.norm()
    return sum(a * vector.norm() for a, vector in zip(alpha, vectors, strict=True)) * u


@pytest.mark.parametrize("weight", [[1.0, 1.0, 1.0], [0.2, 0.5, 0.9]])
def test_karcher_equals_the_iteration_on_whole_vectors(merge: MergeTensors, weight: list[float]) -> None:
    models = tensors(3, 50)
    found = merge("karcher", None, models, weight=weight, max_iter=100.0, tol=1e-9)
    torch.testing.assert_close(found, karcher_reference(models, weight).float(), rtol=1e-5, atol=1e-6)


def test_karcher_of_two_models_of_one_length_is_the_middle_of_slerp(merge: MergeTensors) -> None:
    a, b = tensors(2, 40)
    b = b * a.norm() / b.norm()
    torch.testing.assert_close(merge("karcher", None, [a, b]), merge("slerp", a, [b], t=0.5), rtol=1e-5, atol=1e-6)


def test_karcher_resolves_fine_tunes(merge: MergeTensors) -> None:
    """Models 1e-3 apart: the Gram matrix must not lose the small angles between them."""
    base, *noise = tensors(4, 5000)
    models = [base + 1e-3 * delta for delta in noise]
    found = merge("karcher", None, models, weight=[0.2, 0.5, 0.9], max_iter=100.0, tol=1e-9)
    torch.testing.assert_close(found, karcher_reference(models, [0.2, 0.5, 0.9]).float(), rtol=1e-6, atol=1e-6)


def multislerp_reference(vectors: list[Tensor], weight: list[float]) -> Tensor:
    vectors = [vector.double() for vector in vectors]
    weight = [w / sum(weight) for w in weight]
    units = [vector / vector.norm() for vector in vectors]
    mean = sum(w * unit for w, unit in zip(weight, units, strict=True))
    mean = mean / mean.norm()
    tangent = sum(w * (unit - (unit @ mean) * mean) for w, unit in zip(weight, units, strict=True))
    length = sum(w * vector.norm() for w, vector in zip(weight, vectors, strict=True))
    return length * (mean * torch.cos(tangent.norm()) + tangent * torch.sin(tangent.norm()) / tangent.norm())


def test_multislerp_equals_the_formula(merge: MergeTensors) -> None:
    base, *models = tensors(4, 50)
    weight = [0.2, 0.5, 0.9]
    expected = multislerp_reference(models, weight).float()
    torch.testing.assert_close(merge("multislerp", None, models, weight=weight), expected, rtol=1e-5, atol=1e-6)
    around = base + multislerp_reference([model - base for model in models], weight).float()
    torch.testing.assert_close(merge("multislerp", base, models, weight=weight), around, rtol=1e-5, atol=1e-6)


def test_multislerp_of_opposite_directions(merge: MergeTensors) -> None:
    (a,) = tensors(1, 20)
    torch.testing.assert_close(merge("multislerp", None, [a, -a], weight=1.0), torch.zeros(20))
    with pytest.raises(ValueError, match=r"sum to zero, so they have no mean; use other weights, or linear"):
        merge("multislerp", None, [a, -a, torch.zeros(20)], weight=1.0)


@pytest.mark.parametrize("row_wise", [False, True])
def test_nuslerp_by_rows_and_columns(merge: MergeTensors, row_wise: bool) -> None:
    base, a, b = tensors(3, 5, 7)
    found = merge("nuslerp", base, [a, b], weight=[1.0, 3.0], nuslerp_flatten=False, nuslerp_row_wise=row_wise)
    for index in range(7 if row_wise else 5):
        start, x, y = ((v[:, index] if row_wise else v[index]).contiguous() for v in (base, a, b))
        expected = merge("nuslerp", start, [x, y], weight=[1.0, 3.0])
        torch.testing.assert_close(found[:, index] if row_wise else found[index], expected, rtol=1e-5, atol=1e-6)


def test_nuslerp_weights_that_cancel_give_the_middle(merge: MergeTensors) -> None:
    a, b = tensors(2, 20)
    found = merge("nuslerp", None, [a, b], weight=[1.0, -1.0])
    assert torch.equal(found, merge("nuslerp", None, [a, b], weight=[1.0, 1.0]))


def test_nuslerp_of_parallel_vectors_is_linear(merge: MergeTensors) -> None:
    (a,) = tensors(1, 20)
    torch.testing.assert_close(merge("nuslerp", None, [a, 3 * a], weight=[3.0, 1.0]), 1.5 * a)


def test_model_stock_by_rows(merge: MergeTensors) -> None:
    base, common, *noise = tensors(5, 4, 30)
    models = [base + common + 0.5 * delta for delta in noise]
    found = merge("model_stock", base, models, filter_wise=True)
    rows = [merge("model_stock", base[i], [model[i] for model in models]) for i in range(4)]
    torch.testing.assert_close(found, torch.stack(rows), rtol=1e-5, atol=1e-6)


def test_model_stock_stays_between_base_and_mean(merge: MergeTensors) -> None:
    """cos = −1/(T−1), where the formula has a pole, and beyond."""
    base = torch.zeros(2)
    angles = torch.tensor([0.0, 2.0944, 4.1888])
    models = [torch.stack([torch.cos(angle), torch.sin(angle)]) for angle in angles]
    assert merge("model_stock", base, models).abs().max() < 1e-4
    equal = merge("model_stock", base, [models[1]] * 3)
    torch.testing.assert_close(equal, models[1])


def test_weights_that_sum_to_zero_are_refused(merge: MergeTensors) -> None:
    for method in ("karcher", "multislerp"):
        with pytest.raises(ValueError, match=r"sum to 0, so they cannot be normalised; use weights above 0"):
            merge(method, None, tensors(2, 9), weight=[1.0, -1.0])
