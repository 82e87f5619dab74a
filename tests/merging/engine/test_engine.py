"""The engine against plain references: every architecture, every method, in place, blockwise, on disk."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from evomerge.merging.engine.tensor_merge import uses_all_threads
from evomerge.merging.methods.blocks import CPU_BLOCK, TensorInfo
from evomerge.merging.methods.registry import implementation
from evomerge.merging.output.writer import write_checkpoint
from evomerge.merging.sources.errors import CheckpointError
from search_spaces.recipes.errors import RecipeError
from search_spaces.recipes.parameter_values import Condition, constant
from search_spaces.recipes.recipe import Recipe, Slice, Source

IDS = torch.arange(3, 19).reshape(2, 8)
METHODS = ("linear", "slerp", "task_arithmetic", "ties", "dare_ties", "passthrough")


def per_layer(family: Any, method: str, value: float = 0.3, *, out_dtype: str = "bfloat16") -> Recipe:
    """Coefficients that differ by layer, model and module; embeddings and head of their own."""
    base, *experts = family.references
    if method == "slerp":
        experts = experts[:1]
    cuts = [(0, 0), *((layer, layer + 1) for layer in range(family.layers)), (family.layers, family.layers)]
    slices = []
    for place, cut in enumerate(cuts):
        sources = []
        for index, expert in enumerate(experts):
            weight = (Condition(value + 0.05 * place, "mlp"), Condition(value - 0.07 * index - 0.02 * place))
            parameters = {"weight": weight, "density": constant(0.4 + 0.1 * index)}
            own = {"linear": ("weight",), "task_arithmetic": ("weight",)}.get(method, ("density", "weight"))
            own = () if method in ("slerp", "passthrough") else own
            sources.append(Source(expert, cut, tuple((name, parameters[name]) for name in own)))
        if method == "passthrough":
            slices.append(Slice((sources[place % len(sources)],)))
            continue
        sources.append(Source(base, cut, (("weight", constant(0.5)),) if method == "linear" else ()))
        shared = (("t", (Condition(value + 0.05 * place),)),) if method == "slerp" else ()
        slices.append(Slice(tuple(sources), shared))
    return Recipe(method, tuple(slices), base_model=base, dtype="float32", out_dtype=out_dtype)


def whole(family: Any, index: int) -> Recipe:
    """One model as it is."""
    reference = family.references[index]
    return Recipe("passthrough", (Slice((Source(reference, None),)),), base_model=reference, out_dtype="bfloat16")


def weights(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.data.clone() for name, parameter in module.named_parameters()}


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert torch.equal(found[name].float(), values.float()), name


# --- every architecture ---


def test_passthrough_of_one_model_is_that_model(family: Any) -> None:
    engine = family.engine()
    assert_equal(weights(engine.apply(whole(family, 1))), family.tensors(1))


def test_linear_with_weight_one_is_that_model(family: Any) -> None:
    recipe = Recipe(
        "linear",
        (Slice((Source(family.references[2], (0, family.layers), (("weight", constant(1.0)),)),)),),
        base_model=family.base,
        out_dtype="bfloat16",
    )
    assert_equal(weights(family.engine().apply(recipe)), family.tensors(2))


def test_task_arithmetic_equals_a_plain_reference(family: Any) -> None:
    recipe = per_layer(family, "task_arithmetic")
    found = weights(family.engine().apply(recipe))
    base, *experts = (family.tensors(index) for index in range(3))
    layout = family.checkpoints[family.base].layout
    place_of = dict.fromkeys(layout.embeddings, 0) | dict.fromkeys(layout.final, family.layers + 1)
    for layer in range(family.layers):
        place_of |= {layout.layer_tensor(layer, name): layer + 1 for name in layout.layers[layer]}
    for name, start in base.items():
        total = torch.zeros(start.shape)
        for index, expert in enumerate(experts):
            place = place_of[name]
            weight = 0.3 + 0.05 * place if "mlp" in name else 0.3 - 0.07 * index - 0.02 * place
            total = total + weight * (expert[name].float() - start.float())
        assert torch.equal(found[name], (start.float() + total).bfloat16().float()), name


def test_nothing_of_a_recipe_is_left_after_the_next(family: Any) -> None:
    engine = family.engine()
    first = per_layer(family, "task_arithmetic", 0.3)
    module = engine.apply(first)
    before = weights(module)
    for method in METHODS:
        engine.apply(per_layer(family, method, 0.8))
    again = engine.apply(first)
    assert again is module
    assert_equal(weights(again), before)


@pytest.mark.parametrize("method", ["task_arithmetic", "passthrough"])
def test_apply_equals_the_checkpoint_on_disk(family: Any, method: str, tmp_path: Any, read: Any) -> None:
    from transformers import AutoModelForCausalLM

    engine, recipe = family.engine(), per_layer(family, method)
    out = write_checkpoint(engine, recipe, tmp_path / "out")
    module = engine.apply(recipe)
    assert_equal(weights(module), read(out))
    loaded, info = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert read(out).popitem()[1].dtype == torch.bfloat16
    with torch.inference_mode():
        assert torch.equal(module(IDS).logits, loaded.eval()(IDS).logits)


def test_tied_embeddings_stay_tied(family: Any) -> None:
    engine = family.engine()
    module = engine.apply(per_layer(family, "linear"))
    tied = module.get_output_embeddings().weight is module.get_input_embeddings().weight
    assert tied == family.checkpoints[family.base].outline.tied
    assert tied == (family.name in ("llama_tied", "gemma", "gemma2", "gemma3", "gpt2"))


def test_layers_can_be_reordered_repeated_and_dropped(family: Any, tmp_path: Any) -> None:
    """Each moved layer keeps its weights and its kind of attention, in memory and on disk."""
    from transformers import AutoModelForCausalLM

    base, first, second = family.references
    order = [(base, 2), (first, 0), (first, 1), (second, 3), (base, 2), (second, 1)]
    slices = [(base, (0, 0)), *((model, (layer, layer + 1)) for model, layer in order), (second, (4, 4))]
    recipe = Recipe(
        "passthrough",
        tuple(Slice((Source(model, cut),)) for model, cut in slices),
        base_model=base,
        dtype="bfloat16",
    )
    engine = family.engine()
    shallow = engine.apply(whole(family, 0))
    module = engine.apply(recipe)
    assert module is not shallow
    found, sources = weights(module), {path: family.tensors(i) for i, path in enumerate(family.references)}
    layout = family.checkpoints[base].layout
    for place, (model, layer) in enumerate(order):
        for name in layout.layers[0]:
            expected = sources[model][layout.layer_tensor(layer, name)]
            assert torch.equal(found[layout.layer_tensor(place, name)], expected.float())
    for name in layout.final:
        assert torch.equal(found[name], sources[second][name].float())
    kinds = getattr(family.checkpoints[base].config, "layer_types", None)
    if kinds:
        assert module.config.layer_types == [kinds[layer] for _, layer in order]
    out = write_checkpoint(engine, recipe, tmp_path / "deep")
    loaded = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    assert loaded.config.num_hidden_layers == 6
    with torch.inference_mode():
        assert torch.equal(module(IDS).logits, loaded(IDS).logits)
    assert_equal(weights(engine.apply(whole(family, 0))), family.tensors(0))


# --- every method ---


@pytest.mark.parametrize("method", METHODS)
def test_blockwise_equals_whole(llama: Any, method: str) -> None:
    recipe = per_layer(llama, method)
    expected = weights(llama.engine().apply(recipe))
    assert_equal(weights(llama.engine(block=100).apply(recipe)), expected)


@pytest.mark.parametrize("method", METHODS)
def test_preparing_changes_nothing(llama: Any, method: str) -> None:
    recipe = per_layer(llama, method)
    prepared = llama.engine()
    prepared.prepare(per_layer(llama, method, 0.9))
    assert_equal(weights(prepared.apply(recipe)), weights(llama.engine().apply(recipe)))


@pytest.mark.parametrize("method", METHODS)
def test_sources_are_not_written_to(llama: Any, method: str) -> None:
    def state() -> list[torch.Tensor]:
        return [source.tensor(name).clone() for source in llama.checkpoints.values() for name in source.names]

    before = state()
    llama.engine().apply(per_layer(llama, method))
    assert all(torch.equal(a, b) for a, b in zip(before, state(), strict=True))


@pytest.mark.parametrize("method", METHODS)
def test_apply_allocates_nothing_of_the_models_size(llama: Any, method: str) -> None:
    """With blocks of 256 entries no allocation is larger than one, though the tensors have up to 2048."""
    from torch.profiler import ProfilerActivity, profile

    engine = llama.engine(block=256)
    recipe = per_layer(llama, method)
    engine.apply(recipe)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as run:
        torch.empty(3)  # so that something is seen to be allocated
        engine.apply(recipe)
    largest = max(event.self_cpu_memory_usage for event in run.events())
    assert 12 <= largest <= 256 * 4


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_resident_dtype_can_be_chosen(llama: Any, dtype: Any) -> None:
    module = llama.engine(compute_dtype=dtype).apply(per_layer(llama, "task_arithmetic"))
    expected = weights(llama.engine().apply(per_layer(llama, "task_arithmetic")))
    wanted = getattr(torch, dtype)
    assert_equal(weights(module), {name: values.to(wanted) for name, values in expected.items()})


def test_out_dtype_float32_is_not_rounded(llama: Any) -> None:
    fine = weights(llama.engine().apply(per_layer(llama, "linear", out_dtype="float32")))
    coarse = weights(llama.engine().apply(per_layer(llama, "linear")))
    assert any(not torch.equal(fine[name], coarse[name]) for name in fine)
    assert_equal({name: values.bfloat16() for name, values in fine.items()}, coarse)


def test_out_dtype_defaults_to_the_sources(llama: Any) -> None:
    recipe = Recipe("passthrough", (Slice((Source(llama.base, None),)),), base_model=llama.base)
    engine = llama.engine()
    assert engine.out_dtype(recipe) == torch.bfloat16
    assert engine.materialize(recipe).dtype == torch.bfloat16


def test_out_dtype_defaults_to_what_all_sources_fit_into(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """bfloat16 and float16 fit into float32 only, in whichever places they stand."""
    engine = llama.engine()
    references = [llama.base, *llama.references[1:3]]
    recipe = Recipe(
        "task_arithmetic", (Slice(tuple(Source(reference, None) for reference in references)),), base_model=llama.base
    )
    for other in recipe.models:
        types = {reference: SimpleNamespace(dtype=torch.bfloat16) for reference in recipe.models}
        types[other] = SimpleNamespace(dtype=torch.float16)
        monkeypatch.setattr(engine, "checkpoint", types.__getitem__)
        assert engine.out_dtype(recipe) == torch.float32


def test_model_stays_in_eval_mode_without_gradients(llama: Any) -> None:
    module = llama.engine().apply(per_layer(llama, "linear"))
    assert not module.training
    assert not any(parameter.requires_grad for parameter in module.parameters())


def test_the_global_generator_is_left_alone(llama: Any) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    llama.engine().apply(per_layer(llama, "dare_ties"))
    assert torch.equal(torch.rand(3), expected)


# --- sources, costs, errors ---


def test_load_puts_a_source_in_place(family: Any, read: Any) -> None:
    engine = family.engine()
    engine.apply(per_layer(family, "linear"))
    for index in (1, 0):
        assert_equal(weights(engine.load(family.references[index])), family.tensors(index))


def test_a_source_is_scored_in_its_own_configuration(make_models: Any, configs: Any, tmp_path: Any) -> None:
    """A fine-tune with another rotary base computes otherwise: it must not borrow the base's."""
    from transformers import AutoModelForCausalLM

    from evomerge.merging.engine.engine import MergeEngine
    from evomerge.merging.sources.checkpoints import Checkpoint

    (plain,) = make_models(tmp_path / "plain", configs["llama"](), 1)
    other_config = configs["llama"]()
    other_config.rope_parameters = {**other_config.rope_parameters, "rope_theta": 50.0}
    (other,) = make_models(tmp_path / "other", other_config, 1)
    engine = MergeEngine({path: Checkpoint.open(path) for path in (plain, other)}, base=plain)
    logits = {}
    with torch.inference_mode():
        for path in (plain, other, plain):
            logits[path] = engine.load(path)(IDS).logits
            expected = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()(IDS).logits
            assert torch.equal(logits[path], expected)
    assert not torch.equal(logits[plain], logits[other])


