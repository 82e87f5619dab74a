"""Ranks of entries, from the order that a sort gives."""

from __future__ import annotations

import torch
from torch import Tensor


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
    """Return int32[n]: how many entries come before each when the largest is first.

    Ties fall as in mergekit's `ties`, which makes this very call: the default (unstable) argsort.
    """
    order = torch.argsort(values, descending=True)
    return at_sorted_places(order, torch.arange(order.numel(), dtype=torch.int32, device=order.device))


def reversed_ascending_ranks(values: Tensor) -> Tensor:
    """Return what `descending_ranks` does, with ties as in mergekit's `breadcrumbs`, which sorts upwards."""
    order = torch.sort(values, descending=False).indices
    return at_sorted_places(order, torch.arange(order.numel() - 1, -1, -1, dtype=torch.int32, device=order.device))


def shared_ranks(values: Tensor) -> Tensor:
    """Return float32[n]: the part of the entries that are smaller than each, in [0, 1); equal entries share it."""
    return torch.searchsorted(values.sort().values, values.contiguous()) / values.numel()


def largest_first(values: Tensor) -> Tensor:
    """Return int32[n]: how many entries come before each when the largest is first; of equal ones, the earlier."""
    order = torch.argsort(values, descending=True, stable=True)
    return at_sorted_places(order, torch.arange(order.numel(), dtype=torch.int32, device=order.device))
