"""A model's layers one after the other, each on all windows, so that what is measured of a layer is held for it alone.

One pass through the model with its layers passed over gives what enters the first layer, and the further arguments of
each (masks, positions), which depend on a window's length only.

Letters: S tokens of a window, D width of the hidden states, W windows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from evomerge.merging.sources.errors import CheckpointError
from search_spaces.recipes.layout import ModelLayout

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PROBE = 8
"""Tokens of the window on which the walk is compared with the model."""


def layers_of(module: nn.Module, layout: ModelLayout) -> list[nn.Module]:
    """Return the modules of a model's layers, in order; a model with other layers in place of the layout's as well."""
    path, _, _ = layout.layer_tensor(0, "").rstrip(".").rpartition(".")
    layers = module.get_submodule(path)
    assert isinstance(layers, nn.ModuleList)
    return list(layers)


class LayerWalk:
    """The hidden states of all windows before a layer, and how to compute those after it.

    Parameters
    ----------
    model, layout
        The model, in evaluation mode.
    windows
        Token ids of each window, int64[S].

    Attributes
    ----------
    layers
        The layers, in order.
    hidden
        The hidden states [1, S, D] of each window, before the layer that comes next.

    Raises
    ------
    CheckpointError
        If the model's layers pass on more than hidden states.
    """

    def __init__(self, model: PreTrainedModel, layout: ModelLayout, windows: Sequence[Tensor]) -> None:
        self.layers = layers_of(model, layout)
        self.hidden: list[Tensor] = []
        self._arguments: dict[tuple[int, int], tuple[tuple[Any, ...], dict[str, Any]]] = {}
        self._tuple: tuple[Any, ...] | None = None
        with torch.inference_mode():
            self._check(model, windows[0][:PROBE])
            self.hidden = [self._enter(model, window) for window in windows]

    def run(self, layer: int, module: nn.Module, hidden: Tensor) -> Tensor:
        """Return what a module in the place of a layer makes of one window's hidden states, [1, S, D]."""
        further, named = self._arguments[layer, hidden.shape[1]]
        out = module(hidden, *further, **named)
        result: Tensor = out[0] if isinstance(out, tuple) else out
        return result

    def advance(self, layer: int) -> None:
        """Run one layer on all windows; their hidden states are then those before the next layer."""
        with torch.inference_mode():
            for at, hidden in enumerate(self.hidden):
                self.hidden[at] = self.run(layer, self.layers[layer], hidden)

    def _enter(self, model: PreTrainedModel, window: Tensor) -> Tensor:
        """Return what enters the first layer, and keep each layer's further arguments."""
        entered: list[Tensor] = []

        def passed_over(layer: int) -> Callable[..., Any]:
            def forward(*inputs: Any, **named: Any) -> Any:
                hidden = inputs[0] if inputs else named.pop("hidden_states")
                if layer == 0:
                    entered.append(hidden)
                self._arguments.setdefault((layer, hidden.shape[1]), (inputs[1:], named))
                if layer == len(self.layers) - 1:
                    raise _AllSeen
                return hidden if self._tuple is None else (hidden, *self._tuple)

            return forward

        with _replaced(self.layers, passed_over), suppress(_AllSeen):
            model(input_ids=window[None], use_cache=False)
        return entered[0]

    def _check(self, model: PreTrainedModel, window: Tensor) -> None:
        """Compare the walk with the model on a short window; find out in which form layers return."""
        expected: list[Any] = []
        handle = self.layers[-1].register_forward_hook(lambda _, __, out: expected.append(out))
        try:
            model(input_ids=window[None], use_cache=False)
        finally:
            handle.remove()
        (out,) = expected
        if isinstance(out, tuple):
            self._tuple, out = out[1:], out[0]
        self.hidden = [self._enter(model, window)]
        for layer in range(len(self.layers)):
            self.advance(layer)
        (found,) = self.hidden
        scale = float(out.float().abs().max())
        if not torch.allclose(found.float(), out.float(), rtol=1e-2, atol=1e-2 * scale):
            raise CheckpointError(
                f"{type(model).__name__}: its layers pass on more than hidden states, so they cannot be measured one "
                "by one; use a method that looks at gradients (fisher)"
            )


class _AllSeen(Exception):
    """Ends a forward pass whose further results are not needed."""


@contextmanager
def _replaced(layers: Sequence[nn.Module], forward: Callable[[int], Callable[..., Any]]) -> Iterator[None]:
    try:
        for at, layer in enumerate(layers):
            layer.forward = forward(at)
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)
