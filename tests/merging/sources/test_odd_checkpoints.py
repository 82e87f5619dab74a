"""Forty odd checkpoints: each is merged right, or refused in one line that names the model, what is wrong and a cure.

Each mutator changes a copy of one valid model. Its entry says what must follow: the weights of the plain model (SAME),
or a part of the message. The odd model is then inspected beside a plain one and merged with it.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from evomerge.cli.failures import OURS
from evomerge.cli.inspect import inspected
from evomerge.cli.merge import merge
from evomerge.merging.sources.open_sources import open_sources

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
UP = "model.layers.1.mlp.up_proj.weight"
EMBEDDINGS = "model.embed_tokens.weight"
FIRST = "model-00001-of-00002.safetensors"
SAME = "the same weights"

Tensors = dict[str, Tensor]
Mutator = Callable[[Path], object]


def tensors(change: Callable[[Tensors], object]) -> Mutator:
    def mutate(folder: Path) -> None:
        held = load_file(folder / WEIGHTS)
        change(held)
        save_file(held, folder / WEIGHTS, metadata={"format": "pt"})

    return mutate


def config(**values: Any) -> Mutator:
    def mutate(folder: Path) -> None:
        known = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(known | values))

    return mutate


def text(name: str, contents: str) -> Mutator:
    return lambda folder: (folder / name).write_text(contents)


def shards(folder: Path) -> dict[str, str]:
    """Store the weights in two files; return the index's map."""
    held = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = sorted(held)
    placed = {name: f"model-0000{1 + (place % 2)}-of-00002.safetensors" for place, name in enumerate(names)}
    for file in set(placed.values()):
        save_file(
            {name: held[name] for name in names if placed[name] == file}, folder / file, metadata={"format": "pt"}
        )
    return placed


def sharded(change: Callable[[dict[str, Any]], object]) -> Mutator:
    def mutate(folder: Path) -> None:
        index: dict[str, Any] = {"metadata": {"total_size": 1}, "weight_map": shards(folder)}
        change(index)
        (folder / INDEX).write_text(json.dumps(index))

    return mutate


def header(change: Callable[[dict[str, Any]], object]) -> Mutator:
    """Change the description at the head of the weights."""

    def mutate(folder: Path) -> None:
        data = (folder / WEIGHTS).read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        described = json.loads(data[8 : 8 + length])
        change(described)
        new = json.dumps(described).encode()
        (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(new)) + new + data[8 + length :])

    return mutate


def replaced(name: str, make: Callable[[Tensor], Tensor]) -> Mutator:
    return tensors(lambda held: held.update({name: make(held[name]).contiguous()}))


def poisoned(values: Tensor) -> Tensor:
    values = values.clone()
    values.view(-1)[7] = float("nan")
    return values


def swap(described: dict[str, Any]) -> None:
    """Put two tensors into the same bytes."""
    described[UP]["data_offsets"] = described["model.layers.2.mlp.up_proj.weight"]["data_offsets"]


