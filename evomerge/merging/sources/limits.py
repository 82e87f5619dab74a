"""Bounds on what a model folder may make evomerge allocate, checked before anything is built from it."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MAX_JSON_BYTES = 16_000_000  # config.json takes some kB, an index of a thousand shards some MB
MAX_HEADER_BYTES = 100_000_000  # the safetensors format's own bound
MAX_LAYERS = 1_024  # each becomes a module; the deepest published models have about 130
MAX_COUNT = 65_536  # heads, experts, labels


class LimitError(ValueError):
    """A file that asks for more than any model needs; the message names the value but not the file."""


def read_json(path: Path) -> Any:
    """Return the values of a model folder's JSON file.

    Raises
    ------
    LimitError
        If the file is too large or nested too deeply.
    ValueError
        If it is not JSON.
    OSError
        If it cannot be read.
    """
    with path.open("rb") as file:
        data = file.read(MAX_JSON_BYTES + 1)
    if len(data) > MAX_JSON_BYTES:
        raise LimitError(f"it is larger than {MAX_JSON_BYTES:,} bytes")
    try:
        return json.loads(data)
    except RecursionError:
        raise LimitError("it is nested too deeply") from None


def check_numbers(values: Any) -> None:
    """Refuse a configuration with NaN, or with more layers, heads or experts than any model has.

    Raises
    ------
    LimitError
        If a number is NaN, or a count is above `MAX_LAYERS` or `MAX_COUNT`; the message names the key.
    """
    for key, value in _pairs(values):
        if isinstance(value, float) and math.isnan(value):
            raise LimitError(f"{key} is NaN")
        layers = key.endswith("_layers") or key == "n_layer"
        if not layers and not key.startswith(("num_", "n_")):
            continue
        limit = MAX_LAYERS if layers else MAX_COUNT
        if isinstance(value, int | float) and not abs(value) <= limit:
            raise LimitError(f"{key} is {value:g}; the limit is {limit:,}")


def check_header(path: Path) -> None:
    """Refuse a safetensors file that is too short for the header that its first eight bytes announce.

    Raises
    ------
    LimitError
        If the file is shorter than its header, or the header is longer than the format allows.
    """
    with path.open("rb") as file:
        start = file.read(8)
    size = path.stat().st_size
    claimed = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
    if claimed > min(MAX_HEADER_BYTES, size - 8) or size < 8:
        raise LimitError(f"its header should have {claimed:,} bytes, and the file has {size:,}")


def _pairs(values: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(values, dict):
        for key, value in values.items():
            yield key, value
            yield from _pairs(value)
    elif isinstance(values, list):
        for value in values:
            yield from _pairs(value)
