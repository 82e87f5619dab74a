"""Distances of tensors in units in the last place (ulp): counts of representable numbers between their entries."""

from __future__ import annotations

import torch
from torch import Tensor

BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def ulps_apart(a: Tensor, b: Tensor) -> int:
    """Return the largest distance of two entries, each counted at its own size; 0: equal to the bit, but for -0."""
    assert a.dtype == b.dtype
    return int((_position(a) - _position(b)).abs().max())


def _position(values: Tensor) -> Tensor:
    bits = values.contiguous().view(BITS[values.element_size()])
    return torch.where(bits < 0, -(bits & torch.iinfo(bits.dtype).max), bits).long()
