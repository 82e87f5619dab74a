"""What mergekit 0.1.5 makes of tiny models of many architectures, beside what evomerge says that it makes of them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import transformers
from safetensors.torch import load_file
from torch import Tensor
from transformers import PretrainedConfig

from evomerge.merging.engine.engine import MergeEngine
from evomerge.merging.output import for_mergekit
from evomerge.merging.sources.checkpoints import Checkpoint
from search_spaces.recipes import mergekit_yaml
from search_spaces.recipes.mergekit.documents import Document
from search_spaces.recipes.recipe import Recipe
from tests.conftest import required
from tests.merging.output.ulps import ulps_apart
from tests.merging.tiny import TINY

required("mergekit")
pytestmark = pytest.mark.slow

SETTINGS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama, tied": ("Llama", {"tie_word_embeddings": True}),
    "llama, biases in mlp": ("Llama", {"mlp_bias": True}),
    "llama, biases in attention": ("Llama", {"attention_bias": True}),
    "mistral": ("Mistral", {}),
    "mixtral": ("Mixtral", {"num_local_experts": 2}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {"head_dim": 8}),
    "qwen3, biases in attention": ("Qwen3", {"head_dim": 8, "attention_bias": True}),
    "gemma2": ("Gemma2", {"head_dim": 8}),
    "phi": ("Phi", {}),
    "phi3": ("Phi3", {}),
    "phi3, tied": ("Phi3", {"tie_word_embeddings": True}),
    "cohere": ("Cohere", {"use_qk_norm": True}),
    "cohere, no norms of heads": ("Cohere", {}),
    "falcon": ("Falcon", {"new_decoder_architecture": False}),
    "falcon, two norms": ("Falcon", {"new_decoder_architecture": True}),
    "gpt_neox": ("GPTNeoX", {}),
    "granite": ("Granite", {}),
    "granite, biases in mlp": ("Granite", {"mlp_bias": True}),
    "stablelm": ("StableLm", {}),
    "stablelm, biases in attention": ("StableLm", {"use_qkv_bias": True}),
    "starcoder2": ("Starcoder2", {}),
    "olmo2": ("Olmo2", {}),
    "smollm3": ("SmolLM3", {"tie_word_embeddings": False}),
}


class Built(NamedTuple):
    """Why mergekit builds another model, as evomerge says; the weights of both, None where mergekit stopped."""

    reasons: tuple[str, ...]
    ours: dict[str, Tensor]
    theirs: dict[str, Tensor] | None


def settings(name: str) -> PretrainedConfig:
    kind, own = SETTINGS[name]
    config: PretrainedConfig = getattr(transformers, f"{kind}Config")(**{**TINY, "num_hidden_layers": 2, **own})
    return config


_MERGE_ALL = """
import sys
from pathlib import Path
from mergekit.scripts.run_yaml import main
for recipe in sorted(Path(sys.argv[1]).glob("*.yaml")):
    try:
        main([str(recipe), str(recipe.with_suffix("")), "--no-write-model-card"], standalone_mode=False)
    except Exception as error:
        recipe.with_suffix(".stopped").write_text(repr(error))
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, make_models: Callable[..., tuple[str, ...]]) -> dict[str, Built]:
    """Return both merges of each model, mergekit's all in one process."""
    folder = tmp_path_factory.mktemp("architectures")
    ours: dict[str, tuple[tuple[str, ...], dict[str, Tensor]]] = {}
    for name in SETTINGS:
        models = make_models(tmp_path_factory.mktemp("models"), settings(name), 2)
        weighted = [{"model": model, "parameters": {"weight": index + 1.0}} for index, model in enumerate(models)]
        recipe: Recipe = mergekit_yaml.build({"merge_method": "linear", "models": weighted, "dtype": "bfloat16"})
        (folder / f"{name}.yaml").write_text(mergekit_yaml.dump(recipe), encoding="utf-8")
        sources = {model: Checkpoint.open(model) for model in models}
        donor = for_mergekit.as_mergekit_finds(sources[models[0]], recipe)
        module = MergeEngine(sources, base=models[0]).apply(recipe)
        weights = {tensor: values.data.clone() for tensor, values in module.named_parameters()}
        ours[name] = for_mergekit.obstacles((Document(None, recipe),), donor), weights
    command = [sys.executable, "-c", _MERGE_ALL, str(folder)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return {name: Built(*found, _weights(folder / name)) for name, found in ours.items()}


def _weights(folder: Path) -> dict[str, Tensor] | None:
    if folder.with_suffix(".stopped").exists():
        return None
    return {name: values for file in folder.glob("*.safetensors") for name, values in load_file(file).items()}


@pytest.mark.parametrize("name", SETTINGS)
def test_mergekit_makes_the_same_model_where_evomerge_says_so(name: str, built: dict[str, Built]) -> None:
    reasons, ours, theirs = built[name]
    if theirs is None:
        assert any("refuses the models" in reason for reason in reasons)
        return
    dropped = ours.keys() - theirs.keys()
    assert bool(dropped) == any(" drops " in reason for reason in reasons), reasons
    if dropped:
        return
    assert not reasons
    for tensor, values in ours.items():
        assert ulps_apart(values.bfloat16(), theirs[tensor]) <= 1
