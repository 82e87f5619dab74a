"""The resident model: one transformers module whose parameters every candidate overwrites in place."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from evomerge.files.pages import advise
from evomerge.merging.engine.core_space import CoreTensorMerge
from evomerge.merging.engine.tensor_merge import StepwiseMerge, TensorMerge
from evomerge.merging.sources.architecture import empty_module, quiet
from evomerge.merging.sources.source import Source

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

LARGE_PAGE = 2 << 20


@dataclass
class Resident:
    """A module, its parameters as flat views, and the merges that were set up to fill them.

    Attributes
    ----------
    module
        In eval mode, without gradients.
    parameters
        Flat views by name; a tied parameter appears once and fills both places.
    dtype
        Of all parameters.
    merges
        By the structure of what fills a tensor, so that candidates that differ only in coefficients share them.
    """

    module: PreTrainedModel
    parameters: dict[str, Tensor]
    dtype: torch.dtype
    merges: dict[tuple[object, ...], TensorMerge | CoreTensorMerge | StepwiseMerge] = field(default_factory=dict)


def build_resident(config: PretrainedConfig, donor: Source, dtype: torch.dtype, device: torch.device) -> Resident:
    """Build an unfilled module of `config`; generation settings and stored buffers come from `donor`."""
    module = empty_module(config, dtype, device, trust_remote_code=donor.outline.trust_remote_code)
    generation = donor.generation_config()
    if generation is not None:
        from transformers import GenerationConfig

        module.generation_config = GenerationConfig.from_dict(generation)
    _fill_buffers(module, donor)
    parameters = {name: parameter.data.view(-1) for name, parameter in module.named_parameters()}
    if device.type == "cpu":
        _ask_for_large_pages(parameters.values())
    return Resident(module, parameters, dtype)


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
