"""Text parts of vision-language models as sources: tiny ones of every kind, merged, and their logits compared."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForImageTextToText, PretrainedConfig

from evomerge.cli.merge import merge
from evomerge.merging.checks.preflight import check
from evomerge.merging.sources.errors import CheckpointError
from evomerge.merging.sources.open_sources import open_source, open_sources
from evomerge.merging.sources.statements import TEXT_PARTS, refuse_other_models
from tests.conftest import required
from tests.merging.tiny import TINY

COMMON = (
    "gemma3",
    "idefics3",
    "llama4",
    "llava",
    "mistral3",
    "paligemma",
    "qwen2_5_vl",
    "qwen2_vl",
    "qwen3_vl_moe",
    "smolvlm",
)

TEXT = {
    "head_dim": 8,
    "sliding_window": 3,
    "query_pre_attn_scalar": 8,
    "attention_chunk_size": 8,
    "no_rope_layers": [1, 1, 0, 1],
    "interleave_moe_layer_step": 2,
    "moe_layers": [1, 3],
    "intermediate_size_mlp": 48,
    "moe_intermediate_size": 16,
    "moe_num_experts": 2,
    "moe_num_shared_experts": 1,
    "moe_topk": 1,
    "num_experts": 2,
    "num_experts_per_tok": 1,
    "num_local_experts": 2,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "depth": 1,
    "embed_dim": 32,
    "num_heads": 2,
    "out_hidden_size": 32,
    "image_size": 16,
    "patch_size": 8,
    "mlp_ratio": 1,
    "fullatt_block_indexes": [0],
    "deepstack_visual_indexes": [0],
    "num_position_embeddings": 16,
    "vision_output_dim": 32,
    "projector_input_dim": 32,
    "projector_output_dim": 32,
}
WHOLE = {
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "mm_tokens_per_image": 4,
    "projection_dim": 32,
    "vision_feature_layer": -1,
    "scale_factor": 2,
    "spatial_merge_size": 1,
}
IMAGE = (
    "image_token_id image_token_index video_token_id vision_start_token_id vision_end_token_id boi_token_index "
    "eoi_token_index"
)


def known(config: Any, values: dict[str, Any]) -> dict[str, Any]:
    stated = config if isinstance(config, dict) else config.to_dict()
    return {key: value for key, value in values.items() if key in stated}


def tiny(kind: str) -> PretrainedConfig:
    """Return a configuration of the kind with the sizes above, where it has such settings."""
    config_class = CONFIG_MAPPING[kind]
    whole = config_class()
    text, vision = whole.get_text_config(), whole.vision_config
    own: dict[str, Any] = {"model_type": text.model_type} | TINY | known(text, TEXT)
    if kind.startswith(("qwen2_vl", "qwen2_5_vl", "qwen3_vl")):
        sections = {"mrope_section": [1, 1, 2]} | ({"mrope_interleaved": True} if kind[4] == "3" else {})
        own["rope_parameters"] = {"rope_type": "default", "rope_theta": 10000.0, **sections}
    if getattr(text, "layer_types", None):
        own["layer_types"] = (sorted(set(text.layer_types)) * 4)[:4]
    seen = known(vision, VISION)
    if not isinstance(vision, dict):
        seen["model_type"] = vision.model_type
    rest = known(whole, WHOLE | dict.fromkeys(IMAGE.split(), 60)) | {"pad_token_id": 0}
    return config_class(text_config=own, vision_config=seen, **rest)


def logits_of(module: nn.Module) -> Tensor:
    with torch.inference_mode():
        result: Tensor = module(input_ids=torch.tensor([[1, 5, 9, 13, 22, 40, 7, 8, 11, 3]])).logits
    return result


def saved(kind: str, folder: Path, seed: int = 0) -> Tensor:
    """Save a random model of the kind; return its logits."""
    torch.manual_seed(seed)
    module = AutoModelForImageTextToText.from_config(tiny(kind)).float().eval()
    for parameter in module.parameters():
        parameter.data.add_(torch.randn(parameter.shape) * 0.05)
    module.save_pretrained(folder)
    return logits_of(AutoModelForImageTextToText.from_pretrained(folder).float().eval())


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=() if kind in COMMON else pytest.mark.slow) for kind in TEXT_PARTS]
)
def test_a_merge_gives_the_logits_of_the_text_part(kind: str, tmp_path: Path) -> None:
    expected = saved(kind, tmp_path / "whole")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"merge_method: linear\nmodels: [{{model: {tmp_path / 'whole'}, parameters: {{weight: 1}}}}]\ndtype: float32\n"
    )
    merge(recipe, tmp_path / "out", "cpu")
    assert not (tmp_path / "out" / "mergekit_config.yml").exists()  # it would merge the part for images, too
    text = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert not hasattr(text.config, "vision_config")
    assert type(text).__name__ == open_source(str(tmp_path / "whole")).outline.architecture
    assert torch.allclose(logits_of(text), expected, atol=1e-5)


def test_a_text_part_and_a_text_model(tmp_path: Path, make_models: Callable[..., tuple[str, ...]]) -> None:
    saved("llava", tmp_path / "whole")
    whole = open_source(str(tmp_path / "whole"))
    (text,) = make_models(tmp_path / "text", whole.config, 1)
    sources = open_sources({"base": text, "expert": str(tmp_path / "whole")}, "base")
    assert sources["base"].names == sources["expert"].names
    said = "expert: it reads images or sound, and a merge has its text part alone"
    assert said in check(sources, "base", allow_unrelated=True).warnings


def test_an_adapter_of_a_vision_language_model(tmp_path: Path) -> None:
    """Its names are the whole model's."""
    peft = required("peft")
    saved("llava", tmp_path / "whole")
    whole = AutoModelForImageTextToText.from_pretrained(tmp_path / "whole", dtype=torch.float32)
    settings = peft.LoraConfig(r=2, target_modules=r".*language_model.*\.q_proj", init_lora_weights=False)
    model = peft.get_peft_model(whole, settings)
    model.save_pretrained(tmp_path / "adapter")
    expected = logits_of(model.merge_and_unload().eval())
    source = open_source(f"{tmp_path / 'whole'}+lora:{tmp_path / 'adapter'}")
    text = AutoModelForCausalLM.from_config(source.config).float().eval()
    text.load_state_dict({name: source.tensor(name) for name in source.names})
    assert torch.allclose(logits_of(text), expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["aya_vision", "cohere2_vision", "mllama", "florence2", "blip-2", "gemma3n", "emu3"])
def test_other_kinds_are_refused_by_name(kind: str) -> None:
    with pytest.raises(CheckpointError, match=rf"^model: {kind} (reads more|is an encoder).*; name a decoder-only"):
        refuse_other_models("model", CONFIG_MAPPING[kind]())
