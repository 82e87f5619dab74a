"""Models with layers in another order, built from references to weights that are already in memory.

A candidate of a search over layer orders shares its weights with the sources, and layers that occur twice share them
with each other; each occurrence is a module of its own, with its own index into the cache of keys and values. Only
tensors with a scale are new. If the recipe merges before it reorders, that merge is computed once and kept while
candidates have it in common.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor, nn

from evomerge.merging.engine.resident import Quantize, Resident, build_resident
from evomerge.merging.sources.source import Source, with_buffers
from search_spaces.recipes.layout import ModelLayout
from search_spaces.recipes.recipe import Recipe
from search_spaces.recipes.resolve import TensorPlan, resolve

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

KEPT = 16  # modules without weights of their own, by architecture: a search returns to the same depths

Rounding: TypeAlias = tuple[torch.dtype, ...]
"""What stored values are rounded to, one after another: a recipe's half-precision `dtype`, then its `out_dtype`."""

Merge = Callable[[Recipe], Mapping[str, Tensor]]
"""Gives a recipe's merged tensors by name, in their own storage."""


def is_layer_stack(recipe: Recipe) -> bool:
    """Tell whether a sliced recipe only reorders layers, of unmerged models or of one merge."""
    if recipe.path is not None:
        return True
    if any(spec.name != "passthrough" for spec in recipe.specs):
        return False
    layers = [source.start + at for part in recipe.slices for source in part.sources for at in range(source.num_layers)]
    models = {source.model for part in recipe.slices for source in part.sources}
    return layers != list(range(len(layers))) or len(models) > 1


