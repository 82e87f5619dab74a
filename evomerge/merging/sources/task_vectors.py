"""Norms of task vectors, measured before a search."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from evomerge.merging.sources.source import Source

STRETCH = 1 << 22  # entries read together


def squared_norms(checkpoints: Mapping[str, Source], base: str) -> dict[str, float]:
    """Return the squared norm of each model's task vector over the whole model, by name, without the base.

    Tied tensors count once. Reads every weight once, in float32 with a float64 sum.
    """
    reference = checkpoints[base]
    norms = dict.fromkeys((name for name in checkpoints if name != base), 0.0)
    for tensor in reference.names:
        base_E = reference.tensor(tensor).reshape(-1)
        for name in norms:
            own_E = checkpoints[name].tensor(tensor).reshape(-1)
            for own, origin in zip(own_E.split(STRETCH), base_E.split(STRETCH), strict=True):
                norms[name] += float(torch.sub(own.float(), origin.float()).double().square_().sum())
    return norms
