"""Every method through the engine: each tensor is merged as on its own, with its shape and role."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from evomerge.testing.merge_methods import Merge
from search_spaces.recipes import mergekit_yaml
from search_spaces.recipes.methods import METHODS as ALL
from search_spaces.recipes.parameter_values import constant
from search_spaces.recipes.recipe import Recipe

# Those that rest on a text are tested with one (`tests/merging/test_gradients.py`).
METHODS = {name: spec for name, spec in ALL.items() if not spec.statistics}

# Coefficients that leave no default in place where that would hide a method's own way.
PARAMETERS: dict[str, dict[str, Any]] = {
    "slerp": {"t": 0.3},
    "ties": {"density": 0.4},
    "dare_linear": {"density": 0.4},
    "dare_ties": {"density": 0.4},
    "della_linear": {"density": 0.4},
    "della": {"density": 0.4},
    "breadcrumbs": {"density": 0.4, "gamma": 0.05},
    "breadcrumbs_ties": {"density": 0.4, "gamma": 0.05},
    "sce": {"select_topk": 0.5},
    "cabs": {"keep": 1.0, "group": 4.0},
    "drm": {"density": 0.5},
    "passthrough": {"scale": 0.7},
    "nearswap": {"t": 0.005},
    "ram": {"epsilon": 0.005},
    "ramplus_tl": {"epsilon": 0.005, "r": 0.7},
    "nuslerp": {"nuslerp_flatten": False},
}


def recipe_for(name: str, family: Any, **shared: Any) -> tuple[Recipe, dict[str, Any], list[int]]:
    """Return a recipe, its parameters for bare tensors, and which models it merges."""
    spec = METHODS[name]
    merged = [0] if spec.max_models == 1 and spec.base == "none" else [1] if spec.max_models == 1 else [1, 2]
    parameters = dict(PARAMETERS.get(name, {}))
    if any(parameter.name == "weight" for parameter in spec.parameters):
        parameters["weight"] = [0.3, 0.6]
    models = [
        {
            "model": family.references[index],
            "parameters": {"weight": parameters["weight"][place]} if "weight" in parameters else {},
        }
        for place, index in enumerate(merged)
    ]
    data = {
        "merge_method": name,
        "models": models,
        "parameters": {key: value for key, value in parameters.items() if key != "weight"},
        "dtype": "float32",
        "evomerge": {"seed": 3, "karcher_weights": name == "karcher"},
    }
    if spec.base != "none":
        data["base_model"] = family.base
    return mergekit_yaml.build(data), parameters, merged


@pytest.mark.parametrize("name", METHODS)
def test_each_tensor_is_merged_as_on_its_own(name: str, llama: Any) -> None:
    recipe, parameters, merged = recipe_for(name, llama)
    engine = llama.engine(block=300)
    engine.prepare(recipe)
    found = {key: parameter.data.clone() for key, parameter in engine.apply(recipe).named_parameters()}
    base, *experts = (llama.tensors(index) for index in range(3))
    models = [(base, *experts)[index] for index in merged]
    for key, values in found.items():
        alone = Merge(
            name,
            None if METHODS[name].base == "none" else base[key],
            [model[key] for model in models],
            seed=3,
            by_token=key in ("model.embed_tokens.weight", "lm_head.weight"),
            name=key,
        )
        in_steps = alone.method.stepwise_in_float32 and name != "karcher"  # whose weights are not mergekit's
        expected = alone.steps(torch.float32, **parameters) if in_steps else alone.run(**parameters)
        assert torch.equal(values, expected), key


@pytest.mark.parametrize("name", METHODS)
def test_footprint_is_known_before(name: str, llama: Any) -> None:
    recipe, _, merged = recipe_for(name, llama)
    found = llama.engine().footprint(recipe)
    base_read = METHODS[name].base != "none"
    assert found.source_bytes == 2 * found.parameters * (len(merged) + base_read)
    assert found.touched_bytes == found.source_bytes + found.prepared_bytes + found.resident_bytes


def test_methods_that_prepare_alike_share_it(llama: Any) -> None:
    """So that a search over methods does not hold the same ranks several times."""
    engine = llama.engine()
    engine.prepare(recipe_for("breadcrumbs", llama)[0])
    held = len(engine._prepared)
    for name in (
        "breadcrumbs_ties",
        "breadcrumbs",
    ):  # not ties: mergekit, and so evomerge, ranks equal entries otherwise
        engine.prepare(recipe_for(name, llama)[0])
    assert len(engine._prepared) == held
    engine.prepare(recipe_for("dare_ties", llama)[0])
    assert len(engine._prepared) == 2 * held
    engine.prepare(recipe_for("dare_linear", llama)[0])
    assert len(engine._prepared) == 2 * held


@pytest.mark.parametrize("name", [name for name in METHODS if name not in ("passthrough", "slerp", "nuslerp")])
def test_linear_maps_are_told_from_embeddings(name: str, llama_tied: Any) -> None:
    """With a tied head, too: the matrix is an embedding in both places."""
    recipe, _, _ = recipe_for(name, llama_tied)
    module = llama_tied.engine().apply(recipe)
    assert all(bool(torch.isfinite(values).all()) for values in module.parameters())


@pytest.fixture
def llama_tied(families: Any) -> Any:
    return families("llama_tied")


def test_slerp_over_the_whole_model_has_one_angle(llama: Any) -> None:
    recipe, _, _ = recipe_for("slerp", llama)
    whole = replace(recipe, parameters=(("t", constant(0.3)), ("whole_model", constant(True))), out_dtype="float32")
    engine = llama.engine()
    found = {key: values.data.clone() for key, values in engine.apply(whole).named_parameters()}
    base, model = llama.tensors(0), llama.tensors(1)
    a, b = (torch.cat([values.double().view(-1) for values in tensors.values()]) for tensors in (base, model))
    omega = torch.acos(a @ b / a.norm() / b.norm())
    if torch.cos(omega) > 0.9995:
        omega = torch.tensor(1e-6, dtype=torch.float64)  # so near that it is linear
    for key, values in found.items():
        expected = (
            torch.sin(0.7 * omega) * base[key].double() + torch.sin(0.3 * omega) * model[key].double()
        ) / torch.sin(omega)
        torch.testing.assert_close(values, expected.float(), rtol=1e-5, atol=1e-6)


def test_ties_over_the_whole_model_keeps_the_density_of_the_model(llama: Any) -> None:
    engine = llama.engine()
    base = llama.tensors(0)
    settings = {"density": 0.4, "normalize": True, "weight": 1.0, "whole_model": True}
    one = mergekit_yaml.build(
        {
            "merge_method": "ties",
            "base_model": llama.base,
            "models": [{"model": llama.references[1]}],
            "parameters": settings,
            "dtype": "float32",
        }
    )
    found = {key: values.data for key, values in engine.apply(one).named_parameters()}
    changed = {key: int((values != base[key].float()).sum()) for key, values in found.items()}
    total = sum(values.numel() for values in found.values())
    moved = sum(int((llama.tensors(1)[key] != base[key]).sum()) for key in found)
    assert 0.4 * total <= sum(changed.values()) <= min(0.42 * total + 50, moved)
    assert any(count != int(0.4 * found[key].numel()) for key, count in changed.items())


def test_methods_that_share_prepared_state_do_not_mix(llama: Any) -> None:
    """One engine for all methods in turn gives what an engine for each gives."""
    engine = llama.engine()
    alone: dict[str, dict[str, torch.Tensor]] = {}
    for name in (*METHODS, *METHODS):
        recipe, _, _ = recipe_for(name, llama)
        found = {key: parameter.data.clone() for key, parameter in engine.apply(recipe).named_parameters()}
        if name not in alone:
            alone[name] = {key: parameter.data for key, parameter in llama.engine().apply(recipe).named_parameters()}
        for key, values in alone[name].items():
            assert torch.equal(found[key], values), (name, key)


def test_parameters_that_read_alike_do_not_mix(llama: Any) -> None:
    """multislerp's (weights, true, eps) and karcher's (weights, 1 step, tol) are equal as numbers."""
    engine, found = llama.engine(), []
    for name, own in (("multislerp", {"eps": 1e-8}), ("karcher", {"max_iter": 1.0, "tol": 1e-8})):
        models = [
            {"model": path, "parameters": {"weight": w}} for path, w in zip(llama.references, (2, 9, 2), strict=True)
        ]
        data = {"merge_method": name, "models": models, "parameters": own, "dtype": "float32"}
        data |= {"evomerge": {"karcher_weights": name == "karcher"}}
        for used in (engine, llama.engine()):
            module = used.apply(mergekit_yaml.build(data))
            found.append(module.get_parameter("model.layers.0.mlp.up_proj.weight").data.clone())
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[2], found[3])
    assert not torch.equal(found[0], found[2])
