"""The chain rule from coefficients of tensors to genes, against differences of what a space decodes to."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from search_spaces.recipes.methods import METHODS
from search_spaces.recipes.resolve import resolve
from search_spaces.spaces.coefficients import CoefficientSpace
from search_spaces.spaces.derivatives import LAYER_SCALE, ChainRule, Coefficient, coefficients_of, values
from search_spaces.spaces.layer_coefficients import CoefficientConfig
from tests.conftest import make_layout

MODELS = {"base": "/models/base", "a": "/models/a", "b": "/models/b"}


def space_of(**settings: Any) -> CoefficientSpace:
    return CoefficientSpace(CoefficientConfig(**settings), MODELS, make_layout(3))


def slope(space: CoefficientSpace, point: np.ndarray, table: dict[Coefficient, float]) -> np.ndarray:
    """What a loss that is linear in the coefficients changes by, gene by gene."""

    def loss(genotype: np.ndarray) -> float:
        now = values(resolve(space.decode(genotype), make_layout(3)))
        return sum(table.get(key, 0.0) * value for key, value in now.items())

    found = np.zeros(space.dimension)
    for gene in range(space.dimension):
        step = np.zeros(space.dimension)
        step[gene] = 1e-3
        found[gene] = (loss(point + step) - loss(point - step)) / 2e-3
    return found


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "task_arithmetic"},
        {"method": "task_arithmetic", "modules": ["attention", "mlp", "other"], "layers_per_group": 2},
        {"method": "ties"},
    ],
    ids=str,
)
def test_they_equal_differences(settings: dict[str, Any]) -> None:
    space = space_of(**settings)
    rng = np.random.default_rng(0)
    point = space.low + rng.uniform(0.2, 0.8, space.dimension) * (space.high - space.low)
    coefficients = values(resolve(space.decode(point), make_layout(3)))
    table = {key: float(rng.normal()) for key in coefficients}
    rule = ChainRule(space, make_layout(3))
    np.testing.assert_allclose(rule.derivatives(point, table), slope(space, point, table), atol=1e-6)


def test_densities_are_held() -> None:
    space = space_of(method="ties")
    rule = ChainRule(space, make_layout(3))
    moves = rule.searchable()
    names = np.array([gene.name for gene in space.genes])
    assert {"density" in name for name in names[moves]} == {False}
    assert {"density" in name for name in names[~moves]} == {True}


def test_a_choice_of_method_is_held_and_the_chosen_methods_genes_move() -> None:
    from search_spaces.spaces.context import SpaceContext
    from search_spaces.spaces.registry import build_space

    layout = make_layout(3)
    sizes = dict.fromkeys(layout.tensors(), 10)
    config = CoefficientConfig(method=["task_arithmetic", "slerp"])
    space = build_space(config, SpaceContext(MODELS, layout, sizes))
    point = space.start.copy()
    gradient = ChainRule(space, layout).derivatives(
        point, dict.fromkeys(values(resolve(space.decode(point), layout)), 1.0)
    )
    assert not gradient[space.discrete].any()
    assert gradient.any()
    assert not gradient[~space.active(point)].any()


def test_kept_differences_are_measured_again_when_they_no_longer_hold() -> None:
    space = space_of(method="task_arithmetic")
    rule = ChainRule(space, make_layout(3))
    table = dict.fromkeys(values(resolve(space.decode(space.start), make_layout(3))), 1.0)
    first = rule.derivatives(space.start, table)
    moved = np.clip(space.start + 0.1, space.low, space.high)
    calls = []
    original = rule._measure
    rule._measure = lambda *arguments: calls.append(original(*arguments))  # type: ignore[method-assign]
    np.testing.assert_allclose(rule.derivatives(moved, table), first)
    assert not calls


def test_methods_without_derivatives_have_no_coefficients() -> None:
    space = space_of(method="sce")
    assert not ChainRule(space, make_layout(3)).searchable().any()
    plans = resolve(space.decode(space.start), make_layout(3))
    assert {key.parameter for plan in plans for key in coefficients_of(plan)} <= {LAYER_SCALE}


def test_what_is_differentiable_are_parameters_of_methods() -> None:
    for spec in METHODS.values():
        assert {*spec.differentiable} <= {parameter.name for parameter in spec.parameters if not parameter.inert}, (
            spec.name
        )


def test_the_gene_of_activation_informed_merging_moves() -> None:
    space = space_of(
        method="task_arithmetic", calibration_text="text.txt", ranges={"activation_informed": {"low": 0.0, "high": 1.0}}
    )
    moves = ChainRule(space, make_layout(3)).searchable()
    assert all(moves[index] for index, gene in enumerate(space.genes) if "activation_informed" in gene.name)
    assert any("activation_informed" in gene.name for gene in space.genes)
