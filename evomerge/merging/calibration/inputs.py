"""What enters the linear maps of a model: mean sizes by channel, and Gram matrices.

Letters: N input channels of a linear map, W windows of text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from evomerge.merging.calibration.layer_walk import LayerWalk
from evomerge.merging.calibration.parts import Part
from evomerge.merging.calibration.texts import without_padding
from evomerge.merging.sources.errors import CheckpointError
from search_spaces.recipes.layout import ModelLayout

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def activations(model: PreTrainedModel, layout: ModelLayout, windows: Tensor) -> Iterator[Part]:
    """Yield mean ``|x_j|``, float32[N], of the input of every linear map and norm, by its weight's name.

    `windows` are token ids, int64[W, tokens], padded at the end with -1.
    """
    yield Part(_means(model, windows, torch.abs))


def energies(model: PreTrainedModel, layout: ModelLayout, windows: Tensor) -> Iterator[Part]:
    """Yield mean ``x_j²``, float32[N]; otherwise as `activations`."""
    yield Part(_means(model, windows, torch.square))


def grams(model: PreTrainedModel, layout: ModelLayout, windows: Tensor) -> Iterator[Part]:
    """Yield XᵀX / tokens, float32[N, N], of the input of every linear map, a part for each layer.

    Maps that read the same input share one matrix. Each layer runs on all windows before the next does (`LayerWalk`):
    memory holds all windows' hidden states and one layer's matrices.

    Raises
    ------
    CheckpointError
        If a linear map is given no token, or a layer has none.
    """
    own = without_padding(windows, model.device)
    walk = LayerWalk(model, layout, own)
    tokens = sum(map(len, own))
    for layer, module in enumerate(walk.layers):
        with watched_grams(module, layout.layer_tensor(layer, "")) as sums:
            walk.advance(layer)
        if not sums.totals:
            raise CheckpointError(
                f"{type(model).__name__}: its layers have no linear maps of torch's kind, and Gram matrices are "
                "measured of these alone; use a method that looks at gradients (fisher)"
            )
        yield sums.part(tokens)


class GramSums:
    """XᵀX of the linear maps of one layer, float32[N, N], summed over the windows that it is run on.

    Attributes
    ----------
    totals
        By the weight's name, for one map of those that share an input.
    same
        The other names, with that one's.
    """

    def __init__(self) -> None:
        self.totals: dict[str, Tensor] = {}
        self.same: dict[str, str] = {}
        self._seen: list[tuple[Tensor, str]] = []  # kept alive, so that no other tensor takes their identity

    def forget_inputs(self) -> None:
        """Begin another window."""
        self._seen.clear()

    def add(self, name: str, inputs: Tensor) -> None:
        """Add one window's input of a map."""
        if name in self.same:
            return
        if name not in self.totals:
            for tensor, first in self._seen:
                if tensor is inputs:
                    self.same[name] = first
                    return
            width = inputs.shape[-1]
            self.totals[name] = torch.zeros(width, width, dtype=torch.float32, device=inputs.device)
        self._seen.append((inputs, name))
        rows = inputs.reshape(-1, inputs.shape[-1]).float()
        self.totals[name].addmm_(rows.T, rows)

    def part(self, tokens: int) -> Part:
        """Return the means over so many tokens."""
        with torch.inference_mode():  # in which the totals were made
            return Part({name: total.div_(tokens).cpu() for name, total in self.totals.items()}, dict(self.same))


@contextmanager
def watched_grams(layer: nn.Module, prefix: str) -> Iterator[GramSums]:
    """Add up the Gram matrices of a layer's linear maps while it runs inside of the context.

    Parameters
    ----------
    layer, prefix
        The layer, and what precedes its tensors' names.

    Raises
    ------
    CheckpointError
        At the end, if a linear map was given no token.
    """
    sums = GramSums()
    maps = {f"{prefix}{name}.weight": module for name, module in layer.named_modules() if isinstance(module, nn.Linear)}

    def watch(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        return lambda _, inputs: sums.add(name, inputs[0])

    handles = [module.register_forward_pre_hook(watch(name)) for name, module in maps.items()]
    handles.append(layer.register_forward_pre_hook(lambda *_: sums.forget_inputs()))
    try:
        yield sums
    finally:
        for handle in handles:
            handle.remove()
        sums.forget_inputs()
    for name in maps:
        if name not in sums.totals and name not in sums.same:
            raise CheckpointError(
                f"{name}: no token of the calibration text reaches it (an expert that is not used); write a longer "
                "text of more kinds, or use a method without Gram matrices"
            )


def _means(model: PreTrainedModel, windows: Tensor, size: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    sums: dict[str, Tensor] = {}
    own = without_padding(windows, model.device)
    with torch.inference_mode(), _watched(model, sums, size):
        for ids in own:
            model(input_ids=ids[None], use_cache=False)
    return {name: (total / sum(map(len, own))).float().cpu() for name, total in sums.items()}


@contextmanager
def _watched(model: PreTrainedModel, sums: dict[str, Tensor], size: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Add up the size of x_j, float64[N], at each call of a linear map or norm."""

    def watch(name: str, weight: Tensor) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        sums[name] = torch.zeros(weight.shape[-1], dtype=torch.float64, device=weight.device)

        def add(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            rows = inputs[0].reshape(-1, inputs[0].shape[-1])
            sums[name] += size(rows).sum(0, dtype=torch.float64)

        return add

    watched = [
        module.register_forward_pre_hook(watch(f"{name}.weight", module.weight))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) or _is_norm(module)
    ]
    try:
        yield
    finally:
        for handle in watched:
            handle.remove()


def _is_norm(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, nn.Parameter) and weight.dim() == 1
