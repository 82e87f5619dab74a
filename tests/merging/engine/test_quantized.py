"""Resident models with quantised layers: filled in place, equal to quantising the merged model, never for held-out."""

import pytest
import torch

from fitness.results import TaskError
from fitness.scoring.quantized import QuantizedLinear, is_quantized, quantizable, quantize, quantizer
from search_spaces.recipes.baselines import source_recipe, task_arithmetic_recipe
from search_spaces.recipes.layer_path import path_recipe
from tests.merging.engine.test_layer_stack import logits, some_path

CPU = torch.device("cpu")


def recipes_of(family):
    """Return two merges of all models."""
    models = {f"m{index}": reference for index, reference in enumerate(family.references)}
    layout = family.checkpoints[family.base].layout
    return [task_arithmetic_recipe(models, layout, scale, out_dtype="float32") for scale in (0.3, 0.6)]


def quantized_copy(module, kind):
    """Return the logits of a model whose weights are quantised after the fact."""
    weights = {name: module.get_parameter(f"{name}.weight").clone() for name in quantizable(module)}
    takers = quantize(module, lambda _: CPU, kind)
    for name, weight in weights.items():
        takers[f"{name}.weight"](weight)
    return logits(module)


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("name", ["llama_tied", "qwen2", "gemma2"])
@pytest.mark.parametrize("large", [1, 1 << 22])  # with threads and kernels, and without
def test_candidates_are_merged_in_float_and_then_quantised_into_the_same_model(families, name, kind, large):
    family = families(name)
    engine = family.engine(quantize=quantizer(kind, CPU), large=large)
    engine.prepare(recipes_of(family)[0])
    found = []
    for recipe in recipes_of(family):
        module = engine.apply(recipe)
        found.append((module, logits(module)))
        plain = family.engine().apply(recipe)
        exact = logits(plain)
        torch.testing.assert_close(found[-1][1], quantized_copy(plain, kind), atol=1e-5, rtol=1e-5)
        assert 0 < float((found[-1][1] - exact).abs().max()) < 0.5 * float(exact.abs().max())
    assert found[0][0] is found[1][0]
    assert float((found[0][1] - found[1][1]).abs().max()) > 1e-3


def test_unquantised_models_are_those_of_an_engine_without(families):
    family = families("llama")
    engine = family.engine(quantize=quantizer("int4", CPU))
    recipe = recipes_of(family)[1]
    rounded = logits(engine.apply(recipe))
    whole = engine.apply(recipe, unquantized=True)
    assert not is_quantized(whole)
    torch.testing.assert_close(logits(whole), logits(family.engine().apply(recipe)), atol=0, rtol=0)
    torch.testing.assert_close(logits(engine.apply(recipe)), rounded, atol=0, rtol=0)  # and back
    assert not is_quantized(engine.load(family.references[1]))  # what texts are measured with
    assert not is_quantized(engine.materialize(recipe))


def test_weights_that_are_rounded_share_the_room_of_the_largest(families):
    family = families("llama")
    engine = family.engine(quantize=quantizer("int8", CPU))
    module = engine.apply(recipes_of(family)[0])
    layers = [layer for layer in module.modules() if isinstance(layer, QuantizedLinear)]
    assert len(layers) == 4 * 7 and not any("weight" in dict(layer.named_parameters()) for layer in layers)
    resident = engine._resident
    places = {resident.parameters[name].untyped_storage() for name in resident.quantized}
    assert {place.data_ptr() for place in places} == {
        resident.parameters["model.layers.0.mlp.up_proj.weight"].data_ptr()
    }


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_layers_in_another_order_are_quantised_too(families, kind):
    family = families("llama")
    engine, exact = family.engine(quantize=quantizer(kind, CPU)), family.engine()
    for scaled in (True, False):
        path, _ = some_path(family, scaled)
        recipe = path_recipe(path, family.base, 4, out_dtype="float32")
        found = logits(engine.apply(recipe))
        plain = exact.apply(recipe)
        torch.testing.assert_close(found, quantized_copy(plain, kind), atol=1e-5, rtol=1e-5)
        exact = family.engine()  # `quantized_copy` has changed its model
        torch.testing.assert_close(logits(engine.apply(recipe, unquantized=True)), logits(exact.apply(recipe)))


def test_a_model_without_linear_layers_is_refused_before_it_is_built(families):
    family = families("gpt2")
    with pytest.raises(TaskError, match="has no plain linear layers"):
        family.engine(quantize=quantizer("int8", CPU)).prepare(source_recipe(family.base, family.layers))
