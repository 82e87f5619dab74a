"""Dividing the parameter order into chunks, in one chromosome or several.

A chromosome is a part of the tensors, in parameter order: with attention as a chromosome, all attention tensors follow
each other, and so do all others. A chunk belongs to one chromosome. Legend: C chunks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from search_spaces.recipes.errors import RecipeError
from search_spaces.recipes.layout import ModelLayout
from search_spaces.recipes.mixture_table import Piece, Pieces
from search_spaces.spaces.context import Chunk

Cut = int | Literal["tensors", "layers"]


@dataclass(frozen=True)
class Chunking:
    """Chunks of the parameter order.

    Attributes
    ----------
    chunks
        C chunks, grouped by chromosome.
    labels
        Name of each chunk.
    chromosomes
        Indices of each chromosome's chunks, in order.
    tensors
        By name, sorted: each tensor's chunks, as the pieces of a `Mixture` with one row per chunk.
    entries
        Number of entries of each chunk, float64[C].
    """

    chunks: tuple[Chunk, ...]
    labels: tuple[str, ...]
    chromosomes: tuple[npt.NDArray[np.int64], ...]
    tensors: tuple[tuple[str, Pieces], ...]
    entries: npt.NDArray[np.float64]

    def means(self, pieces: Mapping[str, Sequence[Piece]], seeds: Sequence[int]) -> npt.NDArray[np.float64]:
        """Return the rows of weights and of deviations for `seeds`, as means over each chunk's entries."""
        width = len(next(iter(pieces.values()))[0].weights) + len(seeds)
        rows = np.zeros((len(self.chunks), width))
        for index, chunk in enumerate(self.chunks):
            found: list[tuple[int, tuple[float, ...]]] = []
            for name, start, end in chunk:
                found += _overlaps(pieces[name], start, end, seeds)
            values = {row for _, row in found}
            # exactly the common value if all are equal, which rounding could change
            rows[index] = values.pop() if len(values) == 1 else _mean(found)
        return rows


def _overlaps(
    pieces: Sequence[Piece], start: int, end: int, seeds: Sequence[int]
) -> Iterator[tuple[int, tuple[float, ...]]]:
    before = 0
    for piece in pieces:
        count = min(piece.end, end) - max(before, start)
        if count > 0:
            deviations = {noise.seed: noise.deviation for noise in piece.noises}
            yield count, (*piece.weights, *(deviations.get(seed, 0.0) for seed in seeds))
        before = piece.end


def _mean(found: Sequence[tuple[int, tuple[float, ...]]]) -> npt.NDArray[np.float64]:
    counts = np.array([count for count, _ in found], dtype=np.float64)
    mean: npt.NDArray[np.float64] = counts @ np.array([row for _, row in found]) / counts.sum()
    return mean


def chunking(
    cut: Cut, chromosomes: Sequence[Literal["attention", "mlp"]], layout: ModelLayout, sizes: Mapping[str, int]
) -> Chunking:
    """Divide the parameter order of a model into chunks.

    Parameters
    ----------
    cut
        Number of chunks of about equal size; or one per tensor, or one per layer (plus one for the embeddings and one
        for the tensors after the layers).
    chromosomes
        Parts of a layer that are separate chromosomes; the rest of the model is the last one.
    layout, sizes
        Layout of the models, and entries of each tensor.

    Raises
    ------
    RecipeError
        If there are more chunks than entries.
    """
    filters = [layout.module_filter(module) for module in chromosomes]
    parts: list[list[str]] = [[] for _ in range(len(filters) + 1)]
    for name in layout.tensors():
        parts[next((at for at, pattern in enumerate(filters) if pattern in name), len(filters))].append(name)
    total = sum(sizes[name] for name in layout.tensors())
    chunks: list[Chunk] = []
    labels: list[str] = []
    members = []
    for part, name in zip(parts, [*chromosomes, "rest" if chromosomes else ""], strict=True):
        own = _cut(part, cut, total, layout, sizes)
        members.append(np.arange(len(chunks), len(chunks) + len(own)))
        chunks += own
        labels += [f"{name} {index}".strip() for index in range(len(own))]
    return Chunking(
        tuple(chunks),
        tuple(labels),
        tuple(members),
        _pieces(chunks),
        np.array([sum(end - start for _, start, end in chunk) for chunk in chunks], dtype=np.float64),
    )


def _cut(
    names: Sequence[str], cut: Cut, total: int, layout: ModelLayout, sizes: Mapping[str, int]
) -> list[tuple[tuple[str, int, int], ...]]:
    if cut == "tensors":
        return [((name, 0, sizes[name]),) for name in names]
    if cut == "layers":
        by_layer: dict[str, list[tuple[str, int, int]]] = {}
        for name in names:
            by_layer.setdefault(_layer_of(name, layout), []).append((name, 0, sizes[name]))
        return [tuple(spans) for spans in by_layer.values()]
    own = sum(sizes[name] for name in names)
    count = max(1, round(cut * own / total))
    if count > own:
        raise RecipeError(f"space.chunks: {cut} are more than the models' {total} weights; write a smaller number")
    edges = [own * index // count for index in range(count + 1)]
    return _between(names, edges, sizes)


def _between(names: Sequence[str], edges: Sequence[int], sizes: Mapping[str, int]) -> list[Chunk]:
    chunks: list[list[tuple[str, int, int]]] = [[] for _ in edges[1:]]
    at = before = 0
    for name in names:
        start = 0
        while start < sizes[name]:
            end = min(sizes[name], edges[at + 1] - before)
            chunks[at].append((name, start, end))
            start = end
            if before + end == edges[at + 1]:
                at += 1
        before += sizes[name]
    return [tuple(chunk) for chunk in chunks]


def _layer_of(name: str, layout: ModelLayout) -> str:
    prefix = layout.layer_prefix.partition("{}")[0]
    if name.startswith(prefix):
        return name[len(prefix) :].partition(".")[0]
    return "embeddings" if name in layout.embeddings else "final"


def _pieces(chunks: Sequence[Chunk]) -> tuple[tuple[str, Pieces], ...]:
    tensors: dict[str, list[tuple[int, int]]] = {}
    for index, chunk in enumerate(chunks):
        for name, _, end in chunk:
            tensors.setdefault(name, []).append((end, index))
    return tuple((name, tuple(sorted(tensors[name]))) for name in sorted(tensors))
