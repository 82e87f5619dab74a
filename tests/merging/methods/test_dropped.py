"""DARE and DELLA against published values and their properties."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from evomerge.merging.methods.blocks import TensorInfo
from evomerge.merging.methods.dropped import keep_probability, places
from evomerge.merging.methods.registry import SourceModel, SourceTensor
from evomerge.testing.merge_methods import MergeMethodSuite, coefficients

Merge = Callable[..., Tensor]
GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "operators.json").read_text())
CASES = GOLDEN["cases"]
TAU = [torch.tensor(values, dtype=torch.float32) for values in GOLDEN["tau"]]


class TestDareTies(MergeMethodSuite):
    method = "dare_ties"
    parameters = coefficients(weight=[0.4, -0.9, 0.2], density=[0.3, 0.7, 0.5])
    others = coefficients(weight=1.0, density=0.5, rescale=False, normalize=True)
    one_model = coefficients(weight=1.0)


class TestDareLinear(TestDareTies):
    method = "dare_linear"


class TestDella(MergeMethodSuite):
    method = "della"
    parameters = coefficients(weight=[0.4, 0.9, 0.2], density=[0.3, 0.7, 0.5], epsilon=[0.1, 0.2, 0.15])
    others = coefficients(weight=1.0, density=0.9, rescale=False, normalize=False)
    one_model = coefficients(weight=1.0)


class TestDellaLinear(TestDella):
    method = "della_linear"


def tensors(count: int, size: int = 211) -> list[Tensor]:
    generator = torch.Generator().manual_seed(count)
    return [torch.randn(size, generator=generator) for _ in range(count)]


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


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
def test_density_zero_gives_the_base(merge: Merge, method: str) -> None:
    base, *models = tensors(3)
    assert torch.equal(merge(method, base, models, weight=1.0, density=0.0), base)


def test_conflicting_signs_cancel_without_election(merge: Merge) -> None:
    base = torch.zeros(3)
    a, b = torch.tensor([1.0, -1.0, 1.0]), torch.tensor([-2.0, 0.5, 1.0])
    for method in ("dare_linear", "della_linear"):
        assert merge(method, base, [a, b], weight=1.0, density=1.0).tolist() == [-1.0, -0.5, 2.0]


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties", "della_linear", "della"])
def test_methods_of_one_seed_share_their_draws(merge: Merge, method: str) -> None:
    """So that a search over methods compares the same masks."""
    base, model = torch.zeros(211), tensors(1)[0]
    options = {"weight": 1.0, "density": 0.5, "seed": 7} | ({"epsilon": 0.0} if "della" in method else {})
    expected = merge("dare_linear", base, [model], weight=1.0, density=0.5, seed=7)
    torch.testing.assert_close(merge(method, base, [model], normalize=False, **options), expected)


def source(values: Tensor, info: TensorInfo) -> SourceTensor:
    return SourceTensor("tensor", values, torch.zeros_like(values), 0, info, SourceModel(lambda: iter([])))


def test_published_keep_probabilities() -> None:
    place = places(source(TAU[0], TensorInfo((8,))))
    found = keep_probability(place, 0.5, 0.1)
    expected = torch.tensor(CASES["della_keep_probability_tau1_density0.5_eps0.1"])
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)


def test_della_ranks_within_rows() -> None:
    values = torch.tensor([[0.1, -0.3, 0.2], [30.0, 20.0, -10.0]])
    place = places(source(values.view(-1), TensorInfo((2, 3))))
    assert place.tolist() == [0.0, 1.0, 0.5, 1.0, 0.5, 0.0]
    assert places(source(values.view(-1), TensorInfo((6, 1)))).tolist() == [0.5] * 6


@pytest.mark.parametrize(("density", "epsilon"), [(0.1, 0.15), (0.95, 0.3), (1.0, 0.2), (0.0, 0.2)])
def test_della_narrows_the_spread_to_what_fits(density: float, epsilon: float) -> None:
    found = keep_probability(torch.linspace(0, 1, 11), density, epsilon)
    assert found.min() >= -1e-6
    assert found.max() <= 1 + 1e-6
    torch.testing.assert_close(found.mean(), torch.tensor(density))


def test_della_keeps_with_its_probabilities_and_restores_the_mean(merge: Merge) -> None:
    """Rows of three entries: the middle one is kept with probability d, the others with d ± ε."""
    rows = 100_000
    model = torch.tensor([1.0, 2.0, 3.0]).repeat(rows, 1)
    found = merge("della_linear", torch.zeros(rows, 3), [model], weight=1.0, density=0.5, epsilon=0.2)
    kept = (found != 0).float().mean(0)
    torch.testing.assert_close(kept, torch.tensor([0.3, 0.5, 0.7]), rtol=0, atol=0.007)  # four standard errors
    torch.testing.assert_close(found.max(0).values, torch.tensor([1.0, 2.0, 3.0]) / torch.tensor([0.3, 0.5, 0.7]))
    plain = merge("della_linear", torch.zeros(rows, 3), [model], weight=1.0, density=0.5, epsilon=0.2, rescale=False)
    assert plain.unique().tolist() == [0.0, 1.0, 2.0, 3.0]


def test_della_masks_are_nested(merge: Merge) -> None:
    base, model = tensors(2)
    masks = [merge("della", base, [model], weight=1.0, density=density) != base for density in (0.2, 0.5, 0.8)]
    assert masks[0].sum() < masks[1].sum() < masks[2].sum()
    assert not bool((masks[0] & ~masks[1]).any())
    assert not bool((masks[1] & ~masks[2]).any())