class LayerStacks:
    """Builds layer stacks.

    Parameters
    ----------
    checkpoints
        Opened sources, by reference.
    merge
        Computes the merge that a recipe then reorders.
    device
        Where the models are kept.
    devices
        Devices that share a model instead; empty: only that one.
    """

    def __init__(
        self,
        checkpoints: Mapping[str, Source],
        merge: Merge,
        device: torch.device,
        devices: Sequence[torch.device] = (),
    ) -> None:
        self._checkpoints = checkpoints
        self._merge = merge
        self._device = device
        self._devices = tuple(devices)
        self._modules: OrderedDict[tuple[str, torch.dtype, Quantize | None], Resident] = OrderedDict()
        self._tensors: dict[tuple[str, str, Rounding, torch.dtype, torch.device], Tensor] = {}
        self._merged: tuple[str, Mapping[str, Tensor]] | None = None

    def build(
        self,
        recipe: Recipe,
        config: PretrainedConfig,
        key: str,
        out_dtype: torch.dtype,
        dtype: torch.dtype,
        quantize: Quantize | None = None,
    ) -> PreTrainedModel:
        """Return the model of `recipe`, valid until the next call.

        Parameters
        ----------
        recipe
            Sliced; a layer stack.
        config
            The result's.
        key
            Equal for equal architectures.
        out_dtype, dtype
            The dtype that weights are rounded to, and the module's.
        quantize
            Rounds weights to fewer bits; such a model shares none of these.
        """
        donor = self._checkpoints[recipe.donor]
        resident = self._module(donor, config, key, dtype, quantize)
        inner = None if recipe.path is None else self._inner(recipe)
        half = recipe.dtype in ("bfloat16", "float16")
        rounding = (*((getattr(torch, recipe.dtype),) if half and recipe.dtype else ()), out_dtype)
        with torch.inference_mode(False):
            for plan in _plans(recipe, donor.layout):
                device = self._device if resident.split is None else resident.split.device_of(plan.name)
                part = plan.contributions[0]
                if part.tensor in self._checkpoints[part.model].outline.stored_buffers:
                    own = (with_buffers(out_dtype, donor),)
                    values = self._tensor(plan, inner, own, with_buffers(dtype, donor), device)
                else:
                    values = self._tensor(plan, inner, rounding, dtype, device)
                take = resident.quantized.get(plan.name)
                if take is None:
                    _set(resident.module, plan.name, values)
                else:
                    take(values.view(resident.shapes[plan.name]))
            resident.module.tie_weights()
        return resident.module

    def _module(
        self, donor: Source, config: PretrainedConfig, key: str, dtype: torch.dtype, quantize: Quantize | None
    ) -> Resident:
        """Return a module of that architecture; its parameters are another stack's, or uninitialised."""
        resident = self._modules.get((key, dtype, quantize))
        if resident is None:
            if quantize is not None or any(kept is not None for *_, kept in self._modules):
                self._modules.clear()  # quantised models have weights of their own: two may not fit
            alone = quantize is None and not self._devices  # none of its parameters is kept
            place = torch.device("cpu") if alone else self._device
            resident = build_resident(config, donor, dtype, place, quantize, self._devices)
            for name, buffer in resident.module.named_buffers() if alone else ():
                owner, _, leaf = name.rpartition(".")
                resident.module.get_submodule(owner)._buffers[leaf] = buffer.to(self._device)
            self._modules[key, dtype, quantize] = resident
            if len(self._modules) > KEPT:
                self._modules.popitem(last=False)
        self._modules.move_to_end((key, dtype, quantize))
        return resident

    def _inner(self, recipe: Recipe) -> Mapping[str, Tensor]:
        """Return the tensors of the recipe's merge, in `dtype`, merged again only if it has changed."""
        inner = replace(recipe, path=None)
        if self._merged is None or self._merged[0] != inner.hash:
            self._merged = None  # free the old one first: two may not fit
            self._merged = inner.hash, self._merge(inner)
        return self._merged[1]

    def _tensor(
        self,
        plan: TensorPlan,
        inner: Mapping[str, Tensor] | None,
        rounding: Rounding,
        dtype: torch.dtype,
        device: torch.device,
    ) -> Tensor:
        part = plan.contributions[0]
        if inner is not None and plan.method == MERGED:
            values, scale = inner[part.tensor].to(device), float(plan.scale)
        else:
            values = self._source(part.model, part.tensor, rounding, dtype, device)
            scale = float(part.parameters.get("scale", 1.0))
        if scale == 1:
            return values
        if inner is None or plan.method != MERGED:  # from the stored values, as the recipe's dtype has them
            values = _rounded(self._checkpoints[part.model].tensor(part.tensor).to(device), rounding[:-1])
        return _rounded(values.float() * scale, rounding).to(dtype)

    def _source(self, model: str, tensor: str, rounding: Rounding, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return a source's tensor in `dtype`: the memory-mapped one itself where it is stored so."""
        key = (model, tensor, rounding, dtype, device)
        values = self._tensors.get(key)
        if values is None:
            values = _rounded(self._checkpoints[model].tensor(tensor).to(device), rounding).to(dtype)
            self._tensors[key] = values
        return values


def _rounded(values: Tensor, rounding: Rounding) -> Tensor:
    return reduce(Tensor.to, rounding, values)


MERGED = "merged"
"""In place of a method: the tensor comes from the merge below."""


def _plans(recipe: Recipe, layout: ModelLayout) -> tuple[TensorPlan, ...]:
    """Return where each tensor comes from; tensors of a merge by their names in it."""
    if recipe.path is None:
        return resolve(recipe, layout)
    source = recipe.slices[0].sources[0].model
    names = {name: name for name in (*layout.embeddings, *layout.final)}
    for index, stop in enumerate(recipe.path):
        if stop.model is None:
            names |= {
                layout.layer_tensor(index, name): layout.layer_tensor(stop.layer, name)
                for name in layout.layers[stop.layer]
            }
    plans = []
    for plan in resolve(recipe, layout):
        if plan.name in names:
            part = replace(plan.contributions[0], model=source, tensor=names[plan.name], parameters={})
            plan = replace(plan, method=MERGED, contributions=(part,))  # noqa: PLW2901
        plans.append(plan)
    return tuple(plans)


def _set(module: PreTrainedModel, name: str, values: Tensor) -> None:
    owner, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(owner), leaf, nn.Parameter(values, requires_grad=False))
