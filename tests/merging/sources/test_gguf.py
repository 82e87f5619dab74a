"""GGUF files: a tiny one, written with the gguf package, read back as the checkpoint that it was made from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evomerge.merging.sources import gguf as module
from evomerge.merging.sources.errors import CheckpointError
from evomerge.merging.sources.gguf import converted
from evomerge.merging.sources.open_sources import open_source
from tests.conftest import required

gguf = required("gguf")

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
KINDS = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "Q8_0": torch.float16}


def gguf_name(name: str) -> str:
    for ours, theirs in OUTSIDE.items():
        if name.startswith(f"{ours}."):
            return f"{theirs}.weight"
    layer, rest = name.removeprefix("model.layers.").split(".", 1)
    return f"blk.{layer}.{NAMES[rest.removesuffix('.weight')]}.weight"


def interleaved(values: np.ndarray, heads: int) -> np.ndarray:
    """Return query or key rows in the order that GGUF stores them for Llama's rotary embedding."""
    rows, columns = values.shape
    return values.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write(source: Any, file: Path, kind: str) -> None:
    config = source.config
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    for name in source.names:
        values = source.tensor(name).float().numpy()
        if "q_proj" in name or "k_proj" in name:
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            values = interleaved(values, heads)
        own = gguf.GGMLQuantizationType[kind if values.ndim > 1 else "F32"]
        if kind == "Q8_0" and values.shape[-1] % 32:
            own = gguf.GGMLQuantizationType.F16  # blocks of 32 do not fit
        data = gguf.quants.quantize(np.ascontiguousarray(values, dtype=np.float32), own)
        writer.add_tensor(gguf_name(name), data, raw_dtype=own)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize(("family", "kind"), [("llama", "F16"), ("llama", "F32"), ("llama_tied", "Q8_0")])
def test_tensors_are_those_of_the_model(families: Any, tmp_path: Path, family: str, kind: str) -> None:
    source = families(family).checkpoints[families(family).base]
    write(source, tmp_path / "model.gguf", kind)
    opened = open_source(str(tmp_path / "model.gguf"))
    assert opened.reference.endswith("model.gguf")
    assert opened.outline.tied == source.outline.tied
    assert opened.dtype == KINDS[kind]
    assert set(opened.names) == set(source.names)
    for name in opened.names:
        assert torch.allclose(opened.tensor(name).float(), source.tensor(name).float(), atol=2e-3), name


def test_a_file_is_converted_once(families: Any, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = families("llama").checkpoints[families("llama").base]
    write(source, tmp_path / "model.gguf", "F16")
    folder = converted(str(tmp_path / "model.gguf"))
    assert folder.parent == cache / "gguf"
    monkeypatch.setattr(module, "_convert", lambda *_: pytest.fail("converted again"))
    (tmp_path / "model.gguf").rename(tmp_path / "renamed.gguf")
    (tmp_path / "renamed.gguf").rename(tmp_path / "model.gguf")
    assert converted(str(tmp_path / "model.gguf")) == folder
    other = families("llama").checkpoints[families("llama").references[1]]
    write(other, tmp_path / "model.gguf", "F16")
    with pytest.raises(pytest.fail.Exception, match="converted again"):
        converted(str(tmp_path / "model.gguf"))


def test_damage_is_one_line(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(
        CheckpointError, match=r"model.gguf: the file is damaged or cut short \(.*\); download it again"
    ):
        open_source(str(tmp_path / "model.gguf"))
    assert not any(path.is_dir() for path in (cache / "gguf").iterdir())


def test_an_unknown_architecture_is_one_line(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "mystery")
    writer.add_block_count(1)
    writer.add_tensor("token_embd.weight", np.zeros((4, 8), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(CheckpointError, match=r"transformers cannot read this GGUF file \(.*\); convert it to"):
        open_source(str(tmp_path / "model.gguf"))
