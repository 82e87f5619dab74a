"""Layers in another order: built from references, scaled, exported, generated with."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from evomerge.merging.engine.layer_stack import is_layer_stack
from evomerge.merging.output.writer import write_checkpoint
from search_spaces.recipes import mergekit_yaml
from search_spaces.recipes.baselines import source_recipe, task_arithmetic_recipe
from search_spaces.recipes.errors import RecipeError
from search_spaces.recipes.fields import PathLayer
from search_spaces.recipes.layer_path import path_of, path_recipe
from search_spaces.spaces.context import SpaceContext
from search_spaces.spaces.data_flow import DataFlowConfig

PRE_NORM = ("llama", "llama_tied", "qwen2", "qwen3", "mistral", "gemma")
OTHERS = ("gemma2", "gemma3", "gpt2")
TOKENS = torch.arange(24).view(2, 12) % 61 + 3


def context_of(family, out_dtype="float32"):
    base = family.checkpoints[family.base]
    models = {f"m{index}": reference for index, reference in enumerate(family.references)}
    sizes = {name: int(np.prod(base.shape(name))) for name in base.layout.tensors()}
    return SpaceContext(models, base.layout, sizes, out_dtype=out_dtype)


def some_path(family, scaled=True):
    """Return a path with a repeat, a skip, a swap and layers of every model, and the factors on it."""
    a, b, c = family.references
    layers = [(a, 0), (b, 2), (a, 1), (c, 1), (b, 2), (a, 3)]
    factors = [1.0, 0.7, 1.4, 0.9, 0.6, 1.3] if scaled else [1.0] * 6
    products = np.cumprod(factors)
    return [PathLayer(m, layer, float(1 / c)) for (m, layer), c in zip(layers, products, strict=True)], factors


def logits(module, tokens=TOKENS):
    with torch.inference_mode():
        return module(tokens).logits.float()


def scaled_at_run_time(module, factors):
    """Return logits with the residual stream multiplied on its way into each layer: Sakana's W, by hooks."""
    hooks = [
        layer.register_forward_pre_hook(lambda _, args, factor=factor: (args[0] * factor, *args[1:]))
        for layer, factor in zip(module.get_decoder().layers, factors, strict=True)
    ]
    try:
        return logits(module)
    finally:
        for hook in hooks:
            hook.remove()


def without_epsilon(module):
    for part in module.modules():
        for name in ("variance_epsilon", "eps"):
            if isinstance(getattr(part, name, None), float):
                setattr(part, name, 0.0)


