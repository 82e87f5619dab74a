"""Blocks: the spans of tensors that are merged at a time, and the float32 buffers they are merged in.

Legend: T source models, E entries of one block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Entries per block. On a CPU the float32 scratch of a few models (128 KiB each) stays in the second-level cache,
# and torch runs operations of this size in the calling thread alone. That is intended: a merge is thousands of short
# operations, and splitting each with a second thread made it about ten times slower (measured) while other
# processes used the cores; a forward pass costs far more than a merge. A GPU needs long kernels.
CPU_BLOCK = 1 << 15
GPU_BLOCK = 1 << 24


@dataclass(frozen=True)
class TensorInfo:
    """Shape and role of an output tensor.

    Attributes
    ----------
    shape
        The tensor's shape; blocks are spans of it, flattened.
    by_token
        Whether it has a row per token or position: embeddings, the output projection.
    """

    shape: tuple[int, ...]
    by_token: bool = False

    @property
    def is_matrix(self) -> bool:
        """Whether it is a linear map, [M, N] (out, in): what spectral methods decompose."""
        return len(self.shape) == 2 and not self.by_token

    @property
    def row(self) -> int:
        """Entries of a row: the last dimension, the whole of a vector."""
        return self.shape[-1]


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute each operation in the calling thread alone.

    Threads that share an operation wait for each other at its end. For a short one this takes longer than the work,
    and thousands of times longer while other processes use the cores.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Scratch:
    """Float32 buffers shared by all blocks: each allocated once, at the size of a block or of the largest tensor."""

    def __init__(self, device: torch.device, block: int | None = None) -> None:
        self.device = device
        self.block = block or (CPU_BLOCK if device.type == "cpu" else GPU_BLOCK)
        self._buffers: dict[tuple[str, torch.dtype], Tensor] = {}
        self._views: dict[tuple[str, int, torch.dtype], Tensor] = {}
        self._rows: dict[tuple[int, int], tuple[Tensor, ...]] = {}
        self._elsewhere: dict[torch.device, Scratch] = {}

    def on(self, device: torch.device) -> Scratch:
        """Return buffers on a device: these ones, or others of the same size that are kept beside them."""
        if device.type == self.device.type and self.device.index in (None, device.index):
            return self
        found = self._elsewhere.get(device)
        if found is None:
            found = self._elsewhere[device] = Scratch(device, self.block)
        return found

    def vector(self, name: str, entries: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the buffer called `name` as [entries]; it holds what was last written to it."""
        key = (name, entries, dtype)
        view = self._views.get(key)
        if view is None:
            view = self._views[key] = self._buffer(name, dtype, entries)[:entries]
        return view

    def rows(self, count: int, entries: int) -> tuple[Tensor, ...]:
        """Return `count` buffers of [entries], one per model."""
        key = (count, entries)
        rows = self._rows.get(key)
        if rows is None:
            rows = self._rows[key] = tuple(self.vector(f"model {index}", entries) for index in range(count))
        return rows

    def _buffer(self, name: str, dtype: torch.dtype, entries: int) -> Tensor:
        buffer = self._buffers.get((name, dtype))
        if buffer is None or buffer.numel() < entries:
            self._forget(name, dtype)
            buffer = torch.empty(max(entries, self.block), dtype=dtype, device=self.device)
            self._buffers[name, dtype] = buffer
        return buffer

    def _forget(self, name: str, dtype: torch.dtype) -> None:
        """Drop a buffer that is too small, and its views, so that its memory is freed."""
        self._buffers.pop((name, dtype), None)
        self._views = {key: view for key, view in self._views.items() if (key[0], key[2]) != (name, dtype)}
        self._rows.clear()


class Block:
    """A span of one output tensor, and what a merge method needs to fill it.

    Attributes
    ----------
    out
        float32[E], to be filled.
    start
        Index of the block's first entry in the flattened tensor.
    size
        Entries of the whole tensor.
    info
        Shape and role of that tensor.
    prepared
        What the method prepared for each model, cut to the block.
    shared
        What it prepared for all models together, cut to the block; None if it prepares nothing of that kind.
    """

    __slots__ = ("_base", "_models", "_scratch", "entries", "info", "out", "prepared", "shared", "size", "start")

    def __init__(
        self,
        *,
        out: Tensor,
        base: Tensor | None,
        models: Sequence[Tensor],
        prepared: Sequence[Any],
        shared: Any,
        start: int,
        size: int,
        info: TensorInfo,
        scratch: Scratch,
    ) -> None:
        self.out = out
        self.start = start
        self.size = size
        self.info = info
        self.prepared = prepared
        self.shared = shared
        self.entries = out.numel()
        self._base = base
        self._models = models
        self._scratch = scratch

    @property
    def is_whole_matrix(self) -> bool:
        """Whether the block is a linear map in full; of other tensors, a method with matrix scope gets blocks."""
        return self.info.is_matrix and self.entries == self.size

    @property
    def has_base(self) -> bool:
        """Whether the merge has a base, for methods that work without one."""
        return self._base is not None

    def base(self) -> Tensor:
        """Return the base's values as float32[E], in scratch."""
        assert self._base is not None, "the method uses a base: declare base='required'"
        return self._scratch.vector("base", self.entries).copy_(self._base)

    def models(self) -> tuple[Tensor, ...]:
        """Return each model's values as float32[E], in scratch of their own: free to be overwritten."""
        rows = self._scratch.rows(len(self._models), self.entries)
        for row_E, values_E in zip(rows, self._models, strict=True):
            row_E.copy_(values_E)
        return rows

    def deltas(self) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the base, and each model minus the base, as float32[E] in scratch."""
        base_E, rows = self.base(), self.models()
        for row_E in rows:
            row_E.sub_(base_E)
        return base_E, rows

    def spare(self, name: str) -> Tensor:
        """Return a further float32[E] of scratch; equal names share it."""
        return self._scratch.vector(name, self.entries)

    def by_row(self, values_M: Tensor) -> Tensor:
        """Return [E]: for each entry of the block, its row's value."""
        row = self.info.row
        first, last = self.start // row, (self.start + self.entries - 1) // row
        spread = values_M[first : last + 1].repeat_interleave(row)
        return spread[self.start - first * row :][: self.entries]

    def by_column(self, values_N: Tensor) -> Tensor:
        """Return [E]: for each entry of the block, its column's value."""
        row = self.info.row
        offset = self.start % row
        repeats = -(-(offset + self.entries) // row)
        return values_N.repeat(repeats)[offset:][: self.entries]
