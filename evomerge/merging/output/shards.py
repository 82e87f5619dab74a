"""Writing safetensors files tensor by tensor, so that memory holds one tensor, however large the model is.

The bytes are the same that the safetensors package writes: a header with names, types, shapes and offsets, then the
tensors, sorted by decreasing size of their type, then by name.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from huggingface_hub.serialization import split_state_dict_into_shards_factory
from torch import Tensor, nn

from evomerge.files.pages import write_uncached

SHARD = 50 * 10**9  # bytes per file, the default of transformers
INDEX = "model.safetensors.index.json"
TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


class Stream(Protocol):
    """A function that gives tensors one after another, in any order."""

    def __call__(self, names: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
        """Yield each name with its tensor, on the CPU."""


def stored_tensors(module: nn.Module, tied: Mapping[str, str]) -> dict[str, Tensor] | None:
    """Return the tensors in a checkpoint of the module, tied parameters once, on the module's (meta) device.

    None where transformers stores other tensors than the module has: experts that are fused in memory are stored one
    by one.
    """
    state = {name: values for name, values in module.state_dict().items() if name not in tied}
    try:
        from transformers.core_model_loading import revert_weight_conversion
    except ImportError:  # a release of transformers 5 without conversions
        return state
    stored = revert_weight_conversion(module, dict(state))
    same = stored.keys() == state.keys() and all(stored[name] is state[name] for name in state)
    return state if same and all(values.dtype in TYPES for values in state.values()) else None


def write_shards(folder: Path, tensors: Mapping[str, Tensor], stream: Stream, *, shard: int = SHARD) -> None:
    """Write ``model.safetensors``, or several files and their index when the model is larger than a shard.

    Parameters
    ----------
    folder
        The folder to write to.
    tensors
        Shapes and dtypes by name: meta tensors.
    stream
        Gives the values.
    shard
        Largest size of a file in bytes; a single larger tensor gets a file of its own.
    """
    split = split_state_dict_into_shards_factory(
        dict(tensors),
        get_storage_size=lambda values: values.nbytes,
        get_storage_id=lambda values: None,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=shard,
    )
    for file, names in split.filename_to_tensors.items():
        _write_file(folder / file, {name: tensors[name] for name in names}, stream)
    if split.is_sharded:
        parameters = sum(values.numel() for values in tensors.values())
        metadata = {"total_parameters": parameters, **split.metadata}
        index = {"metadata": metadata, "weight_map": split.tensor_to_filename}
        (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _write_file(path: Path, tensors: Mapping[str, Tensor], stream: Stream) -> None:
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    places, end = {}, 0
    for name in names:
        places[name], end = end, end + tensors[name].nbytes
    with path.open("wb") as file:
        start = file.write(_header({name: tensors[name] for name in names}))
        for name, values in stream(names):
            write_uncached(file, values.contiguous().view(-1).view(torch.uint8).numpy().data, start + places[name])


def _header(tensors: Mapping[str, Tensor]) -> bytes:
    """Return the length of the description in 8 bytes, then the description, padded to a multiple of 8."""
    described: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, values in tensors.items():
        start, end = end, end + values.nbytes
        described[name] = {"dtype": TYPES[values.dtype], "shape": list(values.shape), "data_offsets": [start, end]}
    text = json.dumps(described, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
