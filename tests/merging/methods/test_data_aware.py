"""Methods that look at data: the suite, and each formula in float64 from statistics that the tensors make up."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from evomerge.merging.methods.mats import conjugate_gradients
from evomerge.testing.merge_methods import MergeMethodSuite, coefficients, merge_tensors

Array = npt.NDArray[np.float64]


class TestRegMeanPlusPlus(MergeMethodSuite):
    method = "regmean_plus_plus"
    parameters = coefficients(weight=[0.4, 0.7, 0.2], ridge=0.01)
    others = coefficients(weight=1.0, reduction=0.9, ridge=0.5)
    one_model = coefficients(weight=1.0)


class TestMaTS(MergeMethodSuite):
    method = "mats"
    parameters = coefficients(weight=[0.4, 0.7, 0.2], ridge=0.01, steps=6.0)
    others = coefficients(weight=1.0, ridge=0.5, steps=2.0)
    one_model = coefficients(weight=1.0)


class TestOTA(MergeMethodSuite):
    method = "ota"
    parameters = coefficients(weight=[0.4, 0.7, 0.2], density=[0.5, 1.0, 0.8])
    others = coefficients(weight=1.0, power=0.25, floor=0.1, lambda_=0.7)


class TestLED(MergeMethodSuite):
    method = "led"
    parameters = coefficients(weight=[0.4, 0.7, 0.2], density=[0.3, 0.5, 0.4])
    others = coefficients(weight=1.0, density=0.2, lambda_=0.7)
    one_model = coefficients(density=1.0)


class TestRCP(MergeMethodSuite):
    method = "rcp"
    parameters = coefficients(weight=[1.0, 0.7, 0.5], preservation=50.0)
    others = coefficients(weight=1.0, preservation=400.0, lambda_=0.7)
    one_model = None  # the first model is kept and the others' task vectors are added
    ordered = True


class TestOBIM(MergeMethodSuite):
    method = "obim"
    parameters = coefficients(weight=[0.4, 0.7, 0.2], density=[0.2, 0.4, 0.3], rounds=3.0)
    others = coefficients(weight=1.0, density=0.5, rounds=1.0, lambda_=0.7)
    ordered = True


class TestSens(MergeMethodSuite):
    method = "sens"
    parameters = coefficients(weight=[0.4, 0.7, 0.2])
    others = coefficients(weight=1.0, temperature=0.05, lambda_=0.7)


class TestLMCocktail(MergeMethodSuite):
    method = "lm_cocktail"
    parameters = coefficients(weight=[0.4, 0.7, 0.2], temperature=0.05)
    others = coefficients(weight=1.0, temperature=0.5, target=0.3)
    one_model = coefficients(weight=1.0)
    needs_more_tensors = frozenset()


def arrays(tensors: list[Tensor]) -> list[Array]:
    return [tensor.double().numpy() for tensor in tensors]


def agree(found: Tensor, expected: Array) -> None:
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())


@pytest.fixture
def sources(tensors: Any) -> tuple[Tensor, list[Tensor]]:
    base, *deltas = tensors(4, 8, 6)
    return base, [base + 0.1 * delta for delta in deltas]


def rounded(values: Array) -> Array:
    """Return what the cache keeps of a statistic of every entry."""
    return torch.from_numpy(values).float().bfloat16().double().numpy()


def kept(saliency: Array, count: int) -> npt.NDArray[np.bool_]:
    """Return the `count` largest, of equal ones the earlier."""
    order = np.argsort(-saliency.reshape(-1), kind="stable")[:count]
    mask = np.zeros(saliency.size, dtype=bool)
    mask[order] = True
    return mask.reshape(saliency.shape)


def test_ota(sources: tuple[Tensor, list[Tensor]]) -> None:
    base, models = sources
    weight, density, power, floor = [0.5, 1.0, 0.3], [0.5, 1.0, 0.25], 0.4, 0.2
    total, merged = np.zeros(base.shape), np.zeros(base.shape)
    for own, model, w, d in zip(arrays(models), models, weight, density, strict=True):
        v = rounded((model**2).double().numpy())
        tau = own - base.double().numpy()
        p = w * np.maximum(v, floor) ** power
        total += p
        merged += p * tau * kept(v * tau**2, round(d * tau.size))
    found = merge_tensors("ota", base, models, weight=weight, density=density, power=power, floor=floor, lambda_=0.8)
    agree(found, base.double().numpy() + 0.8 * merged / total)
    mean = merge_tensors("ota", base, models, power=0.0)
    torch.testing.assert_close(mean, torch.stack(models).mean(0))


def test_led(sources: tuple[Tensor, list[Tensor]]) -> None:
    base, models = sources
    weight, density = [0.5, 1.0, 0.3], [0.5, 0.7, 0.25]
    # made-up sensitivities: squares, of the model's values for both statistics
    elected = [
        kept(rounded((model**2).double().numpy()), round(d * model.numel()))
        for model, d in zip(models, density, strict=True)
    ]
    alone = sum(mask.astype(int) for mask in elected) == 1
    merged = sum(
        w * mask * alone * (own - base.double().numpy())
        for w, mask, own in zip(weight, elected, arrays(models), strict=True)
    )
    assert 0 < alone.sum() < alone.size
    found = merge_tensors("led", base, models, weight=weight, density=density, lambda_=0.9)
    agree(found, base.double().numpy() + 0.9 * merged)


def test_rcp_is_a_vote_over_samples(sources: tuple[Tensor, list[Tensor]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Votes counted sample by sample, where the method has their upper median only."""
    base, (reasoning, domain, _) = sources
    generator = torch.Generator().manual_seed(3)
    for samples in (5, 6):
        products = (torch.randn(samples, *base.shape, generator=generator) * 0.1).bfloat16().float()
        median = products.kthvalue(samples // 2 + 1, dim=0).values
        monkeypatch.setattr(
            "evomerge.testing.merge_methods.made_up",
            lambda kind, values, info, median=median: {
                "push": median.bfloat16().reshape(-1),
                "importance": values.float().square().bfloat16(),
            }[kind],
        )
        mu, importance = 2.0, rounded((reasoning**2).double().numpy())
        harm = mu * importance * (reasoning - domain).double().numpy() ** 2
        v = sum(np.sign(-(product.double().numpy() + harm)) for product in products)
        mask = v > 0
        assert 0 < mask.sum() < mask.size
        expected = reasoning.double().numpy() + 0.6 * mask * (domain - base).double().numpy()
        found = merge_tensors("rcp", base, [reasoning, domain], weight=[1.0, 0.6], preservation=mu)
        agree(found, expected)


def test_obim_takes_turns_and_shares_nothing(sources: tuple[Tensor, list[Tensor]]) -> None:
    base, models = sources
    density, rounds = [0.3, 0.5, 0.25], 3
    deltas = [own - base.double().numpy() for own in arrays(models)]
    energies = [(own**2).mean(0) for own in arrays(models)]
    free = np.ones(base.numel(), dtype=bool)
    masks = [np.zeros(base.numel(), dtype=bool) for _ in models]
    for number in range(rounds):
        for mask, delta, energy, d in zip(masks, deltas, energies, density, strict=True):
            share = int(d * free.size * (number + 1) / rounds) - int(d * free.size * number / rounds)
            saliency = np.where(free, (0.5 * energy * delta**2).reshape(-1), -1)
            for entry in np.argsort(-saliency)[:share]:
                if free[entry]:
                    mask[entry], free[entry] = True, False
    assert max(sum(mask.astype(int) for mask in masks)) == 1
    merged = sum(mask.reshape(base.shape) * delta for mask, delta in zip(masks, deltas, strict=True))
    found = merge_tensors("obim", base, models, density=density, rounds=float(rounds), lambda_=0.9)
    agree(found, base.double().numpy() + 0.9 * merged)
    whole = merge_tensors("obim", base, models) - base
    owners = torch.stack([torch.isclose(whole, model - base, atol=1e-6) for model in models])
    assert bool(owners.any(0).all())  # at density 1 every entry is some model's own


def test_sens_and_lm_cocktail(sources: tuple[Tensor, list[Tensor]]) -> None:
    base, models = sources
    size = np.array([np.abs(own).mean() for own in arrays(models)])
    weight = np.array([0.5, 1.0, 0.3])
    products = size * size / size.sum()
    sigma = np.exp(products / 0.1) / np.exp(products / 0.1).sum()
    deltas = [own - base.double().numpy() for own in arrays(models)]
    expected = sum(3 * s * w * delta for s, w, delta in zip(sigma, weight, deltas, strict=True))
    found = merge_tensors("sens", base, models, weight=list(weight), temperature=0.1, lambda_=0.9)
    agree(found, base.double().numpy() + 0.9 * expected)
    shares = weight * np.exp(-size / 0.05)
    shares = 0.8 * shares / shares.sum() + np.array([0.2, 0.0, 0.0])
    found = merge_tensors("lm_cocktail", None, models, weight=list(weight), temperature=0.05, target=0.2)
    agree(found, sum(s * own for s, own in zip(shares, arrays(models), strict=True)))


def test_mats_solves_the_normal_equations(sources: tuple[Tensor, list[Tensor]]) -> None:
    _, models = sources
    weight, rho = [0.5, 1.0, 0.3], 1e-2
    values = arrays(models)
    mean = sum(w * own for w, own in zip(weight, values, strict=True)) / sum(weight)
    size = mean.size
    left, right = np.zeros((size, size)), np.zeros(size)
    for w, own in zip(weight, values, strict=True):
        inputs, outputs = own.T @ own / len(own), own @ own.T / own.shape[1]
        block = w * np.kron(outputs, inputs)  # of the rows of W, one after the other
        left, right = left + block, right + block @ own.reshape(-1)
    r = rho * np.trace(left) / size
    solved = np.linalg.solve(left + r * np.eye(size), right + r * mean.reshape(-1)).reshape(mean.shape)
    found = merge_tensors("mats", None, models, weight=weight, ridge=rho, steps=200.0)
    agree(found, solved)
    torch.testing.assert_close(merge_tensors("mats", None, models, steps=0.0), torch.stack(models).mean(0))


def test_conjugate_gradients_end_after_as_many_steps_as_unknowns(tensors: Any) -> None:
    (square,) = tensors(1, 7, 7)
    left = square.double() @ square.double().T + torch.eye(7).double()
    right = torch.arange(7.0).double()
    exact = torch.linalg.solve(left, right)
    errors = [float((conjugate_gradients(lambda x: left @ x, right, n) - exact).norm()) for n in (1, 3, 7, 30)]
    assert errors == sorted(errors, reverse=True)
    assert errors[2] < 1e-8
    assert torch.equal(conjugate_gradients(lambda x: left @ x, torch.zeros(7).double(), 3), torch.zeros(7).double())


@pytest.mark.parametrize(
    ("method", "values", "message"),
    [
        ("ota", {"floor": 0.0}, "ota: a floor of 0 leaves weights without any curvature; write one such as 0.001"),
        ("ota", {"weight": [-1.0, 1.0]}, "ota: the weights are shares"),
        ("mats", {"ridge": 0.0}, "mats: without a ridge, .* write a number above 0 such as 0.0001"),
        ("lm_cocktail", {"temperature": 0.0}, "lm_cocktail: the temperature divides losses; write a number above 0"),
        ("sens", {"temperature": 0.0}, "sens: the temperature divides sensitivities; write a number above 0"),
        ("regmean_plus_plus", {"ridge": 0.0}, "regmean_plus_plus: without a ridge"),
    ],
)
def test_what_has_no_meaning(tensors: Any, method: str, values: dict[str, Any], message: str) -> None:
    base, *models = tensors(3, 5, 4)
    with pytest.raises(ValueError, match=message):
        merge_tensors(
            method, None if method in ("mats", "lm_cocktail", "regmean_plus_plus") else base, models, **values
        )
