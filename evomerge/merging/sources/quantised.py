"""Weights that are stored as codes of a quantiser: by what they are recognised, and how they are refused."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from evomerge.merging.sources.errors import CheckpointError

QUANTISERS = {
    "aqlm": "AQLM",
    "auto-round": "AutoRound",
    "awq": "AWQ",
    "bitnet": "BitNet",
    "bitsandbytes": "bitsandbytes",
    "compressed-tensors": "compressed-tensors (W8A8, W4A16, FP8 or NVFP4)",
    "fbgemm_fp8": "FBGEMM (FP8)",
    "fp8": "FP8 with block scales",
    "gptq": "GPTQ",
    "modelopt": "NVIDIA ModelOpt",
    "mxfp4": "MXFP4",
    "torchao": "torchao",
}
"""Names for `quant_method`; other values are shown as they are."""
SECTIONS = ("quantization_config", "compression_config")
"""Keys of config.json that say how weights are stored."""
EXACT_FORMATS = {
    "compressed-tensors": ("float-quantized", "int-quantized", "naive-quantized"),
    "fbgemm_fp8": (None,),
    "fp8": (None,),
    "mxfp4": (None,),
}
"""What evomerge dequantises itself: `quant_method` and its formats (None: it has one only)."""
ACTIVATIONS = re.compile(r".*(\.|_)(input|output|activation|k|v|q|kv_cache)_scale|.*activation_scale")
"""Keys of scales of activations: they belong to quantised arithmetic, and float weights do not need them."""

QUANTISERS_OWN_FILES = {
    "hf_quant_config.json": "modelopt",
    "quant_config.json": "awq",
    "quantize_config.json": "gptq",
}
"""Files that quantisers write beside the weights, and the method that each stands for."""
_QUANTISED_KEY = re.compile(
    r".*(\.(qweight|qzeros|scales|g_idx|SCB)|absmax|quant_map|quant_state\..*"
    r"|weight(_packed|_scale|_scale_inv|_zero_point|_shape|_scale_2|_blocks|_scales)|_blocks|_scales"
    r"|input_scale|k_scale|v_scale|weight_format)"
)


def sections(config: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Yield the places in config.json that describe a quantiser: the mapping and the key in it."""
    for part in (config, config.get("text_config"), config.get("llm_config")):
        for key in SECTIONS:
            if isinstance(part, dict) and isinstance(part.get(key), dict) and part[key]:
                yield part, key


def quantiser(config: Mapping[str, Any]) -> str | None:
    """Return the method that a configuration says the weights are quantised with; None when they are not."""
    for part, key in sections(config):
        settings = part[key]
        if settings.get("quant_method"):
            return str(settings["quant_method"])
        by_bits = any(settings.get(bits) for bits in ("load_in_4bit", "load_in_8bit"))
        return "bitsandbytes" if by_bits else "a method that it does not name"
    return None


def is_exact(config: Mapping[str, Any]) -> bool:
    """Whether evomerge can turn weights of such a configuration into floats."""
    method = quantiser(config)
    if method not in EXACT_FORMATS:
        return False
    settings = next(part[key] for part, key in sections(config))
    return EXACT_FORMATS[method] == (None,) or settings.get("format") in EXACT_FORMATS[method]


def shown(method: str) -> str:
    """Return a quantiser's name for messages."""
    return QUANTISERS.get(method, method)


def refuse_quantised(reference: str, config: Mapping[str, Any]) -> None:
    """Refuse weights that the configuration calls quantised: their entries are codes, and a merge needs values."""
    method = quantiser(config)
    if method is not None:
        raise CheckpointError(
            f"{reference}: its weights are quantised by {shown(method)} (quantization_config in "
            f"config.json), and a merge needs floating-point weights; {_remedy(config)}; if the weights are "
            "floats already, remove quantization_config from config.json"
        )


def quantised_by_files(folder: Path, keys: list[str]) -> str | None:
    """Return what shows that weights are quantised although config.json does not say so; None when nothing does."""
    for name, method in QUANTISERS_OWN_FILES.items():
        if (folder / name).is_file():
            return f"they are quantised by {QUANTISERS[method]} ({name}); {_BY_ITSELF}"
    marks = sorted(key for key in keys if _QUANTISED_KEY.fullmatch(key))
    return f"{marks[0]} shows that they are quantised; {_BY_ITSELF}" if marks else None


_BY_ITSELF = "name the model that was quantised, or dequantise it with the quantiser's own tool"


def _remedy(config: Mapping[str, Any]) -> str:
    method = quantiser(config)
    if is_exact(config):
        return (
            "name the model that was quantised, or dequantise it with {path: MODEL, dequantize: true} in place of its "
            "name (MODEL+dequantize on the command line)"
        )
    if method == "compressed-tensors":
        how = "from_pretrained(..., quantization_config=CompressedTensorsConfig(run_compressed=False))"
        return f"name the model that was quantised, or dequantise it with {how} and save_pretrained()"
    if method == "bitsandbytes":
        return "name the model that was quantised, or dequantise it with model.dequantize() and save_pretrained()"
    return _BY_ITSELF
