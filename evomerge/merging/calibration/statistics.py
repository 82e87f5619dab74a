"""Statistics of one model on one text: measured before the first candidate, and kept on disk.

The cache is a folder for each statistic, named by a hash over its kind, the weights, the tokenizer, the text and the
dtype: equal names, equal statistics. It may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from evomerge.files.cache import cache_folder, cached_folder
from evomerge.files.hashing import sha256
from evomerge.merging.calibration import parts
from evomerge.merging.calibration.joint import Members
from evomerge.merging.calibration.kinds import JOINT, KINDS, Sizes
from evomerge.merging.calibration.parts import Part, Statistics
from evomerge.merging.calibration.texts import MAX_WINDOWS, WINDOW, most_tokens, read, windows_of
from evomerge.merging.sources.source import Source, fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedModel

VERSION = 2
"""Version of the measurements; part of the cache's key."""


def memory(kind: str, checkpoint: Source, text: Path, number: int) -> int:
    """Return the most bytes that measuring holds beside the model and one window's activations.

    `number` is the bytes of one number of the model's hidden states. Of a kind of several models, for one of them.
    """
    sizes = JOINT[kind].memory if kind in JOINT else KINDS[kind].memory
    return sizes(checkpoint, most_tokens(read(text)), number)


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
    how = KINDS[kind]

    def measured(windows: Sequence[Tensor]) -> Iterator[Part]:
        return how.measure(load(), checkpoint.layout, windows[0])

    return _kept(kind, [(checkpoint, text)], how.disk, measured, cache, dtype)


def joint_statistics(
    kind: str,
    members: Sequence[tuple[Source, Path]],
    load: Callable[[int], PreTrainedModel],
    cache: Path | None = None,
    *,
    dtype: str = "float32",
) -> Statistics:
    """Return a statistic of several models, each on its text: the names are a model's number, a colon, and a tensor's.

    Parameters and errors are those of `statistics`, `kind` one of `JOINT`; `load` gives a model by its number.
    """
    how = JOINT[kind]
    sources = [source for source, _ in members]

    def measured(windows: Sequence[Tensor]) -> Iterator[Part]:
        return how.measure(Members(sources, windows, load))

    return _kept(kind, members, how.disk, measured, cache, dtype)


def _kept(
    kind: str,
    members: Sequence[tuple[Source, Path]],
    disk: Sizes,
    measure: Callable[[Sequence[Tensor]], Iterator[Part]],
    cache: Path | None,
    dtype: str,
) -> Statistics:
    """Return what is in the cache; measure what is not, and what is damaged."""
    contents = [read(text) for _, text in members]
    key = _key(kind, [source for source, _ in members], contents, dtype)
    folder = (cache or cache_folder("statistics")) / f"{kind}-{key}"
    if folder.exists():
        with suppress(Exception):  # damaged: measure again
            return parts.load(folder)
        shutil.rmtree(folder)
    windows = [windows_of(source, own, text) for (source, text), own in zip(members, contents, strict=True)]
    size = sum(disk(source, own.numel(), 4) for (source, _), own in zip(members, windows, strict=True))
    cached_folder(folder, lambda place: parts.write(place, measure(windows)), size=size)
    return parts.load(folder)


def _key(kind: str, sources: Sequence[Source], contents: Sequence[bytes], dtype: str) -> str:
    hashed = hashlib.sha256(f"{VERSION}\0{kind}\0{WINDOW}\0{MAX_WINDOWS}\0{dtype}\0".encode())
    for source, content in zip(sources, contents, strict=True):
        hashed.update(json.dumps(fingerprint(source)["files"], sort_keys=True).encode() + b"\0")
        for path in source.tokenizer.files:
            hashed.update(bytes.fromhex(sha256(path)))
        hashed.update(hashlib.sha256(content).digest())
    return hashed.hexdigest()[:32]
