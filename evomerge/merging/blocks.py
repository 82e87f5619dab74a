"""Blocks: the stretches in which tensors pass through the cache, and the float32 scratch they are merged in.

Legend: T source models, E entries of one block.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

# Entries per block. On a CPU the float32 scratch of a few models (128 KiB each) stays in the second-level cache,
# and torch runs operations of this size in the calling thread alone. That is meant: a merge is thousands of short
# operations, and sharing each with a second thread made it about ten times slower (measured) while other
# processes wanted the cores; a forward pass costs far more than a merge. A GPU wants long kernels.
CPU_BLOCK = 1 << 15
GPU_BLOCK = 1 << 24


class Scratch:
    """Float32 buffers shared by all blocks: each allocated once, at the size of a block."""

    def __init__(self, device: torch.device, block: int | None = None) -> None:
        self.device = device
        self.block = block or (CPU_BLOCK if device.type == "cpu" else GPU_BLOCK)
        self._buffers: dict[tuple[str, torch.dtype], Tensor] = {}
        self._views: dict[tuple[str, int, torch.dtype], Tensor] = {}
        self._rows: dict[tuple[int, int], tuple[Tensor, ...]] = {}

    def vector(self, name: str, entries: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the buffer called `name` as [entries]; its contents are whatever was written last."""
        key = (name, entries, dtype)
        view = self._views.get(key)
        if view is None:
            view = self._views[key] = self._buffer(name, dtype)[:entries]
        return view

    def rows(self, count: int, entries: int) -> tuple[Tensor, ...]:
        """Return `count` buffers of [entries], one per model."""
        key = (count, entries)
        rows = self._rows.get(key)
        if rows is None:
            rows = self._rows[key] = tuple(self.vector(f"model {index}", entries) for index in range(count))
        return rows

    def _buffer(self, name: str, dtype: torch.dtype) -> Tensor:
        buffer = self._buffers.get((name, dtype))
        if buffer is None:
            buffer = self._buffers[name, dtype] = torch.empty(self.block, dtype=dtype, device=self.device)
        return buffer


class Block:
    """One stretch of one output tensor as a merge method sees it.

    Attributes
    ----------
    out
        float32[E], to be filled.
    size
        Entries of the whole tensor that the block is cut from.
    prepared
        What the method prepared for each model, cut to the block.
    """

    __slots__ = ("_base", "_models", "_scratch", "entries", "out", "prepared", "size")

    def __init__(
        self,
        *,
        out: Tensor,
        base: Tensor | None,
        models: Sequence[Tensor],
        prepared: Sequence[Any],
        size: int,
        scratch: Scratch,
    ) -> None:
        self.out = out
        self.size = size
        self.prepared = prepared
        self.entries = out.numel()
        self._base = base
        self._models = models
        self._scratch = scratch

    def base(self) -> Tensor:
        """Return the base's values as float32[E], in scratch."""
        assert self._base is not None, "a method that asks for the base says base='required'"
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

    def copy_model(self, index: int) -> None:
        """Copy one model's values to `out`, without a detour through scratch."""
        self.out.copy_(self._models[index])

    def spare(self, name: str) -> Tensor:
        """Return a further float32[E] of scratch; equal names share it."""
        return self._scratch.vector(name, self.entries)
