"""Quantised checkpoints as sources: each is turned into a folder of floats once, tensor by tensor.

What quantisation lost does not come back; the result is what transformers computes with when it dequantises a model,
in the dtype that config.json names. Formulas, for codes q and scales s:

* FP8 (``weight_scale_inv`` for blocks or the whole tensor), and compressed-tensors' and FBGEMM's FP8 and INT8
  (``weight_scale`` for rows, groups, blocks or the whole tensor): ``w = q · s``, each scale for its part of the tensor;
* MXFP4 (OCP Microscaling Formats 1.0; ``_blocks`` and ``_scales``): ``w = FP4(q) · 2 ** (s - 127)`` for 32 entries.

transformers derives the size of a block from the number of scales, which is wrong where the last block is cut short, so
only its MXFP4 code is used.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors.torch import save_file
from torch import Tensor

from evomerge.files.cache import cache_folder, cached_folder
from evomerge.files.hashing import sha256, sha256_of_samples
from evomerge.files.messages import reason
from evomerge.merging.sources.errors import CheckpointError
from evomerge.merging.sources.limits import read_json
from evomerge.merging.sources.quantised import (
    ACTIVATIONS,
    QUANTISERS_OWN_FILES,
    SECTIONS,
    is_exact,
    quantiser,
    refuse_quantised,
    sections,
    shown,
)
from evomerge.merging.sources.source import CONTENT_LIMIT
from evomerge.merging.sources.tokenizer_folder import NAMED_TEMPLATES
from evomerge.merging.sources.weight_files import FLOATS, INDEX, SINGLE, WeightFiles

_SCALES = ("_scale_inv", "_scale")
_CODES = {"fp8": ("F8_E4M3", "F8_E5M2"), "fbgemm_fp8": ("F8_E4M3",), "compressed-tensors": ("F8_E4M3", "I8")}
_DEFAULT_BLOCK = (128, 128)  # transformers' FineGrainedFP8Config
_COPIED = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "README.md")
_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}

Shape: TypeAlias = tuple[int, ...]


def dequantised(reference: str, source: Path, cache: Path | None = None) -> Path:
    """Return the folder of a quantised model's float checkpoint, which is made at first use.

    Parameters
    ----------
    reference
        The model, as messages name it.
    source
        Its folder.
    cache
        The folder for such checkpoints; None: `cache_folder`.

    Raises
    ------
    CheckpointError
        If the weights are not quantised, or by a method that evomerge does not dequantise, or codes and scales do not
        fit.
    FileError
        If the cache cannot be written.
    """
    config = _config(reference, source)
    method = quantiser(config)
    if method is None:
        raise CheckpointError(
            f"{reference}: dequantize is set, and config.json has no quantization_config; remove dequantize"
        )
    if not is_exact(config):
        refuse_quantised(reference, config)
    files = WeightFiles.open(reference, source)
    model = _Quantised(reference, method, config, files)
    folder = (cache or cache_folder("dequantised")) / f"{source.name[:40]}-{_digest(source, files)}"
    return cached_folder(folder, lambda temporary: model.write(source, temporary), size=model.size())


class _Quantised:
    """A checkpoint of codes and scales; `_pairs` has the keys of both by the name of their weight."""

    def __init__(self, reference: str, method: str, config: dict[str, Any], files: WeightFiles) -> None:
        self._reference = reference
        self._method = method
        self._config = config
        self._files = files
        self._dtype = _dtype(config)
        self._blocks = _block_sizes([part[key] for part, key in sections(config)], method)
        self._pairs = self._match()
        self._check()

    def _match(self) -> dict[str, tuple[str, str]]:
        pairs = {}
        for key in self._files:
            if self._method == "mxfp4" and key.endswith("_blocks"):
                name, endings = key.removesuffix("_blocks"), ["_scales"]
            elif self._files.kind(key) in _CODES.get(self._method, ()):
                name, endings = key, ["_scale_inv", "_scale"]
            else:
                continue
            if present := [f"{name}{ending}" for ending in endings if f"{name}{ending}" in self._files]:
                pairs[name] = (key, present[0])
        return pairs

    def _check(self) -> None:
        """Refuse codes without scales, scales without codes, and shapes that do not fit each other."""
        used = {key for pair in self._pairs.values() for key in pair}
        for key in self._files:
            if key in used or ACTIVATIONS.fullmatch(key):
                continue
            if key.endswith(("_zero_point", "_g_idx")):
                raise CheckpointError(
                    f"{self._reference}: {key} shows an asymmetric or reordered quantisation, which evomerge does not "
                    "dequantise; name the model that was quantised"
                )
            if key.endswith(_SCALES) or self._files.kind(key) not in FLOATS:
                what = "scale" if key.endswith(_SCALES) else f"{self._files.kind(key)} tensor"
                raise CheckpointError(
                    f"{self._reference}: the {what} {key} has no counterpart, without which {shown(self._method)} "
                    "weights cannot be dequantised; download the model again, or name the model that was quantised"
                )
        for name, (codes, scale) in self._pairs.items():
            own, wanted = self._files.shape(scale), self._files.shape(codes)
            fits = own == wanted[:-1] if self._method == "mxfp4" else self._spans(own, wanted) is not None
            if not fits:
                raise CheckpointError(
                    f"{self._reference}: the scales of {name} have shape {list(own)}, which does not fit codes of "
                    f"shape {list(wanted)} and the block size in quantization_config; use the config.json that was "
                    "saved with the weights"
                )

    def size(self) -> int:
        """Return the bytes of all weights as floats, or a little more."""
        entries = sum(math.prod(self._files.shape(key)) * (2 if key.endswith("_blocks") else 1) for key in self._files)
        return entries * max(self._dtype.itemsize, 2)

    def write(self, source: Path, folder: Path) -> None:
        """Write the checkpoint: floats in files of the same names, config.json, and all small files as they are."""
        placed: dict[str, str] = {}
        paths = sorted(set(self._files.paths.values()))
        for path in paths:
            name = SINGLE if len(paths) == 1 else path.name
            tensors = dict(self._floats(path))
            save_file(tensors, folder / name, metadata={"format": "pt"})
            placed |= dict.fromkeys(tensors, name)
        copy_others(source, folder)
        if len(paths) > 1:
            (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": placed}), encoding="utf-8")
        (folder / "config.json").write_text(json.dumps(_plain(self._config), indent=2) + "\n", encoding="utf-8")

    def _floats(self, path: Path) -> Iterator[tuple[str, Tensor]]:
        """Yield the weights whose codes are in a file, and the floats that are in it."""
        names = {codes: name for name, (codes, _) in self._pairs.items()}
        scales = {scale for _, scale in self._pairs.values()}
        for key, place in self._files.paths.items():
            if place != path or key in scales or ACTIVATIONS.fullmatch(key):
                continue
            if key in names:
                yield names[key], self._weight(names[key])
            else:
                yield key, self._files.tensor(key).contiguous()

    def _weight(self, name: str) -> Tensor:
        codes, scales = (self._files.tensor(key) for key in self._pairs[name])
        if self._method == "mxfp4":
            from transformers.integrations.mxfp4 import convert_moe_packed_tensors

            return convert_moe_packed_tensors(codes, scales, dtype=self._dtype)
        scales = 2.0 ** (scales.float() - 127) if scales.dtype == torch.uint8 else scales.float()
        spans = self._spans(tuple(scales.shape), tuple(codes.shape))
        assert spans is not None, "checked"
        scales = scales.reshape(_with_row(tuple(scales.shape), tuple(codes.shape)))
        for axis, span in enumerate(spans):
            if span > 1:
                scales = scales.repeat_interleave(span, dim=axis).narrow(axis, 0, codes.shape[axis])
        return (codes.float() * scales).to(self._dtype)

    def _spans(self, scales: Shape, codes: Shape) -> Shape | None:
        """Return how many codes share a scale on each axis (1 also where one is for all); None where none fits."""
        scales = _with_row(scales, codes)
        if len(scales) != len(codes):
            return None
        if all(own in (1, count) for own, count in zip(scales, codes, strict=True)):
            return (1,) * len(codes)
        fitting = {spans for block in self._blocks if (spans := _block_spans(scales, codes, block)) is not None}
        return fitting.pop() if len(fitting) == 1 else None


def _with_row(scales: Shape, codes: Shape) -> Shape:
    """Return a shape of scales with as many axes as the codes: one scale for all, or one for each row."""
    if math.prod(scales) == 1:
        return (1,) * len(codes)
    return (*scales, 1) if scales == codes[:-1] else scales


def _block_spans(scales: Shape, codes: Shape, block: tuple[int, int]) -> Shape | None:
    spans = []
    for axis, (own, count) in enumerate(zip(scales, codes, strict=True)):
        size = block[axis - len(codes)] if axis >= len(codes) - 2 else 1
        if own == -(-count // size):
            spans.append(size)
        elif own == 1:
            spans.append(1)
        else:
            return None
    return tuple(spans)


def _block_sizes(settings: Sequence[Mapping[str, Any]], method: str) -> list[tuple[int, int]]:
    """Return the block sizes [rows, columns] that a configuration names."""
    if method == "fp8":
        named = [own.get("weight_block_size", _DEFAULT_BLOCK) for own in settings]
    else:
        groups = [group for own in settings for group in _values_of(own.get("config_groups"))]
        weights = [group["weights"] for group in groups if isinstance(group.get("weights"), dict)]
        named = [own.get("block_structure") for own in weights]
        named += [(1, own["group_size"]) for own in weights if own.get("group_size")]
    return [
        (block[0], block[1])
        for block in named
        if isinstance(block, list | tuple) and len(block) == 2 and all(type(size) is int and size > 0 for size in block)
    ]


def _values_of(mapping: Any) -> list[Any]:
    return [value for value in mapping.values() if isinstance(value, dict)] if isinstance(mapping, dict) else []


def _config(reference: str, folder: Path) -> dict[str, Any]:
    try:
        values = read_json(folder / "config.json")
    except (OSError, ValueError) as error:
        why = reason(error, folder / "config.json")
        raise CheckpointError(
            f"{reference}: config.json cannot be read ({why}); name a transformers checkpoint"
        ) from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{reference}: config.json does not contain a mapping; name a transformers checkpoint")
    return values


def _dtype(config: Mapping[str, Any]) -> torch.dtype:
    for part in (config, config.get("text_config")):
        for key in ("dtype", "torch_dtype"):
            if isinstance(part, dict) and part.get(key) in _DTYPES:
                return _DTYPES[part[key]]
    return torch.bfloat16


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration without its description of a quantiser."""
    return {
        key: _plain(value) if isinstance(value, dict) else value for key, value in config.items() if key not in SECTIONS
    }


def copy_others(source: Path, folder: Path) -> None:
    """Copy all files of a checkpoint but its weights: configuration, tokenizer, README."""
    for path in sorted({path for pattern in _COPIED for path in source.glob(pattern) if path.is_file()}):
        if path.name != INDEX and path.name not in QUANTISERS_OWN_FILES:
            shutil.copyfile(path, folder / path.name)
    if (source / NAMED_TEMPLATES).is_dir():
        shutil.copytree(source / NAMED_TEMPLATES, folder / NAMED_TEMPLATES)


def _digest(source: Path, files: WeightFiles) -> str:
    """Return a hash of all that decides the floats; of large files by samples, size and time."""
    paths = [source / "config.json", *sorted(set(files.paths.values()))]
    whole = sum(path.stat().st_size for path in paths) <= CONTENT_LIMIT
    digest = hashlib.sha256()
    for path in paths:
        status = path.stat()
        own = sha256(path) if whole else f"{sha256_of_samples(path)} {status.st_size} {status.st_mtime_ns}"
        digest.update(f"{path.name} {own}\n".encode())
    return digest.hexdigest()[:16]