def loop(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to(folder / WEIGHTS)


def gone(name: str) -> Mutator:
    def mutate(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to(folder / "blobs" / "nothing")

    return mutate


def hub_cache(folder: Path) -> None:
    """Put the files where the hub's cache has them: blobs, and links to them."""
    blobs = folder.with_name(f"{folder.name}-blobs")
    blobs.mkdir()
    for place, path in enumerate(sorted(folder.iterdir())):
        path.rename(blobs / str(place))
        path.symlink_to(blobs / str(place))


def original(folder: Path) -> None:
    """The vendor's own format beside, as Llama is published."""
    (folder / "original").mkdir()
    (folder / "original" / "consolidated.00.pth").write_bytes(b"x")
    save_file({"layers.0.attention.wq.weight": torch.ones(2, 2)}, folder / "original" / "model.safetensors")


def consolidated(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    save_file({"layers.0.attention.wq.weight": torch.ones(32, 32)}, folder / "consolidated.safetensors")


def in_parts(held: Tensors) -> None:
    held[UP] = held[UP][:24].contiguous()


ODD: dict[str, tuple[Mutator, str]] = {
    # which files count
    "shards": (sharded(lambda index: None), SAME),
    "shards without an index": (shards, SAME),
    "an index that has no sizes": (sharded(lambda index: index.pop("metadata")), SAME),
    "an index that names a tensor too many": (
        sharded(lambda index: index["weight_map"].update(x=min(index["weight_map"].values()))),
        "lists x in model-00001-of-00002.safetensors, which does not contain it; download",
    ),
    "an index that names another file": (
        sharded(lambda index: index["weight_map"].update(x="other.safetensors")),
        "shard other.safetensors is missing",
    ),
    "an index that names numbers": (
        sharded(lambda index: index.update(weight_map={"x": 5})),
        f"{INDEX} is damaged; save",
    ),
    "an index beside the single file": (text(INDEX, "{"), SAME),
    "pickles beside": (text("pytorch_model.bin", "x"), SAME),
    "a vendor's own format in a folder": (original, SAME),
    "a vendor's own format alone": (consolidated, "no tensor for model.embed_tokens.weight"),
    "the hub's cache": (hub_cache, SAME),
    "a link to nothing": (gone(WEIGHTS), "model.safetensors is a link to a file that is not there; download"),
    "a link to itself": (loop, "model.safetensors is a link to a file that is not there; download"),
    "a config.json that is a link to nothing": (
        gone("config.json"),
        "config.json is a link to a file that is not there",
    ),
    # bytes
    "a file cut short": (
        lambda folder: os.truncate(folder / WEIGHTS, 9000),
        "model.safetensors is damaged or cut short",
    ),
    "a header of 2 ** 60 bytes": (
        lambda folder: (folder / WEIGHTS).write_bytes(struct.pack("<Q", 1 << 60) + b"{}"),
        "its header should have",
    ),
    "overlapping tensors": (header(swap), "model.safetensors is damaged or cut short"),
    "a type that nobody knows": (
        header(lambda h: h[UP].update(dtype="F12")),
        "model.safetensors is damaged or cut short",
    ),
    # tensors
    "a tensor of more axes": (
        replaced(UP, lambda values: values[None]),
        "has shape [1, 48, 32], but config.json requires [48, 32]",
    ),
    "half a tensor": (tensors(in_parts), "has shape [24, 32], but config.json requires [48, 32]"),
    "an empty tensor": (
        replaced(UP, lambda values: values[:0]),
        "has shape [0, 32], but config.json requires [48, 32]",
    ),
    "another vocabulary than config.json's": (
        replaced(EMBEDDINGS, lambda values: values[:60]),
        "has shape [60, 32], but config.json requires [64, 32]",
    ),
    "truth values": (replaced(UP, lambda values: values > 0), f"{UP} is stored as BOOL"),
    "whole numbers": (replaced(UP, lambda values: values.to(torch.int8)), f"{UP} is stored as I8"),
    "complex numbers": (replaced(UP, lambda values: values.to(torch.complex64)), f"{UP} is stored as"),
    "double precision": (
        tensors(lambda held: held.update({name: values.double() for name, values in held.items()})),
        SAME,
    ),
    "NaN": (replaced(UP, poisoned), f"{UP} contains NaN or infinite values (1 found); use another checkpoint"),
    "a tensor too many": (
        tensors(lambda held: held.update(x=torch.ones(2))),
        "contain x, for which LlamaForCausalLM has no place",
    ),
    "a layer too many": (
        tensors(lambda held: held.update({UP.replace("1", "4"): held[UP].clone()})),
        "contain model.layers.4.mlp.up_proj.weight, for",
    ),
    "a value head": (
        tensors(lambda held: held.update({"v_head.summary.weight": torch.ones(1, 32)})),
        "contain v_head.summary.weight, for which",
    ),
    # config.json
    "more heads than fit": (config(num_attention_heads=5), "cannot"),
    "no heads": (config(num_attention_heads=0), "config.json"),
    "other key heads": (
        config(num_key_value_heads=4),
        "k_proj.weight has shape [16, 32], but config.json requires [32, 32]",
    ),
    "another width of heads": (config(head_dim=16), "but config.json requires"),
    "a word for a number": (config(hidden_size="32"), "config.json cannot be read"),
    "nothing for a number": (config(vocab_size=None), "config.json"),
    "fewer layers than none": (config(num_hidden_layers=-1), "name a decoder-only text model"),
    "a billion layers": (config(num_hidden_layers=10**9), "the limit is 1,024"),
    "an unknown activation": (config(hidden_act="none such"), "config.json"),
    "an unknown rotary embedding": (
        config(rope_parameters={"rope_type": "none such", "rope_theta": 1.0}),
        "config.json",
    ),
    "padding outside the vocabulary": (config(pad_token_id=9999), "config.json"),
    "another type of model": (config(model_type="qwen2"), "config.json"),
    "names alone differ": (config(architectures=["MyOwnForCausalLM"], _name_or_path="x"), SAME),
    "NaN for a number": (config(rms_norm_eps=float("nan")), "rms_norm_eps is NaN"),
    "an architecture that is code": (
        config(model_type="mine", auto_map={"AutoConfig": "x.C"}),
        "is code in its",
    ),
    "a model card that is not text": (
        lambda folder: (folder / "README.md").write_bytes(b"---\nx: \xff\n---\n"),
        SAME,
    ),
    "a date that does not exist": (text("README.md", "---\ndate: 2024-13-45\n---\n"), SAME),
    "a template alone": (lambda folder: (folder / "chat_template.jinja").write_bytes(b"\xff"), SAME),
    "a list instead of a mapping": (text("config.json", "[]"), "config.json cannot be read"),
    "what is not text": (
        lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe{}"),
        "config.json cannot be read",
    ),
    # beside the weights
    "an adapter's configuration": (
        text("adapter_config.json", "{}"),
        "contains a whole model (model.safetensors) and an adapter",
    ),
    "a damaged tokenizer": (text("tokenizer.json", "{"), "its tokenizer cannot be loaded"),
    "a folder of that name": (lambda folder: (folder / "tokenizer.json").mkdir(), SAME),
    "a damaged generation_config.json": (text("generation_config.json", "{"), "generation_config.json is damaged"),
    "a quantiser's file": (text("quantize_config.json", "{}"), SAME),
}


@pytest.mark.parametrize("name", list(ODD))
def test_merged_right_or_refused_in_one_line(llama: Any, tmp_path: Path, name: str, read: Any) -> None:
    mutate, outcome = ODD[name]
    folder = Path(shutil.copytree(llama.references[1], tmp_path / "ödd model 100%"))
    mutate(folder)
    recipe = tmp_path / "recipe.yaml"
    models = "".join(f"- {{model: {json.dumps(model)}}}\n" for model in (llama.base, str(folder)))
    recipe.write_text(f"merge_method: linear\ndtype: float32\nparameters: {{weight: 0.5}}\nmodels:\n{models}")
    if outcome == SAME:
        found = inspected(open_sources({"base": llama.base, "odd": str(folder)}, "base"), "base", quick=True)
        assert found["obstacles"] == []
        merge(recipe, tmp_path / "out", "cpu")
        merged, first, second = read(tmp_path / "out"), llama.tensors(0), llama.tensors(1)
        for tensor, values in merged.items():
            assert torch.allclose(values, (first[tensor].float() + second[tensor].float()) / 2, atol=1e-6)
        return
    with pytest.raises(Exception) as raised:
        merge(recipe, tmp_path / "out", "cpu")
    message = str(raised.value)
    assert type(raised.value).__module__.split(".")[0] in OURS, repr(raised.value)
    assert outcome in message
    assert str(folder) in message
    assert ";" in message, "what to do comes after a semicolon"
    assert "\n" not in message
    assert len(message) < 900
    assert not (tmp_path / "out").exists()
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []
