"""Per-layer properties of the configuration follow the layers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BambaConfig,
    DeepseekV3Config,
    DiffLlamaConfig,
    Gemma3nTextConfig,
    GPT2Config,
    GPTNeoConfig,
    JambaConfig,
    Llama4TextConfig,
    LlamaConfig,
    NemotronHConfig,
    PretrainedConfig,
    Qwen3MoeConfig,
    RecurrentGemmaConfig,
    SmolLM3Config,
    xLSTMConfig,
)

from evomerge.merging.engine.engine import MergeEngine
from evomerge.merging.output.writer import write_checkpoint
from evomerge.merging.sources.architecture import layout_of
from evomerge.merging.sources.checkpoints import Checkpoint
from evomerge.merging.sources.layers import check_kinds, layer_order, per_layer_lists, reordered
from search_spaces.recipes.errors import RecipeError
from search_spaces.recipes.parameter_values import constant
from search_spaces.recipes.recipe import Recipe, Slice, Source
from tests.merging.tiny import TINY

PER_LAYER = {
    "qwen2": ("layer_types",),
    "qwen3": ("layer_types",),
    "gemma2": ("layer_types",),
    "gemma3": ("layer_types",),
}

EXPERTS = {"head_dim": 8, "moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2}
MAMBA = {"mamba_n_heads": 8, "mamba_d_state": 8, "mamba_expand": 2, "mamba_d_head": 8, "mamba_n_groups": 1}
HYBRID = ["linear_attention", "full_attention", "mlp", "linear_attention"]

LAYERS = (2, 0, 1, 3, 3)
"""Where the five layers of the tests' merges come from."""

MOVED: dict[str, tuple[PretrainedConfig, dict[str, list[Any]]]] = {
    "lists": (SmolLM3Config(**TINY, no_rope_layers=[1, 0, 1, 0, 1]), {"no_rope_layers": [1, 1, 0, 0, 0]}),
    "kinds as they are counted up": (
        GPTNeoConfig(
            hidden_size=32, num_layers=4, num_heads=4, vocab_size=64, attention_types=[[["global", "local"], 2]]
        ),
        {"attention_layers": ["global", "global", "local", "local", "local"]},
    ),
    "blocks": (
        NemotronHConfig(hidden_size=32, layers_block_type=HYBRID, mtp_layers_block_type=HYBRID[::-1]),
        {"layers_block_type": [HYBRID[layer] for layer in LAYERS], "mtp_layers_block_type": HYBRID[::-1]},
    ),
    "a cycle of blocks": (
        RecurrentGemmaConfig(**TINY, block_types=["recurrent", "attention", "recurrent"]),
        {"block_types": ["recurrent", "recurrent", "attention", "recurrent", "recurrent"]},
    ),
    "numbers of layers": (Qwen3MoeConfig(**TINY, **EXPERTS, mlp_only_layers=[1, 3]), {"mlp_only_layers": [2, 3, 4]}),
    "a step": (Qwen3MoeConfig(**TINY, **EXPERTS, decoder_sparse_step=2), {"mlp_only_layers": [0, 1]}),
    "a step and numbers": (
        Qwen3MoeConfig(**TINY, **EXPERTS, decoder_sparse_step=2, mlp_only_layers=[3]),
        {"mlp_only_layers": [0, 1, 3, 4]},
    ),
    "all numbers": (
        Llama4TextConfig(**TINY, moe_layers=[0, 1, 2, 3], no_rope_layers=[1, 1, 1, 0]),
        {"moe_layers": [0, 1, 2, 3, 4], "no_rope_layers": [1, 1, 1, 0, 0]},
    ),
    "numbers, none listed": (BambaConfig(**TINY, **MAMBA, attn_layer_indices=[]), {"attn_layer_indices": []}),
}


def weighted(model: str, start: int, end: int) -> Source:
    return Source(model, (start, end), (("weight", constant(0.5)),))


