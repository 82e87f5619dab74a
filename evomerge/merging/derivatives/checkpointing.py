"""Gradient checkpointing: layers are computed again in the backward pass, and keep their inputs only meanwhile.

transformers' own needs training mode, in which dropout would change the model; and not all architectures have it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from evomerge.merging.calibration.layer_walk import layers_of
from search_spaces.recipes.layout import ModelLayout


@contextmanager
def recomputed(module: nn.Module, layout: ModelLayout) -> Iterator[None]:
    """Compute each layer again in the backward passes inside of the context; losses and gradients are the same."""
    layers = layers_of(module, layout)
    try:
        for layer in layers:
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)
