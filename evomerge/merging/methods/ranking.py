"""Ranks of entries, from the order that a sort gives.

Where equal entries come in the order of torch's unstable sort, as with mergekit, large tensors are ranked by
`introsort`, which needs half of the time (with the extra `fast`, where torch sorts by the library that it follows).
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

LARGE = 1 << 18
"""Entries of a tensor from which on importing compiled code takes less time than it saves."""


def at_sorted_places(order: Tensor, values: Tensor) -> Tensor:
    """Return the tensor whose entry ``order[..., k]`` is ``values[k]``: the ranks, for values that count up.

    Parameters
    ----------
    order
        int64[..., n], as `torch.argsort` returns it for the last dimension.
    values
        [n], in any dtype.
    """
    result = torch.empty(order.shape, dtype=values.dtype, device=order.device)
    return result.scatter_(-1, order, values.expand(order.shape))


def descending_ranks(values: Tensor) -> Tensor:
    """Return int32[n]: how many magnitudes come before each when the largest is first.

    Ties fall as in mergekit's `ties`, which makes this very call: the default (unstable) argsort.
    """
    places = torch.arange(values.numel(), dtype=torch.int32, device=values.device)
    found = _compiled(values, places, descending=True)
    return at_sorted_places(torch.argsort(values, descending=True), places) if found is None else found


def reversed_ascending_ranks(values: Tensor) -> Tensor:
    """Return what `descending_ranks` does, with ties as in mergekit's `breadcrumbs`, which sorts upwards."""
    return ascending_places(values, torch.arange(values.numel() - 1, -1, -1, dtype=torch.int32, device=values.device))


def ascending_places(values: Tensor, places: Tensor) -> Tensor:
    """Return ``places[k]``, [..., n], for the k-th magnitude of the last dimension when the smallest is first.

    Ties fall as in mergekit's `breadcrumbs` and `della`: the default (unstable) sort.
    """
    found = _compiled(values, places, descending=False)
    return at_sorted_places(torch.argsort(values), places) if found is None else found


def largest(sizes: Tensor, count: int) -> Tensor:
    """Return bool[n]: the first `count` entries by `descending_ranks`.

    Parameters
    ----------
    sizes
        [n], none below 0.
    count
        How many, at most n.
    """
    chosen = _compiled_between(sizes, 0, count, descending=True)
    if chosen is not None:
        return chosen
    return _at(torch.argsort(sizes, descending=True), 0, count)


def between(sizes: Tensor, first: int, end: int) -> Tensor:
    """Return bool[n]: the entries with the ranks first … end−1 of `reversed_ascending_ranks`."""
    n = len(sizes)
    chosen = _compiled_between(sizes, n - end, n - first, descending=False)
    if chosen is not None:
        return chosen
    return _at(torch.argsort(sizes), n - end, n - first)


def shared_ranks(values: Tensor) -> Tensor:
    """Return float32[n]: the part of the entries that are smaller than each, in [0, 1); equal entries share it."""
    return torch.searchsorted(values.sort().values, values.contiguous()) / values.numel()


def largest_first(values: Tensor) -> Tensor:
    """Return int32[n]: how many entries come before each when the largest is first; of equal ones, the earlier."""
    order = torch.argsort(values, descending=True, stable=True)
    return at_sorted_places(order, torch.arange(order.numel(), dtype=torch.int32, device=order.device))


def _at(order: Tensor, first: int, end: int) -> Tensor:
    chosen = torch.zeros(order.shape, dtype=torch.bool, device=order.device)
    return chosen.index_fill_(0, order[first:end], True)


def _follows_torch(magnitudes: Tensor) -> bool:
    """Return whether compiled code can sort these as torch does, and faster."""
    usable = magnitudes.device.type == "cpu" and magnitudes.dtype == torch.float32 and magnitudes.is_contiguous()
    return usable and magnitudes.numel() >= LARGE and find_spec("numba") is not None and _torch_sorts_alike()


def _compiled(magnitudes: Tensor, places: Tensor, *, descending: bool) -> Tensor | None:
    """Return ``places[k]`` for the k-th magnitude of its row; None where torch has to sort."""
    return _by_introsort(magnitudes, places, descending=descending) if _follows_torch(magnitudes) else None


def _compiled_between(magnitudes: Tensor, first: int, end: int, *, descending: bool) -> Tensor | None:
    """Return bool[n]: which magnitudes are from the `first` to before the `end`-th; None where torch has to sort."""
    if not _follows_torch(magnitudes):
        return None
    from evomerge.merging.methods.kernels import introsort

    chosen = torch.zeros(magnitudes.shape, dtype=torch.bool)
    keys, flip = _keys(magnitudes, descending=descending)
    return chosen if introsort.between(keys, flip, first, end, chosen.view(torch.uint8).numpy()) else None


def _by_introsort(magnitudes: Tensor, places: Tensor, *, descending: bool) -> Tensor | None:
    from evomerge.merging.methods.kernels import introsort

    out = torch.empty(magnitudes.shape, dtype=places.dtype)
    keys, flip = _keys(magnitudes, descending=descending)
    done = introsort.ranks(keys, flip, magnitudes.shape[-1], places.numpy(), out.view(-1).numpy())
    return out if done else None


def _keys(magnitudes: Tensor, *, descending: bool) -> tuple[Any, Any]:
    """Return the bits, which grow with magnitudes, since none is negative, and those to flip for another order."""
    import numpy as np

    return magnitudes.reshape(-1).numpy().view(np.uint32), np.uint32(0xFFFFFFFF if descending else 0)


@cache
def _torch_sorts_alike() -> bool:
    """Tell whether torch's sort puts equal entries in the order of the GNU library; others may not."""
    sample = torch.arange(5000).mul_(7919).remainder_(613).float()
    places = torch.arange(len(sample), dtype=torch.int32)
    for descending in (True, False):
        found = _by_introsort(sample, places, descending=descending)
        order = torch.argsort(sample, descending=descending)
        if found is None or not torch.equal(found, at_sorted_places(order, places)):
            return False
    return True