def test_footprint_counts_bytes(llama: Any) -> None:
    engine = llama.engine()
    parameters = sum(values.numel() for values in llama.tensors(0).values())
    found = engine.footprint(per_layer(llama, "task_arithmetic"))
    assert found.parameters == parameters
    assert found.source_bytes == 3 * 2 * parameters
    assert found.prepared_bytes == 0
    assert found.resident_bytes == 4 * parameters
    assert found.touched_bytes == found.source_bytes + found.resident_bytes
    assert found.buffer_bytes == torch.get_num_threads() * (2 + 8) * 4 * CPU_BLOCK
    assert found.peak_bytes == found.source_bytes + int(1.3 * found.resident_bytes) + found.buffer_bytes
    assert engine.footprint(per_layer(llama, "ties")).prepared_bytes == 2 * 4 * parameters
    assert engine.footprint(per_layer(llama, "dare_ties")).prepared_bytes == 2 * 2 * parameters


def test_unopened_model_is_named(llama: Any) -> None:
    recipe = per_layer(llama, "linear").with_models({llama.references[1]: "org/other"})
    with pytest.raises(CheckpointError, match=r"org/other: the recipe names a model that is not opened; use one of"):
        llama.engine().apply(recipe)


def test_layers_beyond_the_model_are_refused(llama: Any) -> None:
    recipe = Recipe("passthrough", (Slice((Source(llama.base, (0, 9)),)),), base_model=llama.base)
    with pytest.raises(RecipeError, match=r"layer_range"):
        llama.engine().apply(recipe)


