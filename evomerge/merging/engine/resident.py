"""The resident model: one transformers module whose parameters every candidate overwrites in place."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from evomerge.files.pages import advise
from evomerge.merging.engine.core_space import CoreTensorMerge
from evomerge.merging.engine.tensor_merge import StepwiseMerge, TensorMerge
from evomerge.merging.sources.architecture import empty_module, quiet
from evomerge.merging.sources.source import Source

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel

LARGE_PAGE = 2 << 20

Quantize: TypeAlias = "Callable[[nn.Module], Mapping[str, Callable[[Tensor], None]]]"
"""Replaces layers of an empty model by quantised ones; returns what takes each of their weights [M, N], by its name."""


@dataclass
class Resident:
    """A module, its parameters as flat views, and the merges that were set up to fill them.

    Attributes
    ----------
    module
        In eval mode, without gradients.
    parameters
        Where each tensor is merged, flat, by name; a tied parameter appears once and fills both places. Weights that
        are quantised have a buffer in common.
    dtype
        Of all parameters.
    shapes
        Of the parameters, by name.
    quantized
        By name, what takes each weight out of that buffer; it is called before the next one is merged.
    merges
        By the structure of what fills a tensor, so that candidates that differ only in coefficients share them.
    """

    module: PreTrainedModel
    parameters: dict[str, Tensor]
    dtype: torch.dtype
    shapes: Mapping[str, tuple[int, ...]]
    quantized: Mapping[str, Callable[[Tensor], None]] = field(default_factory=dict)
    merges: dict[tuple[object, ...], TensorMerge | CoreTensorMerge | StepwiseMerge] = field(default_factory=dict)

    def quantize(self, name: str) -> None:
        """Round a weight that was merged, where the model keeps it rounded."""
        take = self.quantized.get(name)
        if take is not None:
            take(self.parameters[name].view(self.shapes[name]))


def build_resident(
    config: PretrainedConfig,
    donor: Source,
    dtype: torch.dtype,
    device: torch.device,
    quantize: Quantize | None = None,
) -> Resident:
    """Build an unfilled module of `config`; generation settings and stored buffers come from `donor`.

    With `quantize`, memory for the weights that it replaces is reserved on the CPU at most, and never touched.
    """
    place = device if quantize is None else torch.device("cpu")
    module = empty_module(config, dtype, place, trust_remote_code=donor.outline.trust_remote_code)
    generation = donor.generation_config()
    if generation is not None:
        from transformers import GenerationConfig

        module.generation_config = GenerationConfig.from_dict(generation)
    _fill_buffers(module, donor)
    shapes = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
    quantized: Mapping[str, Callable[[Tensor], None]] = {}
    if quantize is not None:
        quantized = quantize(module)
        module.to(device)
    parameters = {name: parameter.data.view(-1) for name, parameter in module.named_parameters()}
    sizes = {name: math.prod(shapes[name]) for name in quantized}
    buffer = torch.empty(max(sizes.values(), default=0), dtype=dtype, device=device)
    parameters |= {name: buffer[:size] for name, size in sizes.items()}
    if device.type == "cpu":
        _ask_for_large_pages(parameters.values())
    return Resident(module, parameters, dtype, shapes, quantized)


def _ask_for_large_pages(parameters: Iterable[Tensor]) -> None:
    """Ask Linux for pages of 2 MB for unfilled parameters: writing them is then about 15 % faster."""
    for values in parameters:
        if values.nbytes >= LARGE_PAGE:
            advise(values.data_ptr(), values.nbytes, "MADV_HUGEPAGE")


def _fill_buffers(module: PreTrainedModel, donor: Source) -> None:
    buffers = dict(module.named_buffers())
    with quiet():
        for name in donor.outline.persistent_buffers:
            stored = donor.stored(name)
            if stored is not None and name in buffers and buffers[name].shape == stored.shape:
                buffers[name].copy_(stored)
