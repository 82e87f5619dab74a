"""Opening checkpoints: layouts of many architectures, and every kind of damage."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from evomerge.merging.sources.architecture import layout_of
from evomerge.merging.sources.checkpoints import Checkpoint
from evomerge.merging.sources.errors import CheckpointError
from evomerge.merging.sources.source import fingerprint

PREFIXES = {"gpt_neox": "gpt_neox.layers.{}.", "gpt2": "transformer.h.{}."}
ATTENTION = {"gpt_neox": "attention", "gpt2": "attn"}
TIED = ("llama_tied", "gemma", "gemma2", "gemma3", "gpt2")


@pytest.fixture
def copy(llama: Any, tmp_path: Path) -> Path:
    """A copy of one checkpoint, to be damaged."""
    return Path(shutil.copytree(llama.references[0], tmp_path / "copy"))


# --- layouts ---


def test_layout(family: Any) -> None:
    layout = family.checkpoints[family.base].layout
    assert layout.num_layers == 4
    assert layout.layer_prefix == PREFIXES.get(family.name, "model.layers.{}.")
    assert layout.attention == ATTENTION.get(family.name, "self_attn")
    assert layout.mlp == "mlp"
    assert all("norm" in name or "ln_f" in name or name == layout.head for name in layout.final)
    assert layout.head == (None if family.name in TIED else "lm_head.weight")
    assert layout.embeddings[0].endswith(("embed_tokens.weight", "embed_in.weight", "wte.weight"))
    expected = ["transformer.wte.weight", "transformer.wpe.weight"] if family.name == "gpt2" else 1
    assert expected in (list(layout.embeddings), len(layout.embeddings))


def test_layout_names_are_the_modules_parameters(family: Any) -> None:
    layout = family.checkpoints[family.base].layout
    assert set(layout.tensors()) == set(family.tensors(0))
    assert len(layout.tensors()) == len(family.tensors(0))


def test_layout_needs_no_weights(configs: dict[str, Callable[[], Any]]) -> None:
    config = configs["llama"]()
    config.hidden_size, config.intermediate_size, config.num_hidden_layers = 8192, 28672, 80
    assert layout_of(config).num_layers == 80


@pytest.mark.parametrize("model_type", ["opt", "bloom", "phi3", "mixtral", "olmo2", "falcon"])
def test_layout_of_other_architectures(model_type: str) -> None:
    from transformers import AutoConfig

    config = AutoConfig.for_model(model_type)
    config.num_hidden_layers = 2
    layout = layout_of(config)
    assert layout.num_layers == 2
    assert all("embed" in name for name in layout.embeddings)
    assert not any("embed" in name for name in layout.final)
    assert layout.attention in ("self_attn", "self_attention")
    assert layout.mlp == {"opt": None}.get(model_type, "mlp")


# --- tensors ---


def test_tensors_are_what_transformers_loads(family: Any) -> None:
    for index, reference in enumerate(family.references):
        checkpoint = family.checkpoints[reference]
        for name, values in family.tensors(index).items():
            assert torch.equal(checkpoint.tensor(name), values)
            assert checkpoint.shape(name) == tuple(values.shape)


def test_tensors_are_memory_mapped(llama: Any) -> None:
    checkpoint = llama.checkpoints[llama.base]
    name = checkpoint.names[0]
    assert checkpoint.tensor(name).data_ptr() == checkpoint.tensor(name).data_ptr()


def test_counts(family: Any) -> None:
    checkpoint = family.checkpoints[family.base]
    assert checkpoint.outline.num_parameters == sum(values.numel() for values in family.tensors(0).values())
    assert checkpoint.dtype == torch.bfloat16
    assert checkpoint.outline.tied == (family.name in TIED)


def test_shards_are_read(llama: Any, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(llama.base, dtype="auto")
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    checkpoint = Checkpoint.open(str(tmp_path))
    assert len(checkpoint.weight_files) > 2
    for name, values in llama.tensors(0).items():
        assert torch.equal(checkpoint.tensor(name), values)


@pytest.mark.parametrize("add", [True, False])
def test_keys_with_and_without_the_base_prefix(families: Any, tmp_path: Path, add: bool) -> None:
    """GPT-2 on the hub stores ``h.0...``, its module says ``transformer.h.0...``."""
    gpt2 = families("gpt2")
    shutil.copytree(gpt2.base, tmp_path, dirs_exist_ok=True)
    stored = load_file(tmp_path / "model.safetensors")
    bare = {key.removeprefix("transformer."): values for key, values in stored.items()}
    renamed = {f"transformer.{key}": values for key, values in bare.items()} if add else bare
    save_file(renamed, tmp_path / "model.safetensors", metadata={"format": "pt"})
    checkpoint = Checkpoint.open(str(tmp_path))
    for name, values in gpt2.tensors(0).items():
        assert torch.equal(checkpoint.tensor(name), values)


def test_weights_that_transformers_converts_are_loaded_through_it(tmp_path: Path, read: Any) -> None:
    """Mixtral's checkpoints store one tensor per expert, its module one for all of a layer."""
    from transformers import AutoModelForCausalLM, MixtralConfig

    config = MixtralConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=64,
        num_local_experts=2,
    )
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(tmp_path)
    checkpoint = Checkpoint.open(str(tmp_path))
    for name, values in read(tmp_path).items():
        assert torch.equal(checkpoint.tensor(name), values)


