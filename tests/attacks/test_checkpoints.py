"""Model folders that lie about their size, or want to run code."""

import json
import struct

import pytest

from evomerge.merging.sources.checkpoints import Checkpoint
from evomerge.merging.sources.errors import CheckpointError

WEIGHTS = "model.safetensors"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_hidden_layers", 10**9),
        ("num_hidden_layers", 1e300),
        ("num_hidden_layers", -(10**9)),
        ("num_attention_heads", 10**9),
        ("vocab_size", 10**12),
        ("hidden_size", 10**9),
        ("hidden_size", -1),
        ("num_hidden_layers", "six"),
        ("intermediate_size", None),
    ],
)
def test_sizes_in_the_config(key, value, model, set_config, refused):
    set_config(**{key: value})
    with refused(CheckpointError, str(model)):
        Checkpoint.open(str(model))


def test_code_in_the_folder_is_not_run(model, set_config, refused):
    set_config(model_type="own", auto_map={"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"})
    (model / "own.py").write_text(f"open({str(model / 'owned')!r}, 'w')\n")
    with refused(CheckpointError, "config.json"):
        Checkpoint.open(str(model))
    assert not (model / "owned").exists()


@pytest.mark.parametrize("text", ["[" * 100_000, "{", '{"a": "' + "x" * 20_000_000 + '"}', "\x00", "3"])
def test_texts_that_are_no_config(text, model, refused):
    (model / "config.json").write_text(text)
    with refused(CheckpointError, str(model)):
        Checkpoint.open(str(model))


def write_weights(model, header, body=b""):
    data = header if isinstance(header, bytes) else json.dumps(header).encode()
    (model / WEIGHTS).write_bytes(struct.pack("<Q", len(data)) + data + body)


def entry(shape, begin, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    "header",
    [
        {"a": entry([10**12], 0, 4 * 10**12)},
        {"a": entry([2**62, 4], 0, 64)},
        {"a": entry([-4], 0, 16)},
        {"a": entry([4], 0, 16), "b": entry([4], 8, 24)},
        {"a": entry([4], 16, 0)},
        {"a": entry([4], 0, 16, dtype="OBJECT")},
        {"a": {"dtype": "F32"}},
        b"\xff" * 100,
        b"[" * 10_000,
    ],
    ids=["beyond the file", "overflow", "negative", "overlap", "backward", "dtype", "no shape", "no text", "nested"],
)
def test_headers_that_lie(header, model, refused):
    write_weights(model, header, b"\0" * 64)
    with refused(CheckpointError, WEIGHTS):
        Checkpoint.open(str(model))


@pytest.mark.parametrize("claimed", [2**63 - 1, 2**40, 99_000_000])
def test_a_header_longer_than_the_file(claimed, model, refused):
    (model / WEIGHTS).write_bytes(struct.pack("<Q", claimed) + b"{}")
    with refused(CheckpointError, WEIGHTS, "its header should have"):
        Checkpoint.open(str(model))


def test_pickled_weights_are_not_read(model, refused):
    (model / WEIGHTS).unlink()
    (model / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch owned'\ntR.")
    with refused(CheckpointError, "pickle"):
        Checkpoint.open(str(model))


@pytest.mark.parametrize("place", ["../other/model.safetensors", "/etc/passwd", "..", ""])
def test_an_index_that_points_elsewhere(place, model, tmp_path, refused):
    (model / WEIGHTS).rename(tmp_path / "elsewhere.safetensors")
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"lm_head.weight": place}}))
    with refused(CheckpointError, str(model)):
        Checkpoint.open(str(model))
