"""Gradients of a text's likelihood by a model's weights, window by window.

Memory holds one tensor's gradient at a time, beside what is summed and one window's activations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn

from evomerge.merging.calibration.layer_walk import layers_of
from evomerge.merging.calibration.parts import WHOLE, Part
from evomerge.merging.calibration.texts import without_padding
from search_spaces.recipes.layout import ModelLayout

if TYPE_CHECKING:
    from transformers import PreTrainedModel

VOTES = 15
"""Windows whose gradients are compared one by one."""
PARTS = 8
"""Parts of a model whose gradients are kept for all such windows at a time."""
OUTPUT_BYTES = 1 << 30
"""Bytes of the matrices of outputs that are added up at a time."""

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


def sensitivity(model: PreTrainedModel, layout: ModelLayout, windows: Tensor) -> Iterator[Part]:
    """Yield |θ ⊙ g|, bfloat16, by the weight's name: g is the gradient of a window's mean loss; a mean over windows."""
    sums = _zeros(model)
    count = each_gradient(
        model, windows, lambda name, values, gradient: sums[name].add_(gradient.mul_(values).abs_()), mean=True
    )
    yield Part({name: (total / max(count, 1)).bfloat16().cpu() for name, total in sums.items()})


def importance(model: PreTrainedModel, layout: ModelLayout, windows: Tensor) -> Iterator[Part]:
    """Yield (θ ⊙ g)², bfloat16; otherwise as `sensitivity`."""
    sums = _zeros(model)
    count = each_gradient(
        model, windows, lambda name, values, gradient: sums[name].add_(gradient.mul_(values).square_()), mean=True
    )
    yield Part({name: (total / max(count, 1)).bfloat16().cpu() for name, total in sums.items()})


def layer_sensitivity(model: PreTrainedModel, layout: ModelLayout, windows: Tensor) -> Iterator[Part]:
    """Yield Σ |θ ⊙ g| over each tensor's layer, divided by the norm of all layers' sums, float32[1].

    Embeddings are a layer, and so is what follows the last one. A mean over windows, as for `sensitivity`.
    """
    sums: dict[str, float] = {}

    def add(name: str, values: Tensor, gradient: Tensor) -> None:
        sums[name] = sums.get(name, 0.0) + float(gradient.mul_(values).abs_().sum(dtype=torch.float64))

    each_gradient(model, windows, add, mean=True)
    layers = [layout.embeddings, layout.final]
    layers += [tuple(layout.layer_tensor(at, name) for name in names) for at, names in enumerate(layout.layers)]
    totals = [sum(sums.get(name, 0.0) for name in names) for names in layers]
    norm = math.sqrt(sum(total**2 for total in totals)) or 1.0
    yield Part(
        {name: torch.tensor([total / norm]) for total, names in zip(totals, layers, strict=True) for name in names}
    )


def push(model: PreTrainedModel, layout: ModelLayout, windows: Tensor) -> Iterator[Part]:
    """Yield the upper median of θ ⊙ g over the first `VOTES` windows, bfloat16, a part for an eighth of the weights.

    Of K windows it is the (⌊K / 2⌋ + 1)-th smallest value: it is below a bound where more than half of all values are.
    """
    sizes = {name: values.numel() for name, values in model.named_parameters()}
    for names in groups(sizes, sum(sizes.values()) // PARTS):
        votes: dict[str, list[Tensor]] = {name: [] for name in names}

        def keep(name: str, values: Tensor, gradient: Tensor, votes: dict[str, list[Tensor]] = votes) -> None:
            votes[name].append(gradient.mul_(values).bfloat16())

        each_gradient(model, windows[:VOTES], keep, mean=True, names=names)
        yield Part({name: _upper_median(own).cpu() for name, own in votes.items()})


def losses(model: PreTrainedModel, layout: ModelLayout, windows: Tensor) -> Iterator[Part]:
    """Yield the mean negative log-likelihood of a token, float32[1], for the whole model."""
    total, count = 0.0, 0
    with torch.inference_mode():
        for ids in without_padding(windows, model.device):
            if len(ids) > 1:
                total, count = total + float(loss_of(model, ids)), count + len(ids) - 1
    yield Part({WHOLE: torch.tensor([total / max(count, 1)])})


def output_grams(model: PreTrainedModel, layout: ModelLayout, windows: Tensor) -> Iterator[Part]:
    """Yield GᵀG / tokens, float32[M, M], by the linear map's weight: G is the log-likelihood's gradient by its outputs.

    Layers are measured in groups whose matrices fit into `OUTPUT_BYTES`, each with a pass of its own.
    """
    own = without_padding(windows, model.device)
    layers = layers_of(model, layout)
    maps = {
        layout.layer_tensor(at, f"{name}.weight"): module
        for at, layer in enumerate(layers)
        for name, module in layer.named_modules()
        if isinstance(module, nn.Linear)
    }
    tokens = sum(map(len, own))
    for names in groups({name: 4 * module.out_features**2 for name, module in maps.items()}, OUTPUT_BYTES):
        sums: dict[str, Tensor] = {}
        handles = [maps[name].register_forward_hook(_watch_outputs(name, sums)) for name in names]
        try:
            with torch.inference_mode(False), torch.enable_grad(), _inputs_with_gradients(model):
                for ids in own:
                    if len(ids) > 1:
                        loss_of(model, ids).backward()
        finally:
            for handle in handles:
                handle.remove()
        yield Part({name: (total / tokens).cpu() for name, total in sums.items()})


def groups(sizes: Mapping[str, int], limit: int) -> Iterator[tuple[str, ...]]:
    """Yield names in order, in groups of at most `limit` together; a larger one is a group of its own."""
    group: list[str] = []
    for name, size in sizes.items():
        if group and sum(sizes[each] for each in group) + size > limit:
            yield tuple(group)
            group = []
        group.append(name)
    yield tuple(group)


def each_gradient(
    model: PreTrainedModel, windows: Tensor, take: Take, *, mean: bool = False, names: Collection[str] | None = None
) -> int:
    """Give parameters' gradients, float32, of each window's negative log-likelihood; return how many windows.

    Windows of a single token predict nothing and are passed over.

    Parameters
    ----------
    model, windows
        As for `fisher`.
    take
        Called for every parameter and window; it may overwrite the gradient.
    mean
        Whether the loss is the mean over a window's tokens, and not the sum.
    names
        Which parameters; None: all.
    """
    count = 0
    with torch.inference_mode(False), torch.enable_grad(), _taken(model, take, names):
        for ids in without_padding(windows, model.device):
            if len(ids) < 2:
                continue
            loss = loss_of(model, ids)
            (loss / (len(ids) - 1) if mean else loss).backward()
            count += 1
    return count


def loss_of(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Return a window's summed negative log-likelihood."""
    logits = model(input_ids=ids[None], use_cache=False).logits[0, :-1]
    return nn.functional.cross_entropy(logits.float(), ids[1:], reduction="sum")


