"""Quantised checkpoints as sources, against formulas written without the code under test, and against transformers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, GptOssConfig

from evomerge.cli.merge import merge
from evomerge.merging.sources.dequantised import dequantised
from evomerge.merging.sources.errors import CheckpointError
from evomerge.merging.sources.open_sources import open_source, open_sources

WEIGHTS = "model.safetensors"
Tensors = dict[str, Tensor]
Quantise = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From a weight to its codes and scales."""

CHANNELS = {
    "quant_method": "compressed-tensors",
    "format": "float-quantized",
    "config_groups": {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 8, "strategy": "channel"}}},
}
BLOCKS = {"quant_method": "fp8", "weight_block_size": [20, 12], "activation_scheme": "dynamic"}


def by_blocks(rows: int, columns: int) -> Quantise:
    """Scale each block, the last ones cut short; entry by entry, as slowly as it can be written."""

    def quantise(weight: Tensor) -> tuple[Tensor, Tensor]:
        scales = torch.zeros(-(-weight.shape[0] // rows), -(-weight.shape[1] // columns))
        for i in range(scales.shape[0]):
            for j in range(scales.shape[1]):
                block = weight[i * rows : (i + 1) * rows, j * columns : (j + 1) * columns].float()
                scales[i, j] = block.abs().max() / 448
        codes = torch.zeros(weight.shape)
        for m in range(weight.shape[0]):
            for n in range(weight.shape[1]):
                codes[m, n] = weight[m, n].float() / scales[m // rows, n // columns]
        return codes.to(torch.float8_e4m3fn), scales

    return quantise


def by_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    scale = weight.float().abs().amax(1, keepdim=True) / 448
    return (weight.float() / scale).to(torch.float8_e4m3fn), scale


def in_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    scale = weight.float().abs().amax(1, keepdim=True) / 127
    return (weight.float() / scale).round().to(torch.int8), scale.bfloat16()


def as_one(weight: Tensor) -> tuple[Tensor, Tensor]:
    scale = weight.float().abs().max() / 448
    return (weight.float() / scale).to(torch.float8_e4m3fn), scale


def quantised(source: str, folder: Path, settings: dict[str, Any], quantise: Quantise, suffix: str) -> Path:
    """Copy a checkpoint with its projections quantised."""
    shutil.copytree(source, folder)
    tensors: Tensors = {}
    for name, values in load_file(folder / WEIGHTS).items():
        if "proj" in name:
            tensors[name], tensors[name + suffix] = quantise(values)
            tensors[name.replace("weight", "input_scale")] = torch.ones(())
        else:
            tensors[name] = values
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    set_values(folder, quantization_config=settings)
    return folder


def set_values(folder: Path, **values: Any) -> None:
    known = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(known | values))


def value_of(codes: Tensor, scales: Tensor, m: int, n: int, rows: int, columns: int) -> float:
    """Return one weight by the definition."""
    return float(codes[m, n].float()) * float(scales[m // rows, n // columns].float())


@pytest.mark.parametrize(
    ("settings", "quantise", "suffix", "block"),
    [
        (BLOCKS, by_blocks(20, 12), "_scale_inv", (20, 12)),
        ({**BLOCKS, "weight_block_size": [16, 32]}, by_blocks(16, 32), "_scale_inv", (16, 32)),
        ({**BLOCKS, "weight_block_size": None}, as_one, "_scale_inv", (999, 999)),
        (CHANNELS, by_rows, "_scale", (1, 999)),
        ({**CHANNELS, "format": "int-quantized"}, in_int8, "_scale", (1, 999)),
        ({"quant_method": "fbgemm_fp8"}, by_rows, "_scale", (1, 999)),
    ],
)
def test_codes_times_scales(
    llama: Any, tmp_path: Path, settings: Any, quantise: Quantise, suffix: str, block: tuple[int, int]
) -> None:
    folder = quantised(llama.base, tmp_path / "quantised", settings, quantise, suffix)
    source = open_source(f"{folder}+dequantize")
    stored = load_file(folder / WEIGHTS)
    assert source.config.to_dict().get("quantization_config") is None
    assert source.dtype == torch.bfloat16
    for name in source.names:
        values = source.tensor(name)
        if name + suffix not in stored:
            assert torch.equal(values, stored[name])
            continue
        codes, scales = stored[name], stored[name + suffix].reshape(-1, stored[name + suffix].shape[-1:].numel())
        rows, columns = values.shape
        some = range(0, rows, 3)  # of each block
        expected = [[value_of(codes, scales, m, n, *block) for n in range(columns)] for m in some]
        assert torch.equal(values[::3], torch.tensor(expected).bfloat16())
        assert torch.allclose(values.float(), llama.tensors(0)[name].float(), rtol=0.08, atol=1e-3)


def test_blocks_as_transformers_reads_them(llama: Any, tmp_path: Path) -> None:
    settings = {**BLOCKS, "weight_block_size": [16, 16], "modules_to_not_convert": ["lm_head"]}
    folder = quantised(llama.base, tmp_path / "quantised", settings, by_blocks(16, 16), "_scale_inv")
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).state_dict()
    source = open_source(f"{folder}+dequantize")
    assert all(torch.equal(source.tensor(name), theirs[name]) for name in source.names)


FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


@pytest.fixture
def gpt_oss(tmp_path: Path) -> Path:
    """A tiny gpt-oss with experts in MXFP4, as it is published."""
    config = GptOssConfig(
        hidden_size=64,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        vocab_size=64,
        num_local_experts=2,
        num_experts_per_tok=1,
        layer_types=["sliding_attention", "full_attention"],
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    folder = tmp_path / "gpt-oss"
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    tensors = load_file(folder / WEIGHTS)
    generator = torch.Generator().manual_seed(0)
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, inner, outer = tensors.pop(name).shape
        shape = (experts, outer, inner // 32)
        tensors[f"{name}_blocks"] = torch.randint(0, 256, (*shape, 16), generator=generator).to(torch.uint8)
        tensors[f"{name}_scales"] = torch.randint(110, 125, shape, generator=generator).to(torch.uint8)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    set_values(folder, quantization_config={"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]})
    return folder


def test_fp4_in_blocks_of_32(gpt_oss: Path) -> None:
    source = open_source(f"{gpt_oss}+dequantize")
    stored = load_file(gpt_oss / WEIGHTS)
    experts = [name for name in source.names if name.endswith(("gate_up_proj", "down_proj"))]
    assert len(experts) == 4
    for name in experts:
        values, blocks, scales = source.tensor(name), stored[f"{name}_blocks"], stored[f"{name}_scales"]
        for e, i, o in ((0, 0, 0), (1, 5, 7), (1, 31, 20), (0, 18, 33)):
            byte = int(blocks[e, o, i // 32, (i % 32) // 2])
            code = byte >> 4 if i % 2 else byte & 15
            expected = FP4[code & 7] * (-1 if code & 8 else 1) * 2.0 ** (int(scales[e, o, i // 32]) - 127)
            assert float(values[e, i, o]) == expected


# --- where sources are named ---


def test_a_merge_of_a_quantised_model(llama: Any, tmp_path: Path, read: Any) -> None:
    folder = quantised(llama.references[1], tmp_path / "fp8", BLOCKS, by_blocks(20, 12), "_scale_inv")
    recipe = tmp_path / "recipe.yaml"
    models = f"models: [{{model: {llama.base}}}, {{model: {{path: {folder}, dequantize: true}}}}]"
    recipe.write_text(f"merge_method: linear\n{models}\nparameters: {{weight: 0.5}}\ndtype: float32\n")
    merge(recipe, tmp_path / "out", "cpu")
    merged, floats = read(tmp_path / "out"), open_source(f"{folder}+dequantize")
    for name, values in llama.tensors(0).items():
        assert torch.allclose(merged[name], (values.float() + floats.tensor(name).float()) / 2, atol=1e-6)
    assert "dequantize: true" in (tmp_path / "out" / "recipe.yaml").read_text()
    merge(tmp_path / "out" / "recipe.yaml", tmp_path / "again", "cpu")
    assert all(torch.equal(values, merged[name]) for name, values in read(tmp_path / "again").items())


def test_an_adapter_on_a_quantised_base(llama: Any, make_adapter: Any, tmp_path: Path) -> None:
    """As QLoRA trains it: the adapter names the quantised folder."""
    folder = quantised(llama.base, tmp_path / "fp8", BLOCKS, by_blocks(20, 12), "_scale_inv")
    adapter, _ = make_adapter(llama.base, tmp_path / "adapter", r=2, target_modules=["q_proj"])
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": str(folder)}))
    sources = open_sources({"base": f"{folder}+dequantize", "expert": str(adapter)}, "base")
    base, expert = sources["base"], sources["expert"]
    assert [name for name in base.names if not torch.equal(base.tensor(name), expert.tensor(name).to(base.dtype))]
    with pytest.raises(CheckpointError, match=r"quantised by FP8 .*dequantize: true"):
        open_source(str(adapter))
    open_sources({"base": llama.base, "expert": str(adapter)}, "base")  # on the model that was quantised


def test_the_floats_are_made_once(llama: Any, tmp_path: Path) -> None:
    folder = quantised(llama.base, tmp_path / "fp8", BLOCKS, by_blocks(20, 12), "_scale_inv")
    first = dequantised(str(folder), folder)
    stamp = (first / WEIGHTS).stat().st_mtime_ns
    assert dequantised(str(folder), folder) == first
    assert (first / WEIGHTS).stat().st_mtime_ns == stamp
    tensors = load_file(folder / WEIGHTS)
    tensors["model.norm.weight"] = tensors["model.norm.weight"] * 2
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    assert dequantised(str(folder), folder) != first


def test_shards_and_scales_apart(llama: Any, tmp_path: Path) -> None:
    folder = quantised(llama.base, tmp_path / "fp8", BLOCKS, by_blocks(20, 12), "_scale_inv")
    whole = open_source(f"{folder}+dequantize")
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    parts: dict[str, Tensors] = {"a.safetensors": {}, "b.safetensors": {}}
    for name, values in tensors.items():
        parts["b.safetensors" if name.endswith("_scale_inv") or "layers.3" in name else "a.safetensors"][name] = values
    for file, held in parts.items():
        save_file(held, folder / file, metadata={"format": "pt"})
    index = {"weight_map": {name: file for file, held in parts.items() for name in held}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    cut = open_source(f"{folder}+dequantize")
    assert all(torch.equal(cut.tensor(name), whole.tensor(name)) for name in whole.names)


# --- what is refused ---


def test_weights_that_are_floats_already(llama: Any) -> None:
    with pytest.raises(CheckpointError, match=r"dequantize is set, and config.json has no quantization_config; remove"):
        open_source(f"{llama.base}+dequantize")


@pytest.mark.parametrize(
    "settings",
    [
        {"quant_method": "gptq", "bits": 4},
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        {"quant_method": "compressed-tensors", "format": "pack-quantized"},
    ],
)
def test_methods_that_evomerge_does_not_dequantise(llama: Any, tmp_path: Path, settings: dict[str, Any]) -> None:
    shutil.copytree(llama.base, tmp_path / "copy")
    set_values(tmp_path / "copy", quantization_config=settings)
    with pytest.raises(CheckpointError, match=r"weights are quantised by .*; name the model that was quantised, or"):
        open_source(f"{tmp_path / 'copy'}+dequantize")


UP = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(f"{UP}_scale_inv"), r"F8_E4M3 tensor model.layers.1.mlp.up_proj.weight has no counterpart"),
        (lambda t: t.pop(UP), r"the scale model.layers.1.mlp.up_proj.weight_scale_inv has no counterpart"),
        (
            lambda t: t.update({f"{UP}_scale_inv": torch.ones(2, 3)}),
            r"have shape \[2, 3\], which does not fit codes of",
        ),
        (lambda t: t.update({f"{UP}_scale_inv": torch.ones(3, 4, 1)}), r"have shape \[3, 4, 1\], which does not fit"),
        (lambda t: t.update({f"{UP}_zero_point": torch.ones(3)}), r"shows an asymmetric or reordered quantisation"),
    ],
)
def test_codes_and_scales_that_do_not_fit(
    llama: Any, tmp_path: Path, change: Callable[[Tensors], object], message: str
) -> None:
    folder = quantised(llama.base, tmp_path / "fp8", BLOCKS, by_blocks(20, 12), "_scale_inv")
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=message):
        open_source(f"{folder}+dequantize")