def test_unknown_tensor_is_named(llama: Any) -> None:
    with pytest.raises(CheckpointError, match=r"it has no tensor model.nothing; its names look like model"):
        llama.checkpoints[llama.base].tensor("model.nothing")


# --- fingerprints ---


def test_fingerprint_tells_fine_tunes_apart(llama: Any) -> None:
    prints = [fingerprint(llama.checkpoints[path]) for path in llama.references]
    hashes = {entry["files"]["model.safetensors"]["sha256"] for entry in prints}
    assert len(hashes) == 3
    assert prints[0] == fingerprint(Checkpoint.open(llama.base))
    assert prints[0]["files"]["model.safetensors"]["covers"] == "contents"


def test_fingerprint_of_large_files_says_that_it_samples(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evomerge.merging.sources.source.CONTENT_LIMIT", 1000)
    found = fingerprint(llama.checkpoints[llama.base])
    assert found["files"]["model.safetensors"]["covers"] == "samples"


# --- damage ---


def one_line(error: pytest.ExceptionInfo[CheckpointError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no such folder; name a model folder or a hub id like org/name"):
        Checkpoint.open(str(tmp_path / "nothing"))


def test_unknown_hub_model_offline() -> None:
    with pytest.raises(CheckpointError, match=r"org/does-not-exist: no such folder, and the hub did not") as error:
        Checkpoint.open("org/does-not-exist")
    assert one_line(error).endswith("check the name and the connection, or download it first")


def test_no_config(copy: Path) -> None:
    (copy / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"the folder has no config.json; name a transformers checkpoint"):
        Checkpoint.open(str(copy))


@pytest.mark.parametrize("text", ["{", '{"model_type": "no-such-model"}', "[]"])
def test_unreadable_config(copy: Path, text: str) -> None:
    (copy / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config.json cannot be read") as error:
        Checkpoint.open(str(copy))
    one_line(error)


def test_not_a_decoder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(CheckpointError, match=r"name a decoder-only text model instead") as error:
        Checkpoint.open(str(tmp_path))
    one_line(error)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_only_pickles(copy: Path, name: str) -> None:
    (copy / "model.safetensors").rename(copy / name)
    with pytest.raises(CheckpointError, match=r"its weights are pickled.*convert them to safetensors with.*save"):
        Checkpoint.open(str(copy))


def test_no_weights(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"the folder has no safetensors file"):
        Checkpoint.open(str(copy))


@pytest.mark.parametrize("keep", [0, 5, 200, -1])
def test_truncated_weights(copy: Path, keep: int) -> None:
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"model.safetensors is damaged or cut short") as error:
        Checkpoint.open(str(copy))
    assert one_line(error).endswith("download or save it again")


def test_missing_shard(llama: Any, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(llama.base).save_pretrained(tmp_path, max_shard_size="20KB")
    first = min(tmp_path.glob("*.safetensors"))
    first.unlink()
    with pytest.raises(CheckpointError, match=f"shard {first.name} is missing .*; download the rest of the model"):
        Checkpoint.open(str(tmp_path))


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_damaged_index(copy: Path, text: str) -> None:
    (copy / "model.safetensors").rename(copy / "model-00001-of-00001.safetensors")
    (copy / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"index.json is damaged; save the model again"):
        Checkpoint.open(str(copy))


def test_index_cannot_leave_its_folder(copy: Path, llama: Any) -> None:
    outside = Path(llama.references[1]) / "model.safetensors"
    (copy / "model.safetensors").unlink()
    index = {"weight_map": {"lm_head.weight": f"../../{outside}"}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"shard model.safetensors is missing"):
        Checkpoint.open(str(copy))


def test_missing_tensor(copy: Path) -> None:
    path = copy / "model.safetensors"
    stored = load_file(path)
    del stored["model.layers.1.mlp.up_proj.weight"]
    save_file(stored, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"the weight files have no tensor for model.layers.1.mlp.up_proj.weight"):
        Checkpoint.open(str(copy))


def test_tied_by_config_and_untied_in_the_file(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    with pytest.raises(CheckpointError, match=r"lm_head.weight differs from .*; set tie_word_embeddings to false"):
        Checkpoint.open(str(copy))


def test_no_tokenizer(llama: Any) -> None:
    with pytest.raises(CheckpointError, match=r"the folder has no tokenizer; save one"):
        llama.checkpoints[llama.base].tokenizer.load()
