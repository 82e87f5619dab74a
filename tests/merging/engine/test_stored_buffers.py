"""Numbers that transformers keeps as buffers (biases of routers) are merged, move and are written as weights are."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, Ernie4_5_MoeConfig, Glm4MoeConfig

from evomerge.merging.engine.engine import MergeEngine
from evomerge.merging.output.writer import write_checkpoint
from evomerge.merging.sources.checkpoints import Checkpoint
from search_spaces.recipes.errors import RecipeError
from search_spaces.recipes.parameter_values import constant
from search_spaces.recipes.recipe import Recipe, Slice, Source
from tests.merging.tiny import TINY

BIAS = "model.layers.{}.mlp.gate.e_score_correction_bias"
IDS = torch.arange(4, 12)[None]
WEIGHT = (("weight", constant(0.5)),)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Save a mixture of experts and a fine-tune of it, in bfloat16 with biases of the routers in float32."""
    folder = tmp_path_factory.mktemp("routed")
    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "n_group": 1}
    config = Glm4MoeConfig(**TINY, **experts, topk_group=1, head_dim=8, first_k_dense_replace=1)
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    for name in ("base", "expert"):
        model = copy.deepcopy(base)
        with torch.no_grad():
            for values in model.parameters():
                values.add_(torch.randn_like(values) * 0.01)
            for owner in model.modules():
                if hasattr(owner, "e_score_correction_bias"):
                    owner.e_score_correction_bias = 5 + torch.randn(4)
        model.save_pretrained(folder / name)
    return str(folder / "base"), str(folder / "expert")


def opened(*models: str) -> MergeEngine:
    return MergeEngine({model: Checkpoint.open(model) for model in models}, base=models[0])


def stored(folder: str | Path) -> dict[str, Tensor]:
    return load_file(Path(folder) / "model.safetensors")


def halfway(models: tuple[str, str]) -> Recipe:
    base, expert = models
    sources = (Source(expert, (0, 4), WEIGHT), Source(base, (0, 4)))
    return Recipe("task_arithmetic", (Slice(sources),), base_model=base, out_dtype="bfloat16", dtype="bfloat16")


def test_they_are_merged_and_keep_their_precision(models: tuple[str, str], tmp_path: Path) -> None:
    base, expert = (stored(model) for model in models)
    engine = opened(*models)
    merged = stored(write_checkpoint(engine, halfway(models), tmp_path / "out"))
    candidate = engine.apply(halfway(models)).state_dict()
    for layer in (1, 2, 3):
        name = BIAS.format(layer)
        assert base[name].dtype == merged[name].dtype == torch.float32
        torch.testing.assert_close(merged[name], (base[name] + expert[name]) / 2)
        assert torch.equal(candidate[name], merged[name])
    assert merged["model.norm.weight"].dtype == torch.bfloat16
    assert engine.out_dtype(Recipe("passthrough", (Slice((Source(models[0], (0, 4)),)),))) == torch.bfloat16


def test_they_move_with_their_layers(models: tuple[str, str], tmp_path: Path) -> None:
    base, expert = (stored(model) for model in models)
    order = [(models[0], 0), (models[0], 1), (models[1], 3), (models[1], 3), (models[0], 2)]
    slices = tuple(Slice((Source(model, (layer, layer + 1)),)) for model, layer in order)
    recipe = Recipe("passthrough", slices, base_model=models[0], out_dtype="bfloat16")
    engine = opened(*models)
    merged = stored(write_checkpoint(engine, recipe, tmp_path / "out"))
    candidate = engine.apply(recipe)
    for place, (model, layer) in enumerate(order[1:], start=1):
        wanted = (base if model == models[0] else expert)[BIAS.format(layer)]
        assert torch.equal(merged[BIAS.format(place)], wanted)
        assert torch.equal(candidate.state_dict()[BIAS.format(place)], wanted)


def test_a_source_is_scored_with_its_own(models: tuple[str, str]) -> None:
    engine = opened(*models)
    for model in models:
        whole = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        with torch.inference_mode():
            assert torch.equal(engine.load(model)(IDS).logits, whole.eval()(IDS).logits)


def test_a_model_that_was_saved_without_them_has_zeros(models: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((Path(models[0]) / "config.json").read_bytes())
    kept = {name: values for name, values in stored(models[0]).items() if "bias" not in name}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert not Checkpoint.open(str(tmp_path)).tensor(BIAS.format(1)).any()


def test_a_layer_of_another_kind_is_refused_before_it_is_written(tmp_path: Path) -> None:
    experts = {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 16, "moe_num_shared_experts": 0}
    model = str(tmp_path / "model")
    AutoModelForCausalLM.from_config(Ernie4_5_MoeConfig(**TINY, **experts)).save_pretrained(model)
    ends = tuple(Slice((Source(model, span),)) for span in ((0, 4), (3, 4)))
    with pytest.raises(RecipeError, match=r"layer 3 of .* cannot be layer 4"):
        write_checkpoint(opened(model), Recipe("passthrough", ends, base_model=model), tmp_path / "out")


def test_a_tensor_without_a_place_in_the_result_is_refused(
    models: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a configuration states its depth in a key that is not known."""
    engine = opened(*models)
    config = engine.checkpoint(models[0]).config
    monkeypatch.setattr(engine, "_config", lambda donor, order: config)
    monkeypatch.setattr(engine, "_architecture_key", lambda donor, order: "")
    slices = tuple(Slice((Source(models[0], span),)) for span in ((0, 4), (3, 4)))
    with pytest.raises(RecipeError, match="has no model"):
        write_checkpoint(engine, Recipe("passthrough", slices, base_model=models[0]), tmp_path / "out")
