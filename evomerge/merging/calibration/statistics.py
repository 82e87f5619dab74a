"""Statistics of one model on one text: measured before the first candidate, and kept on disk.

The cache is a folder for each statistic, named by a hash over its kind, the weights, the tokenizer, the text and the
dtype: equal names, equal statistics. It may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from torch import Tensor

from evomerge.files.cache import cache_folder, cached_folder
from evomerge.files.hashing import sha256
from evomerge.merging.calibration import gradients, inputs, parts
from evomerge.merging.calibration.parts import Part, Statistics
from evomerge.merging.calibration.texts import MAX_WINDOWS, WINDOW, most_tokens, read, windows_of
from evomerge.merging.sources.source import Source, fingerprint
from search_spaces.recipes.layout import ModelLayout

if TYPE_CHECKING:
    from transformers import PreTrainedModel

VERSION = 2
"""Version of the measurements; part of the cache's key."""

Measure: TypeAlias = "Callable[[PreTrainedModel, ModelLayout, Tensor], Iterator[Part]]"
Sizes: TypeAlias = Callable[[Source, int, int], int]
"""Bytes for a model, a number of tokens and the bytes of one hidden number."""


@dataclass(frozen=True)
class Kind:
    """A kind of statistic.

    Attributes
    ----------
    measure
        Yields it in parts.
    memory
        The most that it holds beside the model and one window's activations.
    disk
        The most that the cache holds.
    """

    measure: Measure
    memory: Sizes
    disk: Sizes


def _entries(source: Source) -> int:
    return sum(math.prod(source.shape(name)) for name in source.names)


def _widths(source: Source, layer: int) -> list[int]:
    """Return the input channels of a layer's matrices."""
    names = (source.layout.layer_tensor(layer, name) for name in source.layout.layers[layer])
    return [shape[1] for shape in map(source.shape, names) if len(shape) == 2]


def _gram_bytes(source: Source) -> list[int]:
    """Return the bytes of each layer's Gram matrices, as if no maps shared one."""
    return [sum(4 * width**2 for width in _widths(source, layer)) for layer in range(source.layout.num_layers)]


def _gram_memory(source: Source, tokens: int, number: int) -> int:
    width = int(source.config.get_text_config().hidden_size)
    return max(_gram_bytes(source)) + tokens * width * number


def _by_channel(source: Source, tokens: int, number: int) -> int:
    return sum(8 * source.shape(name)[-1] for name in source.names)


KINDS: Mapping[str, Kind] = {
    "activations": Kind(inputs.activations, _by_channel, _by_channel),
    "energies": Kind(inputs.energies, _by_channel, _by_channel),
    "gram": Kind(inputs.grams, _gram_memory, lambda source, *_: sum(_gram_bytes(source))),
    "fisher": Kind(gradients.fisher, lambda source, *_: 6 * _entries(source), lambda source, *_: 2 * _entries(source)),
}


def memory(kind: str, checkpoint: Source, text: Path, number: int) -> int:
    """Return the most bytes that measuring holds beside the model and one window's activations.

    `number` is the bytes of one number of the model's hidden states.
    """
    return KINDS[kind].memory(checkpoint, most_tokens(read(text)), number)


def statistics(
    kind: str,
    checkpoint: Source,
    text: Path,
    load: Callable[[], PreTrainedModel],
    cache: Path | None = None,
    *,
    dtype: str = "float32",
) -> Statistics:
    """Return a statistic of a model on a text, from the cache if it is in it.

    Parameters
    ----------
    kind
        One of `KINDS`.
    checkpoint
        The model's files and tokenizer.
    text
        UTF-8; its first 256 windows of 512 tokens count.
    load
        Gives the model with its weights; called only if something has to be measured.
    cache
        The folder; None: `cache_folder`.
    dtype
        What that model computes in.

    Raises
    ------
    CheckpointError
        If the text cannot be read or is too short, or the model has no tokenizer.
    FileError
        If the cache cannot be written.
    """
    content = read(text)
    folder = (cache or cache_folder("statistics")) / f"{kind}-{_key(kind, checkpoint, content, dtype)}"
    if folder.exists():
        with suppress(Exception):  # damaged: measure again
            return parts.load(folder)
        shutil.rmtree(folder)
    windows = windows_of(checkpoint, content, text)

    def fill(place: Path) -> None:
        parts.write(place, KINDS[kind].measure(load(), checkpoint.layout, windows))

    cached_folder(folder, fill, size=KINDS[kind].disk(checkpoint, windows.numel(), 4))
    return parts.load(folder)


def _key(kind: str, checkpoint: Source, content: bytes, dtype: str) -> str:
    files = json.dumps(fingerprint(checkpoint)["files"], sort_keys=True)
    hashed = hashlib.sha256(f"{VERSION}\0{kind}\0{WINDOW}\0{MAX_WINDOWS}\0{dtype}\0{files}\0".encode())
    for path in checkpoint.tokenizer.files:
        hashed.update(bytes.fromhex(sha256(path)))
    hashed.update(content)
    return hashed.hexdigest()[:32]