def test_order_follows_the_base_where_it_is_a_source() -> None:
    recipe = Recipe(
        "linear",
        (
            Slice((weighted("a", 1, 3), weighted("base", 0, 2))),
            Slice((weighted("a", 0, 1), weighted("b", 3, 4))),
        ),
        base_model="base",
    )
    assert layer_order(recipe) == (("base", 0), ("base", 1), ("a", 0))


def test_lists_per_layer_are_found_by_name(configs: dict[str, Callable[[], Any]]) -> None:
    for name, build in configs.items():
        assert per_layer_lists(build()) == PER_LAYER.get(name, ()), name


def test_a_list_of_token_ids_is_not_per_layer(configs: dict[str, Callable[[], Any]]) -> None:
    config = configs["llama"]()
    config.eos_token_id = [1, 2, 3, 4]
    found = reordered(config, (("m", 0), ("m", 1)), {"m": config})
    assert found.eos_token_id == [1, 2, 3, 4]


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3", "gpt2"])
def test_reordered_config(configs: dict[str, Callable[[], Any]], name: str) -> None:
    config, other = configs[name](), configs[name]()
    before = config.to_dict()
    if name in PER_LAYER:
        other.layer_types = ["full_attention"] * 4
    order = (("m", 2), ("m", 0), ("n", 0), ("m", 3), ("m", 1), ("m", 1))
    found = reordered(config, order, {"m": config, "n": other})
    assert found.num_hidden_layers == 6
    assert config.to_dict() == before
    if name in PER_LAYER:
        kinds = config.layer_types
        assert found.layer_types == [kinds[2], kinds[0], "full_attention", kinds[3], kinds[1], kinds[1]]


def test_a_depth_that_is_stated_twice() -> None:
    config = xLSTMConfig(hidden_size=32, num_heads=4, num_blocks=2, num_hidden_layers=2, vocab_size=64)
    found = reordered(config, (("m", 0), ("m", 1), ("m", 1)), {"m": config})
    assert (found.num_hidden_layers, found.num_blocks) == (3, 3)


@pytest.mark.parametrize("name", MOVED)
def test_what_is_said_of_layers_moves_with_them(name: str) -> None:
    config, expected = MOVED[name]
    found = reordered(config, tuple(("m", layer) for layer in LAYERS), {"m": config})
    assert found.num_hidden_layers == len(LAYERS)
    assert {key: getattr(found, key) for key in expected} == expected
    again = type(config).from_dict(found.to_dict())  # as it will be read from disk
    assert {key: getattr(again, key) for key in expected} == expected


@pytest.mark.parametrize("name", MOVED)
def test_layers_in_place_change_nothing(name: str) -> None:
    config, _ = MOVED[name]
    found = reordered(config, tuple(("m", layer) for layer in range(4)), {"m": config}).to_dict()
    before = config.to_dict()
    before["no_rope_layers"] = before.get("no_rope_layers", [])[:4]
    assert {key: found.get(key, []) for key in before} == before


def test_numbers_come_from_the_model_that_each_layer_is_of() -> None:
    one, other = (Qwen3MoeConfig(**TINY, **EXPERTS, mlp_only_layers=layers) for layers in ([0], [2]))
    order = (("one", 0), ("other", 0), ("one", 2), ("other", 2), ("one", 3))
    assert reordered(one, order, {"one": one, "other": other}).mlp_only_layers == [0, 3]


def test_settings_of_single_layers_move_with_them() -> None:
    config = LlamaConfig(**TINY, per_layer_config={1: {"intermediate_size": 64}, 2: {"intermediate_size": 16}})
    found = reordered(config, tuple(("m", layer) for layer in LAYERS), {"m": config})
    assert found.to_dict()["per_layer_config"] == {"0": {"intermediate_size": 16}, "2": {"intermediate_size": 64}}


def test_layers_without_experts_stay_first() -> None:
    config = DeepseekV3Config(**TINY, first_k_dense_replace=2)
    found = reordered(config, (("m", 1), ("m", 0), ("m", 1), ("m", 3)), {"m": config})
    assert found.first_k_dense_replace == 3
    with pytest.raises(RecipeError, match=r"first_k_dense_replace.*keep them before all others"):
        reordered(config, (("m", 0), ("m", 2), ("m", 1)), {"m": config})


