"""Derivatives of a loss by the coefficients of a merge, against finite differences of the loss itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from evomerge.merging.engine.derivatives import STEP, watched
from search_spaces.recipes.errors import RecipeError
from search_spaces.recipes.methods import METHODS, method_spec
from search_spaces.recipes.parameter_values import constant
from search_spaces.recipes.recipe import Recipe, Slice, Source
from search_spaces.spaces.derivatives import DIFFERENTIABLE, Coefficient

IDS = torch.arange(3, 19).reshape(2, 8)
VALUES = {"weight": 0.6, "lambda": 0.8, "t": 0.4, "density": 0.6}


def recipe_of(family: Any, method: str, *, first: float = 0.6, **changes: float) -> Recipe:
    """A merge of experts with the base, every differentiable parameter set; the first expert's weight is `first`."""
    spec = method_spec(method)
    values = VALUES | changes
    base, *experts = family.references
    experts = experts[: spec.max_models]
    if spec.base == "none":
        experts = [*experts, base][: spec.max_models]

    def own(index: int) -> tuple[tuple[str, Any], ...]:
        mine = values | ({"weight": first} if index == 0 else {"weight": 0.5})
        return tuple(sorted((p.name, constant(mine[p.name])) for p in spec.per_model if p.name in mine and not p.inert))

    sources = tuple(Source(expert, None, own(index)) for index, expert in enumerate(experts))
    parameters = tuple(sorted((p.name, constant(values[p.name])) for p in spec.shared if p.name in values))
    return Recipe(method, (Slice(sources),), base_model=base, parameters=parameters, dtype="float32")


def loss_of(module: Any) -> torch.Tensor:
    logits = module(IDS).logits.double()
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (torch.tanh(logits) * weights).sum()


def searched() -> list[tuple[str, str]]:
    found = []
    for method in METHODS:
        spec = method_spec(method)
        if spec.differentiable and spec.statistic is None:
            names = {p.name for p in spec.parameters if not p.inert}
            found += [(method, name) for name in DIFFERENTIABLE if name in names and name in VALUES]
    return found


@pytest.mark.parametrize(("method", "parameter"), searched())
def test_they_equal_finite_differences_of_the_loss(llama: Any, method: str, parameter: str) -> None:
    engine = llama.engine()
    source = 0 if parameter == "weight" else None
    with watched(engine, recipe_of(llama, method)) as (module, derivatives):
        loss_of(module).backward()
    own = [value for key, value in derivatives.items() if (key.parameter, key.source) == (parameter, source)]

    def loss(value: float) -> float:
        changed = {"first" if parameter == "weight" else parameter: value}
        with torch.no_grad():
            return float(loss_of(engine.apply(recipe_of(llama, method, **changed))))

    at = VALUES[parameter]
    expected = (loss(at + STEP) - loss(at - STEP)) / (2 * STEP)
    assert any(own)
    assert sum(own) == pytest.approx(expected, abs=0.05 * sum(map(abs, own)))


def test_every_tensor_and_source_has_its_own(llama: Any) -> None:
    with watched(llama.engine(), recipe_of(llama, "task_arithmetic")) as (module, derivatives):
        loss_of(module).backward()
        names = {name for name, _ in module.named_parameters()}
    weights = {key for key in derivatives if key.parameter == "weight"}
    assert weights == {Coefficient(name, source, "weight") for name in names for source in (0, 1)}


def test_backward_passes_add_up(llama: Any) -> None:
    recipe = recipe_of(llama, "task_arithmetic")
    with watched(llama.engine(), recipe) as (module, once):
        loss_of(module).backward()
    with watched(llama.engine(), recipe) as (module, twice):
        loss_of(module).backward()
        loss_of(module).backward()
    assert twice == pytest.approx({key: 2 * value for key, value in once.items()}, rel=1e-5, abs=1e-6)


def test_the_model_is_left_as_it_was(llama: Any) -> None:
    engine = llama.engine()
    recipe = recipe_of(llama, "ties")
    before = {name: parameter.data.clone() for name, parameter in engine.apply(recipe).named_parameters()}
    with watched(engine, recipe) as (module, _):
        loss_of(module).backward()
    for name, parameter in module.named_parameters():
        assert torch.equal(parameter.data, before[name])
        assert parameter.grad is None and not parameter.requires_grad


def test_layers_in_another_order_are_refused(llama: Any) -> None:
    expert = llama.references[1]
    slices = tuple(Slice((Source(expert, (layer, layer + 1)),)) for layer in (1, 0))
    recipe = Recipe("passthrough", slices, base_model=llama.base)
    with (
        pytest.raises(RecipeError, match="layers in another order have no derivatives"),
        watched(llama.engine(), recipe),
    ):
        pass
