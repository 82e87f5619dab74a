"""How much memory the activations of a forward pass with gradients take, measured on short inputs.

Autograd's saved tensors are counted layer by layer on one row of three widths. Their size is a polynomial of second
degree in the width (attention may save its weights) times the rows, so three measurements give that of every batch.

Legend: S tokens of a row, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from evomerge.merging.calibration.layer_walk import layers_of
from search_spaces.recipes.layout import ModelLayout

if TYPE_CHECKING:
    from transformers import PreTrainedModel


WIDTHS = (4, 8, 16)
OF_LAYER = 3
"""Copies of what one layer saves while it is propagated backward: gradients and temporaries."""
OF_LOGITS = 5
"""Float32 copies of a scored token's predictions: logits, their log-softmax, the gradients of both, and a temporary."""


@dataclass(frozen=True)
class Activations:
    """What a model saves for a backward pass.

    Attributes
    ----------
    layers
        Polynomial coefficients, highest first, of the bytes that all layers save for a row of a width.
    outside
        The same for what is outside of the layers, without logits.
    count
        Number of layers.
    token_bytes
        Bytes of a layer's input per token.
    vocabulary
        V.
    logit_bytes
        Bytes of one logit.
    """

    layers: tuple[float, ...]
    outside: tuple[float, ...]
    count: int
    token_bytes: int
    vocabulary: int
    logit_bytes: int

    def bytes(self, *, rows: int, width: int, kept: int, scored: int, recomputed: bool) -> int:
        """Return the peak of a batch's forward and backward pass.

        Parameters
        ----------
        rows, width, kept, scored
            Rows, their tokens, how many of these have logits, and scored tokens of all rows together.
        recomputed
            Whether layers keep only their inputs (see `checkpointing`).
        """
        all_layers = rows * float(np.polyval(self.layers, width))
        one = all_layers / self.count
        inputs = self.count * rows * width * self.token_bytes
        logits = rows * kept * self.vocabulary * 2 * self.logit_bytes + scored * self.vocabulary * 4 * OF_LOGITS
        saved = inputs + one if recomputed else all_layers
        return int(saved + OF_LAYER * one + rows * max(0.0, float(np.polyval(self.outside, width))) + logits)


def measure(module: PreTrainedModel, layout: ModelLayout) -> Activations:
    """Measure a model in evaluation mode; its parameters are left without gradients."""
    inside, outside = zip(*(_saved(module, layout, width) for width in WIDTHS), strict=True)
    embeddings = module.get_input_embeddings().weight
    return Activations(
        tuple(np.polyfit(WIDTHS, inside, 2).tolist()),
        tuple(np.polyfit(WIDTHS, outside, 2).tolist()),
        len(layers_of(module, layout)),
        embeddings.shape[1] * embeddings.itemsize,
        int(module.config.get_text_config().vocab_size),
        embeddings.itemsize,
    )


def _saved(module: PreTrainedModel, layout: ModelLayout, width: int) -> tuple[int, int]:
    """Return the bytes saved inside and outside of the layers for one row."""
    own = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    saved: dict[int, tuple[Tensor, bool]] = {}  # tensors are kept, so that no address is used twice
    depth = [0]

    def keep(values: Tensor) -> Tensor:
        if values.untyped_storage().data_ptr() not in own:
            saved.setdefault(values.untyped_storage().data_ptr(), (values, depth[0] > 0))
        return values

    def step(change: int, *_: Any) -> None:
        depth[0] += change

    handles = [layer.register_forward_pre_hook(partial(step, 1)) for layer in layers_of(module, layout)]
    handles += [layer.register_forward_hook(partial(step, -1)) for layer in layers_of(module, layout)]
    give_back: Callable[[Tensor], Tensor] = lambda values: values  # noqa: E731  # nothing is propagated
    try:
        module.requires_grad_(True)
        with torch.inference_mode(False), torch.enable_grad(), saved_tensors_hooks(keep, give_back):
            ids = torch.zeros(1, width, dtype=torch.int64, device=module.device)
            module(input_ids=ids, use_cache=False, logits_to_keep=1)
    finally:
        module.requires_grad_(False)
        for handle in handles:
            handle.remove()
    sizes = [(values.untyped_storage().nbytes(), inside) for values, inside in saved.values()]
    return sum(size for size, inside in sizes if inside), sum(size for size, inside in sizes if not inside)