def test_unknown_lists_after_layers_are_refused() -> None:
    config = LlamaConfig(**TINY)
    config.skipped_layer_ids = [1, 2]
    assert reordered(config, tuple(("m", layer) for layer in range(4)), {"m": config}).skipped_layer_ids == [1, 2]
    with pytest.raises(RecipeError, match=r"not know what its list skipped_layer_ids.*keep every layer in its place"):
        reordered(config, (("m", 0), ("m", 3)), {"m": config})


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (GPT2Config(n_layer=4, scale_attn_by_inverse_layer_idx=True), "attention is divided by the layer's number"),
        (
            Gemma3nTextConfig(**TINY, num_kv_shared_layers=2, hidden_size_per_layer_input=0),
            "keys and values of earlier ones",
        ),
        (DiffLlamaConfig(**TINY), "the amount that its attention subtracts"),
    ],
    ids=["gpt2", "gemma3n", "diffllama"],
)
def test_layers_that_depend_on_their_place_stay_there(config: PretrainedConfig, reason: str) -> None:
    assert reordered(config, tuple(("m", layer) for layer in range(4)), {"m": config}).num_hidden_layers == 4
    with pytest.raises(RecipeError, match=rf"{reason}.*so its layers cannot be moved; keep every layer in its place"):
        reordered(config, (("m", 0), ("m", 1), ("m", 1), ("m", 3)), {"m": config})


def test_a_rule_that_is_not_known_is_found_out() -> None:
    config = JambaConfig(**TINY, attn_layer_period=2, attn_layer_offset=1, num_experts=1)
    layouts = {"m": layout_of(config)}

    def check(*layers: int) -> None:
        order = tuple(("m", layer) for layer in layers)
        check_kinds(reordered(config, order, {"m": config}), order, layouts)

    check(2, 3, 0, 1, 2, 1)
    with pytest.raises(RecipeError, match=r"layer 0 of m cannot be layer 1 of the merge: jamba has another kind"):
        check(2, 0, 1)


@pytest.mark.parametrize("name", ["numbers", "step", "indices", "blocks"])
def test_moved_layers_of_several_kinds_keep_their_weights(
    name: str, tmp_path: Path, make_models: Callable[..., tuple[str, ...]]
) -> None:
    config = {
        "numbers": lambda: Qwen3MoeConfig(**TINY, **EXPERTS, mlp_only_layers=[1]),
        "step": lambda: Qwen3MoeConfig(**TINY, **EXPERTS, decoder_sparse_step=2),
        "indices": lambda: BambaConfig(**TINY, **MAMBA, attn_layer_indices=[1]),
        "blocks": lambda: Llama4TextConfig(
            **TINY, head_dim=8, intermediate_size_mlp=48, num_local_experts=2, moe_layers=[1, 3], attention_chunk_size=8
        ),
    }[name]()
    with contextlib.redirect_stderr(None):
        base, expert = make_models(tmp_path, config, 2)
    checkpoints = {path: Checkpoint.open(path) for path in (base, expert)}
    order = [(base, 2), (expert, 0), (base, 1), (base, 3), (expert, 3)]
    ends = Slice((Source(base, (0, 0)),)), Slice((Source(base, (4, 4)),))
    inner = [Slice((Source(model, (layer, layer + 1)),)) for model, layer in order]
    recipe = Recipe("passthrough", (ends[0], *inner, ends[1]), base_model=base, dtype="bfloat16")
    engine = MergeEngine(checkpoints, base=base)
    module = engine.apply(recipe)
    found = dict(module.named_parameters())
    layout = checkpoints[base].layout
    for place, (model, layer) in enumerate(order):
        for tensor in layout.layers[layer]:
            expected = checkpoints[model].tensor(layout.layer_tensor(layer, tensor))
            assert torch.equal(found[layout.layer_tensor(place, tensor)], expected.float())
    out = write_checkpoint(engine, recipe, tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    ids = torch.arange(3, 9)[None]
    with torch.inference_mode():
        assert torch.equal(module(ids).logits, loaded(ids).logits)
