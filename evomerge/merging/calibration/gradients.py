"""Gradients of a text's likelihood by a model's weights, window by window.

Memory holds one tensor's gradient at a time, beside what is summed and one window's activations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor, nn

from evomerge.merging.calibration.parts import Part
from evomerge.merging.calibration.texts import without_padding
from search_spaces.recipes.layout import ModelLayout

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Take: TypeAlias = Callable[[str, Tensor, Tensor], object]
"""Takes a parameter's name, its values and the gradient of one window's negative log-likelihood."""


def fisher(model: PreTrainedModel, layout: ModelLayout, windows: Tensor) -> Iterator[Part]:
    """Yield √n F / ‖F‖, bfloat16, by the weight's name: F is the mean squared gradient of a window's log-likelihood.

    The diagonal of the empirical Fisher information, over the n weights of the model. `windows` are token ids,
    int64[W, tokens], padded at the end with -1.
    """
    sums = _zeros(model)
    each_gradient(model, windows, lambda name, _, gradient: sums[name].addcmul_(gradient, gradient))
    norm = math.sqrt(sum(float(total.double().square().sum()) for total in sums.values()))
    scale = math.sqrt(sum(total.numel() for total in sums.values())) / norm if norm > 0 else 0.0
    yield Part({name: (total * scale).bfloat16().cpu() for name, total in sums.items()})


def each_gradient(model: PreTrainedModel, windows: Tensor, take: Take) -> int:
    """Give every parameter's gradient, float32, of each window's summed negative log-likelihood; return the windows.

    Windows of a single token predict nothing and are passed over.
    """
    count = 0
    with torch.inference_mode(False), torch.enable_grad(), _taken(model, take):
        for ids in without_padding(windows, model.device):
            if len(ids) < 2:
                continue
            loss_of(model, ids).backward()
            count += 1
    return count


def loss_of(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Return a window's summed negative log-likelihood."""
    logits = model(input_ids=ids[None], use_cache=False).logits[0, :-1]
    return nn.functional.cross_entropy(logits.float(), ids[1:], reduction="sum")


def _zeros(model: PreTrainedModel) -> dict[str, Tensor]:
    with torch.inference_mode(False):
        return {name: torch.zeros_like(values, dtype=torch.float32) for name, values in model.named_parameters()}


@contextmanager
def _taken(model: PreTrainedModel, take: Take) -> Iterator[None]:
    """Give each parameter's gradient as soon as it is complete; then free it."""

    def hook(name: str) -> Callable[[Tensor], None]:
        def call(parameter: Tensor) -> None:
            assert parameter.grad is not None, "the hook runs when the gradient is there"
            take(name, parameter.detach(), parameter.grad.float())
            parameter.grad = None

        return call

    handles = []
    try:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(True)
            handles.append(parameter.register_post_accumulate_grad_hook(hook(name)))
        yield
    finally:
        for handle in handles:
            handle.remove()
        for parameter in model.parameters():
            parameter.requires_grad_(False)
            parameter.grad = None
