"""Derivatives of a loss by the coefficients of a merge, against finite differences of the loss itself."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from evomerge.merging.derivatives.watched import NotFiniteError, watched
from search_spaces.recipes.fields import PathLayer
from search_spaces.recipes.layer_path import path_recipe
from search_spaces.recipes.methods import METHODS, method_spec
from search_spaces.recipes.parameter_values import constant
from search_spaces.recipes.recipe import Recipe, Slice, Source
from search_spaces.spaces.context import SpaceContext
from search_spaces.spaces.derivatives import LAYER_SCALE, ChainRule, Coefficient
from search_spaces.spaces.mixture import MixtureConfig

STEP = 0.04
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
    logits = module(IDS, use_cache=False).logits.double()
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (torch.tanh(logits) * weights).sum()


def searched() -> list[tuple[str, str]]:
    found = []
    for method in METHODS:
        spec = method_spec(method)
        if not spec.statistics:
            found += [(method, name) for name in spec.differentiable if name in VALUES]
    return found


@pytest.mark.parametrize(("method", "parameter"), searched())
def test_they_equal_finite_differences_of_the_loss(llama: Any, method: str, parameter: str) -> None:
    engine = llama.engine()
    source = 0 if parameter == "weight" else None
    with watched(engine, recipe_of(llama, method)) as model:
        loss_of(model.module).backward()
    own = [value for key, value in model.derivatives.items() if (key.parameter, key.source) == (parameter, source)]

    def loss(value: float) -> float:
        changed = {"first" if parameter == "weight" else parameter: value}
        with torch.no_grad():
            return float(loss_of(engine.apply(recipe_of(llama, method, **changed))))

    at = VALUES[parameter]
    expected = (loss(at + STEP) - loss(at - STEP)) / (2 * STEP)
    assert any(own)
    assert sum(own) == pytest.approx(expected, abs=0.05 * sum(map(abs, own)))


def test_every_tensor_and_source_has_its_own(llama: Any) -> None:
    with watched(llama.engine(), recipe_of(llama, "task_arithmetic")) as model:
        loss_of(model.module).backward()
        names = {name for name, _ in model.module.named_parameters()}
    weights = {key for key in model.derivatives if key.parameter == "weight"}
    assert weights == {Coefficient(name, source, "weight") for name in names for source in (0, 1)}


def test_backward_passes_add_up(llama: Any) -> None:
    recipe = recipe_of(llama, "task_arithmetic")
    with watched(llama.engine(), recipe) as once:
        loss_of(once.module).backward()
    with watched(llama.engine(), recipe) as twice:
        loss_of(twice.module).backward()
        loss_of(twice.module).backward()
    expected = {key: 2 * value for key, value in once.derivatives.items()}
    assert twice.derivatives == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_the_model_is_left_as_it_was(llama: Any) -> None:
    engine = llama.engine()
    recipe = recipe_of(llama, "ties")
    before = {name: parameter.data.clone() for name, parameter in engine.apply(recipe).named_parameters()}
    with watched(engine, recipe) as model:
        loss_of(model.module).backward()
    for name, parameter in model.module.named_parameters():
        assert torch.equal(parameter.data, before[name])
        assert parameter.grad is None and not parameter.requires_grad


def test_factors_of_layers_in_another_order(llama: Any) -> None:
    """A path through two models: each writer of a layer has its factor, set or not, wherever the layer stands."""
    engine, (base, expert, _) = llama.engine(), llama.references
    path = [(base, 0, 1.0), (expert, 1, 0.8), (expert, 1, 1.2), (base, 3, 1.0)]

    def recipe(scales: list[float]) -> Recipe:
        layers = [PathLayer(model, layer, scale) for (model, layer, _), scale in zip(path, scales, strict=True)]
        return path_recipe(layers, base, 4, dtype="float32", out_dtype="float32")

    scales = [scale for *_, scale in path]
    with watched(engine, recipe(scales)) as model:
        loss_of(model.module).backward()
    for place in range(len(path)):
        writers = [f"model.layers.{place}.{name}.weight" for name in ("self_attn.o_proj", "mlp.down_proj")]
        own = [model.derivatives[Coefficient(name, 0, "scale")] for name in writers]
        high, low = (
            float(loss_of(engine.apply(recipe([s + step * (at == place) for at, s in enumerate(scales)]))))
            for step in (1e-2, -1e-2)
        )
        assert sum(own) == pytest.approx((high - low) / 2e-2, abs=0.02 * sum(map(abs, own)) + 1e-3)


def test_factors_of_a_merge_along_a_path(llama: Any) -> None:
    """The coefficients of the merge below have derivatives, too: those of all places where a layer stands."""
    engine = llama.engine()

    def recipe(weight: float, scale: float) -> Recipe:
        path = tuple(PathLayer(None, layer, scale if layer == 2 else 1.0) for layer in (0, 2, 2, 3))
        return replace(recipe_of(llama, "task_arithmetic", first=weight), path=path)

    with watched(engine, recipe(0.6, 0.9)) as model:
        loss_of(model.module).backward()
    for parameter, source, points in (
        ("weight", 0, ((0.61, 0.9), (0.59, 0.9))),
        (LAYER_SCALE, None, ((0.6, 0.91), (0.6, 0.89))),
    ):
        own = [
            value
            for key, value in model.derivatives.items()
            if (key.parameter, key.source) == (parameter, source)
            and (parameter == "weight" or any(f"layers.{place}." in key.tensor for place in (1, 2)))
        ]
        high, low = (float(loss_of(engine.apply(recipe(*point)))) for point in points)
        assert sum(own) == pytest.approx((high - low) / 2e-2, abs=0.02 * sum(map(abs, own)) + 1e-3)


def test_only_what_is_wanted_is_watched(llama: Any) -> None:
    recipe = recipe_of(llama, "task_arithmetic")
    one = Coefficient("model.layers.1.mlp.up_proj.weight", 1, "weight")
    with watched(llama.engine(), recipe, {one}) as model:
        loss_of(model.module).backward()
        watched_parameters = [name for name, values in model.module.named_parameters() if values.requires_grad]
    assert set(model.derivatives) == {one} and watched_parameters == [one.tensor]


def test_a_gradient_that_is_not_finite_names_its_tensor(llama: Any) -> None:
    with (
        watched(llama.engine(), recipe_of(llama, "linear")) as model,
        pytest.raises(NotFiniteError, match=r"the gradient of \S+ is not finite"),
    ):
        (loss_of(model.module) * float("inf")).backward()


def test_the_distance_to_the_base(llama: Any) -> None:
    engine = llama.engine()

    def distance(weight: float) -> float:
        merged = dict(engine.apply(recipe_of(llama, "task_arithmetic", first=weight)).named_parameters())
        return sum(float((values.detach() - base[name]).square().sum()) for name, values in merged.items())

    base = llama.tensors(0)
    with watched(engine, recipe_of(llama, "task_arithmetic")) as model:
        found = model.pull_to_base(0.5, 2.0)
    assert found == pytest.approx(0.25 * distance(0.6), rel=1e-4)
    own = [slope for key, slope in model.derivatives.items() if (key.parameter, key.source) == ("weight", 0)]
    assert sum(own) == pytest.approx(0.25 * (distance(0.62) - distance(0.58)) / 0.04, rel=1e-3)


def test_weights_that_change_within_tensors(llama: Any) -> None:
    """Genes of chunks: by the chain rule, against finite differences of the loss."""
    layout = llama.checkpoints[llama.base].layout
    context = SpaceContext(
        {f"m{index}": reference for index, reference in enumerate(llama.references)},
        layout,
        {name: math.prod(llama.checkpoints[llama.base].shape(name)) for name in layout.tensors()},
        out_dtype="float32",
    )
    space = MixtureConfig(kind="mixture", chunks=7).build(context)
    engine, rule = llama.engine(block=37), ChainRule(space, layout)
    point = np.clip(space.start + 0.1 * np.sin(np.arange(space.dimension)), space.low, space.high)
    with watched(engine, space.decode(point), rule.wanted(point)) as model:
        loss_of(model.module).backward()
    found = rule.derivatives(point, model.derivatives)
    for gene in (0, 4, space.dimension - 1):
        step = 5e-3 * np.eye(space.dimension)[gene]
        high, low = (float(loss_of(engine.apply(space.decode(at)))) for at in (point + step, point - step))
        assert found[gene] == pytest.approx((high - low) / 1e-2, rel=0.03, abs=0.02)


@pytest.mark.parametrize("name", ["llama_tied", "gemma3", "gpt2", "gpt_neox", "qwen2"])
def test_every_architecture_also_with_tied_embeddings(families: Any, name: str) -> None:
    """A tied tensor has one gradient, from both of its places."""
    family = families(name)
    engine = family.engine()
    with watched(engine, recipe_of(family, "task_arithmetic")) as model:
        loss_of(model.module).backward()
    own = {
        key.tensor: value for key, value in model.derivatives.items() if (key.parameter, key.source) == ("weight", 0)
    }
    assert own.keys() == dict(model.module.named_parameters()).keys()
    high, low = (
        float(loss_of(engine.apply(recipe_of(family, "task_arithmetic", first=0.6 + step)))) for step in (5e-3, -5e-3)
    )
    assert sum(own.values()) == pytest.approx((high - low) / 1e-2, abs=0.02 * sum(map(abs, own.values())))