@pytest.mark.parametrize("name", PRE_NORM)
def test_folded_scales_are_scales_of_the_residual_stream(families, name):
    """The recipe's ordinary model computes what hooks on the unscaled model compute, up to the norms' epsilon."""
    family = families(name)
    path, factors = some_path(family)
    plain = [replace(stop, scale=1.0) for stop in path]
    engine = family.engine()
    module = engine.apply(path_recipe(plain, family.base, 4, out_dtype="float32"))
    unscaled, expected = logits(module), scaled_at_run_time(module, factors)
    found = logits(engine.apply(path_recipe(path, family.base, 4, out_dtype="float32")))
    torch.testing.assert_close(found, expected, atol=5e-4, rtol=0)
    assert float((found - unscaled).abs().max()) > 0.1  # and it matters
    without_epsilon(module)
    exact = logits(module)
    module = engine.apply(path_recipe(plain, family.base, 4, out_dtype="float32"))
    torch.testing.assert_close(exact, scaled_at_run_time(module, factors), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", [*PRE_NORM, *OTHERS])
def test_an_exported_model_is_the_searched_one(families, name, tmp_path):
    """Same logits from the saved checkpoint, read by transformers alone, as from the references of the search."""
    family = families(name)
    path, _ = some_path(family, scaled=name in PRE_NORM)
    recipe = path_recipe(path, family.base, 4, out_dtype="float32")
    engine = family.engine()
    searched = logits(engine.apply(recipe))
    write_checkpoint(engine, recipe, tmp_path / "out")
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    assert type(exported) is type(engine.apply(recipe))
    assert exported.config.num_hidden_layers == 6
    torch.testing.assert_close(logits(exported), searched, atol=1e-4, rtol=0)
    again = mergekit_yaml.read(tmp_path / "out" / "recipe.yaml")
    assert torch.equal(logits(family.engine().apply(again)), searched)


@pytest.mark.parametrize("name", [*PRE_NORM, "gemma3"])
def test_generation_with_the_cache_equals_generation_without(families, name):
    """Every occurrence of a layer has keys and values of its own."""
    family = families(name)
    path, _ = some_path(family, scaled=name in PRE_NORM)
    module = family.engine().apply(path_recipe(path, family.base, 4, out_dtype="float32"))
    options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    with_cache, without = (module.generate(TOKENS, use_cache=use, **options) for use in (True, False))
    assert torch.equal(with_cache, without)
    assert with_cache.shape == (2, 24)
    indices = [layer.self_attn.layer_idx for layer in module.get_decoder().layers]
    assert indices == list(range(6))


def test_layers_keep_their_kind(families):
    """A sliding-window layer stays one wherever it goes, and what is beneath has a window of its own."""
    for name in ("qwen3", "gemma3"):
        family = families(name)
        kinds = family.checkpoints[family.base].config.layer_types
        path, _ = some_path(family, scaled=False)
        module = family.engine().apply(path_recipe(path, family.base, 4, out_dtype="float32"))
        assert module.config.layer_types == [kinds[stop.layer] for stop in path]
        assert len({kinds[stop.layer] for stop in path}) == 2


def test_weights_are_references(llama):
    path, _ = some_path(llama)
    path[4] = replace(path[4], scale=path[1].scale)
    module = llama.engine().apply(path_recipe(path, llama.base, 4, out_dtype="float32"))
    layers = module.model.layers
    assert layers[1] is not layers[4]
    assert layers[1].mlp.up_proj.weight.data_ptr() == layers[4].mlp.up_proj.weight.data_ptr()
    assert layers[1].mlp.down_proj.weight.data_ptr() != layers[4].mlp.down_proj.weight.data_ptr()  # scaled: its own


def test_sources_stay_as_they_are_and_candidates_do_not_mix(llama):
    """A scale of one candidate is not seen by the next, nor by the sources."""
    path, _ = some_path(llama)
    engine = llama.engine()
    recipes = [path_recipe(path[: 3 + at] + path[-1:], llama.base, 4, out_dtype="float32") for at in range(3)]
    plain = source_recipe(llama.base, 4, out_dtype="float32")
    fresh = [logits(llama.engine().apply(recipe)) for recipe in (*recipes, plain)]
    for at in (0, 3, 2, 1, 3, 0, 2):
        assert torch.equal(logits(engine.apply([*recipes, plain][at])), fresh[at])


@pytest.mark.parametrize("out_dtype", ["float32", "bfloat16"])
def test_a_merge_and_other_models_along_a_path(families, out_dtype):
    """A merge whose layers are then reordered: searched from references, materialised tensor by tensor."""
    family = families("llama")
    models = {f"m{index}": reference for index, reference in enumerate(family.references)}
    merge = task_arithmetic_recipe(models, 4, 0.4, out_dtype=out_dtype).canonical()
    path = (
        PathLayer(None, 0),
        PathLayer(family.references[1], 2, 0.5),
        PathLayer(None, 2, 1.5),
        PathLayer(None, 2, 0.7),
    )
    recipe = replace(merge, path=path)
    engine = family.engine()
    assert is_layer_stack(recipe)
    found = {name: value.data.clone() for name, value in engine.apply(recipe).named_parameters(remove_duplicate=False)}
    written = dict(engine.materialize(recipe).named_parameters())
    assert all(torch.equal(found[name], written[name].float()) for name in written)
    merged = {name: value.data for name, value in engine.materialize(merge).named_parameters()}
    query = "model.layers.2.self_attn.q_proj.weight"
    assert torch.equal(written[query], merged[query])
    scaled = (merged["model.layers.2.mlp.down_proj.weight"].float() * 0.7).to(written["lm_head.weight"].dtype)
    assert torch.equal(written["model.layers.3.mlp.down_proj.weight"], scaled)
    assert engine.materialize(recipe).config.num_hidden_layers == 4


def test_a_merge_beneath_a_path_is_merged_once(llama, monkeypatch):
    models = {f"m{index}": reference for index, reference in enumerate(llama.references)}
    merge = task_arithmetic_recipe(models, 4, 0.4, out_dtype="float32").canonical()
    engine = llama.engine()
    engine.apply(replace(merge, path=(PathLayer(None, 0), PathLayer(None, 0))))
    monkeypatch.setattr(engine._layer_stacks, "_merge", lambda recipe: pytest.fail("merged again"))
    engine.apply(replace(merge, path=(PathLayer(None, 3), PathLayer(None, 1), PathLayer(None, 0))))


def test_plain_models_are_no_stacks(llama):
    assert not is_layer_stack(source_recipe(llama.base, 4))
    assert is_layer_stack(path_recipe([PathLayer(llama.base, 0), PathLayer(llama.base, 0)], llama.base, 4))
    a, b, _ = llama.references
    assert is_layer_stack(path_recipe([PathLayer(a, 0), PathLayer(b, 1)], a, 4))


def test_a_layer_that_is_not_there(llama):
    models = {f"m{index}": reference for index, reference in enumerate(llama.references)}
    merge = task_arithmetic_recipe(models, 4, 0.4).canonical()
    recipe = replace(merge, path=(PathLayer(None, 0), PathLayer(llama.references[1], 9)))
    with pytest.raises(RecipeError, match=r"evomerge.path\[1\].layer: there is no layer 9; write 0 to 3"):
        llama.engine().apply(recipe)


@pytest.mark.parametrize("name", ["gemma2", "gemma3"])
def test_norms_behind_attention_and_mlp_refuse_scales(families, name):
    context = context_of(families(name))
    with pytest.raises(RecipeError, match=r"post_feedforward_layernorm.*write scales: none"):
        DataFlowConfig(scales="slot").build(context)
    assert DataFlowConfig(scales="none").build(context).dimension == 2 * (3 * 4 - 2)


def test_gpt2_has_nowhere_to_write_scales(families):
    with pytest.raises(RecipeError, match=r"the models' layers have no input_layernorm.*write scales: none"):
        DataFlowConfig().build(context_of(families("gpt2")))


def test_a_search_space_of_paths_on_real_models(llama):
    """Random paths of the space are built as their recipes say."""
    space = DataFlowConfig(order="free", scales="transition").build(context_of(llama))
    engine, rng = llama.engine(), np.random.default_rng(0)
    for _ in range(3):
        recipe = space.decode(space.sample(rng))
        module = engine.apply(recipe)
        assert len(module.model.layers) == len(path_of(recipe, 4))
        written = dict(engine.materialize(recipe).named_parameters())
        found = dict(module.named_parameters(remove_duplicate=False))
        assert all(torch.equal(found[name].data, written[name].data) for name in written)
