"""What a model's folder says: read to the end, and refused, repaired or left out of a merge. One test per kind."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, GenerationConfig

from evomerge.merging.checks.preflight import check
from evomerge.merging.sources.checkpoints import Checkpoint
from evomerge.merging.sources.errors import CheckpointError
from evomerge.merging.sources.open_sources import open_source
from evomerge.merging.sources.statements import refuse_other_models

WEIGHTS = "model.safetensors"
UP = "model.layers.1.mlp.up_proj.weight"
Tensors = dict[str, Tensor]


@pytest.fixture
def folder(llama: Any, tmp_path: Path) -> Path:
    """A copy of one checkpoint, to be changed."""
    return Path(shutil.copytree(llama.references[0], tmp_path / "copy"))


def set_values(path: Path, **values: Any) -> None:
    known = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(known | values))


def change_tensors(folder: Path, change: Callable[[Tensors], object]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


# --- quantised weights ---


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quant_method": "fp8"}, r"quantised by FP8 with block scales .*dequantise it with \{path: MODEL, dequantize"),
        ({"quant_method": "compressed-tensors"}, r"W8A8.*CompressedTensorsConfig\(run_compressed=False\)"),
        ({"quant_method": "mxfp4"}, r"quantised by MXFP4 .*\(MODEL\+dequantize on the command line\)"),
        ({"quant_method": "gptq", "bits": 4}, r"quantised by GPTQ .*name the model that was quantised, or"),
        ({"quant_method": "awq"}, r"quantised by AWQ "),
        ({"load_in_4bit": True}, r"quantised by bitsandbytes .*model\.dequantize\(\)"),
        ({"quant_method": "newest"}, r"quantised by newest "),
    ],
)
def test_quantised_weights_are_refused_by_name(folder: Path, settings: dict[str, Any], message: str) -> None:
    set_values(folder / "config.json", quantization_config=settings)
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(str(folder))


def test_an_empty_quantisation_is_none(folder: Path) -> None:
    before = Checkpoint.open(str(folder)).names
    set_values(folder / "config.json", quantization_config={})
    assert Checkpoint.open(str(folder)).names == before


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.bool, torch.float8_e4m3fn, torch.complex64])
def test_weights_that_are_not_floats_are_refused(folder: Path, dtype: torch.dtype) -> None:
    change_tensors(folder, lambda tensors: tensors.update({UP: tensors[UP].to(dtype)}))
    with pytest.raises(CheckpointError, match=rf"{UP} is stored as \w+, and a merge needs weights in float16"):
        Checkpoint.open(str(folder))


def test_scales_without_a_word_in_the_configuration(folder: Path) -> None:
    change_tensors(folder, lambda tensors: tensors.update({f"{UP}_scale": torch.ones(48, 1)}))
    with pytest.raises(CheckpointError, match=rf"{UP}_scale shows that they are quantised; name the model that was"):
        Checkpoint.open(str(folder))


def test_packed_weights_without_a_word_in_the_configuration(folder: Path) -> None:
    def pack(tensors: Tensors) -> None:
        tensors[UP.replace("weight", "qweight")] = tensors.pop(UP).to(torch.int32)

    change_tensors(folder, pack)
    set_values(folder / "quantize_config.json", bits=4)
    with pytest.raises(CheckpointError, match=r"they are quantised by GPTQ \(quantize_config.json\)"):
        Checkpoint.open(str(folder))


# --- every tensor of every file ---


def test_a_tensor_without_a_place_is_refused(folder: Path) -> None:
    change_tensors(folder, lambda tensors: tensors.update({"model.layers.4.mlp.up_proj.weight": torch.ones(48, 32)}))
    with pytest.raises(
        CheckpointError, match=r"contain model.layers.4.mlp.up_proj.weight, for which LlamaForCausalLM has"
    ):
        Checkpoint.open(str(folder))


def test_a_tensor_under_two_names_is_refused(folder: Path) -> None:
    name = "layers.1.mlp.up_proj.weight"
    change_tensors(folder, lambda tensors: tensors.update({name: tensors[UP] * 2}))
    with pytest.raises(CheckpointError, match=rf"contain {UP} twice, as .*; remove one"):
        Checkpoint.open(str(folder))


def test_rotary_buffers_of_old_releases_are_harmless(folder: Path) -> None:
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    before = Checkpoint.open(str(folder)).names
    change_tensors(folder, lambda tensors: tensors.update({name: torch.ones(4)}))
    assert Checkpoint.open(str(folder)).names == before


def test_a_tensor_in_two_files_is_refused(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "a.safetensors")
    shutil.copyfile(folder / "a.safetensors", folder / "b.safetensors")
    with pytest.raises(CheckpointError, match=r"is in a.safetensors and in b.safetensors; remove the file"):
        Checkpoint.open(str(folder))


def test_the_single_file_counts_before_an_index(folder: Path, read: Any) -> None:
    """As in transformers: a folder into which a model was saved again may hold the old shards."""
    tensors = {name: values * 2 for name, values in load_file(folder / WEIGHTS).items()}
    save_file(tensors, folder / "model-00001-of-00001.safetensors", metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, "model-00001-of-00001.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert torch.equal(Checkpoint.open(str(folder)).tensor(UP), read(folder)[UP])


def test_pickles_beside_an_incomplete_file_are_not_read(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    torch.save(tensors, folder / "pytorch_model.bin")
    del tensors[UP]
    (folder / WEIGHTS).unlink()
    save_file(tensors, folder / "part.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=rf"no tensor for {UP}; download the model again"):
        Checkpoint.open(str(folder))


# --- which kind of model ---


def test_whole_model_and_adapter_in_one_folder_are_refused(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(
        CheckpointError, match=r"contains a whole model \(model.safetensors\) and an adapter .*; move one"
    ):
        open_source(str(folder))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("bert", r"bert is an encoder, not a decoder; name a decoder-only text model"),
        ("xlm-roberta", r"xlm-roberta is an encoder, not a decoder"),
        ("bart", r"bart is an encoder with a decoder; name a decoder-only text model"),
        ("clip", r"clip reads more than text, and evomerge knows no decoder that computes the same as its text"),
        ("mamba", None),
        ("gpt_neox", None),
    ],
)
def test_kinds_of_models(kind: str, message: str | None) -> None:
    config = AutoConfig.for_model(kind)
    if message is None:
        refuse_other_models("model", config)
        return
    with pytest.raises(CheckpointError, match=f"^model: {message}"):
        refuse_other_models("model", config)


@pytest.mark.parametrize(
    "head", ["LlamaForSequenceClassification", "LlamaForTokenClassification", "LlamaForRewardModel"]
)
def test_heads_that_give_no_text_are_refused(folder: Path, head: str) -> None:
    set_values(folder / "config.json", architectures=[head])
    with pytest.raises(CheckpointError, match=rf"{head} gives scores or classes, not text; name the model that it was"):
        Checkpoint.open(str(folder))


@pytest.mark.parametrize("names", ["old", "new"])
@pytest.mark.parametrize("tied", [True, False])
def test_the_text_part_of_a_vision_language_model(llama: Any, tmp_path: Path, names: str, tied: bool) -> None:
    """As LLaVA and Mistral 3 are stored, before transformers 5 and since."""
    text = json.loads((Path(llama.base) / "config.json").read_text())
    vision = {"model_type": "clip_vision_model", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    whole = {"model_type": "llava", "text_config": text, "vision_config": vision, "eos_token_id": 7}
    (tmp_path / "config.json").write_text(json.dumps(whole))
    tensors = load_file(Path(llama.base) / WEIGHTS)
    head = tensors.pop("lm_head.weight")
    if names == "old":
        stored = {f"language_model.{name}": values for name, values in tensors.items()}
    else:
        stored = {name.replace("model.", "model.language_model.", 1): values for name, values in tensors.items()}
    if not tied:
        stored["language_model.lm_head.weight" if names == "old" else "lm_head.weight"] = head
    stored["model.vision_tower.x.weight"] = torch.ones(3)
    save_file(stored, tmp_path / WEIGHTS, metadata={"format": "pt"})
    source = Checkpoint.open(str(tmp_path))
    assert source.outline.architecture == "LlamaForCausalLM"
    assert source.outline.tied is tied
    assert source.config.eos_token_id == 7
    assert all(torch.equal(source.tensor(name), values) for name, values in tensors.items())
    assert source.left_out == ("it reads images or sound, and a merge has its text part alone",)
    stored["model.language_model.more.weight"] = torch.ones(3)
    save_file(stored, tmp_path / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(
        CheckpointError, match=r"contain model.language_model.more.weight, for which LlamaForCausalLM has no"
    ):
        Checkpoint.open(str(tmp_path))


# --- generation settings and code ---


def test_settings_without_effect_are_removed_and_named(llama: Any, folder: Path, tmp_path: Path) -> None:
    values = {"do_sample": False, "temperature": 0.9, "top_p": 0.6, "num_beams": 1, "eos_token_id": [2, 5]}
    (folder / "generation_config.json").write_text(json.dumps(values))
    source = Checkpoint.open(str(folder))
    assert source.generation_config() == {"do_sample": False, "num_beams": 1, "eos_token_id": [2, 5]}
    GenerationConfig.from_dict(source.generation_config()).save_pretrained(tmp_path / "saved")  # refused it before
    report = check({"base": source, "expert": llama.checkpoints[llama.references[1]]}, "base")
    assert any(
        "generation_config.json sets temperature, top_p, which has no effect" in line for line in report.warnings
    )


def test_settings_with_an_effect_stay(folder: Path) -> None:
    values = {"do_sample": True, "temperature": 0.9, "top_p": 0.6}
    (folder / "generation_config.json").write_text(json.dumps(values))
    source = Checkpoint.open(str(folder))
    assert source.generation_config() == values
    assert source.left_out == ()


@pytest.mark.parametrize("text", ['{"max_new_tokens": -3}', '{"cache_implementation": "none such"}', "[1]"])
def test_settings_that_transformers_refuses(folder: Path, text: str) -> None:
    (folder / "generation_config.json").write_text(text)
    with pytest.raises(
        CheckpointError, match=r"generation_config.json (is not valid|does not contain a mapping).*remove it"
    ):
        Checkpoint.open(str(folder)).generation_config()


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_that_is_not_copied_is_said(folder: Path, file: str) -> None:
    set_values(folder / file, auto_map={"AutoConfig": "configuration_x.XConfig"})
    lines = Checkpoint.open(str(folder)).left_out
    assert lines == (
        f"{file} names code (auto_map), which evomerge neither runs nor copies; a merge is written without",
    )


# --- the table in the documentation ---


def test_every_row_of_the_table_has_its_test() -> None:
    root = Path(__file__).parents[3]
    text = (root / "docs" / "sources.md").read_text(encoding="utf-8")
    table = text.split("## What evomerge does about each statement")[1].split("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    named = [re.search(r"`(tests/\S+\.py)::(\w+)` \|$", row) for row in rows]
    assert len(rows) > 20
    for row, test in zip(rows, named, strict=True):
        assert test is not None, row
        assert f"def {test[2]}(" in (root / test[1]).read_text(encoding="utf-8"), row