def test_shapes_are_compared_without_preflight(
    llama: Any, make_models: Callable[..., Any], configs: Any, tmp_path: Any
) -> None:
    from evomerge.merging.engine.engine import MergeEngine
    from evomerge.merging.sources.checkpoints import Checkpoint

    config = configs["llama"]()
    config.intermediate_size = 64
    (wide,) = make_models(tmp_path, config, 1)
    engine = MergeEngine({**llama.checkpoints, wide: Checkpoint.open(wide)}, base=llama.base)
    recipe = per_layer(llama, "linear").with_models({llama.references[1]: wide})
    with pytest.raises(CheckpointError, match=r"gate_proj.weight has shape \[64, 32\].*\[48, 32\]; merge models"):
        engine.apply(recipe)


def test_linear_weights_that_sum_to_zero_fail(llama: Any) -> None:
    sources = tuple(
        Source(path, None, (("weight", constant(weight)),))
        for path, weight in zip(llama.references, (1.0, -1.0, 0.0), strict=True)
    )
    recipe = Recipe("linear", (Slice(sources),), base_model=llama.base)
    with pytest.raises(ValueError, match=r"sum to 0.*set normalize: false"):
        llama.engine().apply(recipe)


def test_large_matrices_that_are_decomposed_take_all_threads() -> None:
    side = 1 << 11  # 1 << 22 entries: the largest that one thread takes
    spectral, averaged = implementation("tsv_m"), implementation("linear")
    assert uses_all_threads(spectral, TensorInfo((side, side + 1)))
    assert not uses_all_threads(spectral, TensorInfo((side, side)))
    assert not uses_all_threads(spectral, TensorInfo((side, side + 1), by_token=True))  # merged in blocks
    assert not uses_all_threads(averaged, TensorInfo((side, side + 1)))
