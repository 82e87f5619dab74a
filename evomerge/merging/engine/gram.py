"""Inner products of models, chunk by chunk: all that spherical interpolation between their mixtures needs.

One pass over the weights, in float64, in blocks of a fixed size and order; the result is kept in the user's cache, so
a resumed search reads the same numbers. Legend: C chunks, T models, E entries of a block.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from evomerge.files.atomic import FileError, atomic_file
from evomerge.files.cache import cache_folder
from evomerge.merging.sources.source import Source, fingerprint
from search_spaces.spaces.context import Chunk, Gram

BLOCK = 1 << 18  # entries; 2 MiB per model in float64


def gram_matrices(checkpoints: Mapping[str, Source], chunks: tuple[Chunk, ...]) -> Gram:
    """Return the inner products float64[C, T, T] of the models on each chunk, from the cache if they are in it."""
    file = cache_folder("gram") / f"{_key(checkpoints, chunks)}.npy"
    shape = (len(chunks), len(checkpoints), len(checkpoints))
    if file.is_file():
        try:
            known: Gram = np.load(file, allow_pickle=False)
            if known.shape == shape and known.dtype == np.float64:
                return known
        except (OSError, ValueError, EOFError):  # truncated: computed again
            pass
    computed = inner_products(checkpoints, chunks)
    _keep(file, computed)
    return computed


def inner_products(checkpoints: Mapping[str, Source], chunks: tuple[Chunk, ...]) -> Gram:
    """Return the inner products float64[C, T, T] of the models on each chunk."""
    models = list(checkpoints.values())
    result = np.zeros((len(chunks), len(models), len(models)))
    with torch.inference_mode():
        for index, chunk in enumerate(chunks):
            for name, start, end in chunk:
                flat = [model.tensor(name).reshape(-1) for model in models]
                for first in range(start, end, BLOCK):
                    rows_TE = torch.stack([values[first : min(first + BLOCK, end)].double() for values in flat])
                    result[index] += (rows_TE @ rows_TE.T).numpy()
    return result


def _key(checkpoints: Mapping[str, Source], chunks: tuple[Chunk, ...]) -> str:
    files = [fingerprint(checkpoint)["files"] for checkpoint in checkpoints.values()]
    return hashlib.sha256(json.dumps([files, chunks], sort_keys=True).encode()).hexdigest()[:32]


def _keep(file: Path, matrices: Gram) -> None:
    """Write the cache; without a cache that can be written, the next search measures again."""
    with suppress(FileError), atomic_file(file, parents=True) as temporary, temporary.open("wb") as opened:
        np.save(opened, matrices, allow_pickle=False)
