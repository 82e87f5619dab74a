"""What is read from config.json alone is what transformers' modules say."""

import json
from typing import Any

import pytest
import torch
from transformers import AutoConfig, LlamaConfig, MistralConfig, PretrainedConfig, Qwen2Config, Qwen3Config

from evomerge.merging.sources.architecture import Outline, WellKnownOutline
from evomerge.merging.sources.checkpoints import Checkpoint
from evomerge.merging.well_known.architectures import FAMILIES, well_known_model
from tests.merging.tiny import TINY

MODELS: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**TINY),
    "llama_tied": LlamaConfig(**TINY, tie_word_embeddings=True, head_dim=16),
    "llama_biased": LlamaConfig(**TINY, attention_bias=True, mlp_bias=True),
    "mistral": MistralConfig(**TINY, head_dim=8),
    "qwen2": Qwen2Config(**TINY),
    "qwen3": Qwen3Config(**TINY, head_dim=8, attention_bias=True, tie_word_embeddings=True),
}
ROPE = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def stated(config: PretrainedConfig) -> dict[str, Any]:
    """Return what transformers writes to config.json."""
    architecture = FAMILIES[config.model_type].architecture
    return json.loads(config.to_json_string()) | {"architectures": [architecture]}


@pytest.mark.parametrize("name", MODELS)
def test_names_shapes_and_places_are_those_of_the_module(name, tmp_path):
    values = stated(MODELS[name])
    known = well_known_model(values)
    assert known is not None, values
    ours, theirs = WellKnownOutline(known, tmp_path), Outline(MODELS[name])
    for what in ("layout", "tied_names", "tied", "embeddings", "architecture", "persistent_buffers", "rows_by_token"):
        assert getattr(ours, what) == getattr(theirs, what), what
    assert ours.num_parameters == theirs.num_parameters
    wanted = {shape: theirs.shapes[shape] for shape in theirs.layout.tensors()}
    assert ours.shapes == wanted


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "gemma"},
        {"architectures": ["LlamaForSequenceClassification"]},
        {"architectures": None},
        {"hidden_size": "32"},
        {"num_hidden_layers": 0},
        {"num_hidden_layers": True},
        {"num_attention_heads": 5, "head_dim": None},
        {"num_key_value_heads": 3},
        {"hidden_act": "swish9"},
        {"auto_map": {"AutoModelForCausalLM": "own.Own"}},
        {"quantization_config": {"quant_method": "gptq"}},
        {"pad_token_id": 64},
        {"eos_token_id": [1, "2"]},
        {"eos_token_id": -1},
        {"dtype": "int8"},
        {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
        {"rope_scaling": ROPE},
        {"rope_parameters": "default"},
        {"layer_types": ["full_attention"]},
        {"use_sliding_window": True},
        {"vision_config": {}},
        {"rms_norm_eps": "1e-6"},
    ],
    ids=str,
)
def test_anything_unexpected_is_left_to_transformers(change):
    values = stated(MODELS["llama"])
    assert well_known_model(values) is not None
    assert well_known_model(values | change) is None


@pytest.mark.parametrize(
    "change",
    [{"rope_scaling": ROPE | {"original_max_position_embeddings": 64}}, {"unsloth_version": "2025.1"}],
    ids=str,
)
def test_common_additions_are_expected(change):
    assert well_known_model(stated(MODELS["llama"]) | change) is not None


def test_no_mapping_is_no_model():
    assert well_known_model([]) is None
    assert well_known_model(None) is None


def test_an_opened_model_is_well_known_and_its_configuration_transformers_own(llama):
    checkpoint = Checkpoint.open(llama.base)
    assert checkpoint.outline.stated is not None
    assert checkpoint.config.to_dict() == AutoConfig.from_pretrained(llama.base).to_dict()
    assert type(checkpoint.outline.module).__name__ == checkpoint.outline.architecture
    assert next(checkpoint.outline.module.parameters()).device == torch.device("meta")
