"""The resident model: one transformers module whose parameters every candidate overwrites in place."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor, nn

from evomerge.files.pages import advise
from evomerge.merging.engine.core_space import CoreTensorMerge
from evomerge.merging.engine.placement import Split
from evomerge.merging.engine.tensor_merge import StepwiseMerge, TensorMerge
from evomerge.merging.sources.architecture import StoredBuffer, empty_module, layout_of_module, quiet
from evomerge.merging.sources.source import Source, with_buffers

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

LARGE_PAGE = 2 << 20

DeviceOf: TypeAlias = Callable[[str], torch.device]
"""The device of a parameter, by its name."""
Quantize: TypeAlias = Callable[[nn.Module, DeviceOf], Mapping[str, Callable[[Tensor], None]]]
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
        Of all parameters but stored buffers, which may have a wider one.
    shapes
        Of the parameters, by name.
    quantized
        By name, what takes each weight out of that buffer; it is called before the next one is merged.
    split
        Which device holds what, if there are several.
    merges
        By the structure of what fills a tensor, so that candidates that differ only in coefficients share them.
    """

    module: PreTrainedModel
    parameters: dict[str, Tensor]
    dtype: torch.dtype
    shapes: Mapping[str, tuple[int, ...]]
    quantized: Mapping[str, Callable[[Tensor], None]] = field(default_factory=dict)
    split: Split | None = None
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
    devices: Sequence[torch.device] = (),
) -> Resident:
    """Build an unfilled module of `config`; generation settings and stored whole numbers come from `donor`.

    With several `devices` these share it. With these or with `quantize`, memory for all weights is reserved on the CPU
    meanwhile, and never touched.
    """
    place = device if quantize is None and not devices else torch.device("cpu")
    module = empty_module(config, dtype, place, trust_remote_code=donor.outline.trust_remote_code)
    generation = donor.generation_config()
    if generation is not None:
        from transformers import GenerationConfig

        module.generation_config = GenerationConfig.from_dict(generation)
    _fill_buffers(module, donor)
    for values in module.parameters():
        if isinstance(values, StoredBuffer):
            values.data = values.data.to(with_buffers(dtype, donor))
    shapes = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
    split = None
    if devices:
        sizes = {name: math.prod(shape) for name, shape in shapes.items()}
        split = Split.of(layout_of_module(module), sizes, devices)
        split.attach(module)
    device_of: DeviceOf = (lambda _: device) if split is None else split.device_of
    quantized = {} if quantize is None else quantize(module, device_of)
    if place != device or devices:
        _move(module, device_of)
    parameters = {name: parameter.data.view(-1) for name, parameter in module.named_parameters()}
    parameters |= _room({name: shapes[name] for name in quantized}, dtype, device_of)
    if device.type == "cpu":
        ask_for_large_pages(parameters.values())
    return Resident(module, parameters, dtype, shapes, quantized, split)


def _move(module: PreTrainedModel, device_of: DeviceOf) -> None:
    """Move a model that is not filled: parameters are reserved, buffers copied."""
    moved: dict[nn.Parameter, nn.Parameter] = {}  # tied ones stay tied
    for prefix, owner in module.named_modules():
        for leaf, parameter in owner._parameters.items():
            if parameter is not None and parameter not in moved:
                empty = torch.empty_like(parameter, device=device_of(f"{prefix}.{leaf}"))
                moved[parameter] = nn.Parameter(empty, requires_grad=False)
            if parameter is not None:
                owner._parameters[leaf] = moved[parameter]
        for leaf, buffer in owner._buffers.items():
            if buffer is not None:
                owner._buffers[leaf] = buffer.to(device_of(f"{prefix}.{leaf}"))


def _room(shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, device_of: DeviceOf) -> dict[str, Tensor]:
    """Return flat views by name into one buffer for each device, of the size of the largest tensor there."""
    largest: dict[torch.device, int] = {}
    for name, shape in shapes.items():
        largest[device_of(name)] = max(largest.get(device_of(name), 0), math.prod(shape))
    buffers = {device: torch.empty(size, dtype=dtype, device=device) for device, size in largest.items()}
    return {name: buffers[device_of(name)][: math.prod(shape)] for name, shape in shapes.items()}


def ask_for_large_pages(parameters: Iterable[Tensor]) -> None:
    """Ask Linux for pages of 2 MB for unfilled tensors: writing them is then about 15 % faster."""
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