def _upper_median(values: Sequence[Tensor]) -> Tensor:
    stacked = torch.stack(list(values)).float()
    return stacked.kthvalue(len(values) // 2 + 1, dim=0).values.bfloat16()


def _watch_outputs(name: str, sums: dict[str, Tensor]) -> Callable[[nn.Module, Any, Tensor], None]:
    """Add up GᵀG of a linear map's outputs when their gradient is there."""

    def add(gradient: Tensor) -> None:
        rows = gradient.detach().reshape(-1, gradient.shape[-1]).float()
        if name not in sums:
            sums[name] = torch.zeros(rows.shape[1], rows.shape[1], device=rows.device)
        sums[name].addmm_(rows.T, rows)

    return lambda _, __, output: output.register_hook(add) and None


@contextmanager
def _inputs_with_gradients(model: PreTrainedModel) -> Iterator[None]:
    """Let gradients reach all outputs, without any for the weights: embeddings count as inputs."""
    handle = model.get_input_embeddings().register_forward_hook(lambda _, __, out: out.detach().requires_grad_(True))
    try:
        yield
    finally:
        handle.remove()


def _zeros(model: PreTrainedModel) -> dict[str, Tensor]:
    with torch.inference_mode(False):
        return {name: torch.zeros_like(values, dtype=torch.float32) for name, values in model.named_parameters()}


@contextmanager
def _taken(model: PreTrainedModel, take: Take, names: Collection[str] | None) -> Iterator[None]:
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
            if names is not None and name not in names:
                continue
            parameter.requires_grad_(True)
            handles.append(parameter.register_post_accumulate_grad_hook(hook(name)))
        yield
    finally:
        for handle in handles:
            handle.remove()
        for parameter in model.parameters():
            parameter.requires_grad_(False)
            parameter.grad = None
