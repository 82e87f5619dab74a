"""The merge engine: turns recipes into weights, in place, in one resident model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property, partial, reduce
from importlib.util import find_spec
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import torch
from torch import Tensor

from evomerge.files.pages import c_library
from evomerge.merging.checks.preflight import check_finite
from evomerge.merging.engine.core_space import CoreSpace, CoreTensorMerge
from evomerge.merging.engine.footprint import Footprint, footprint
from evomerge.merging.engine.layer_stack import LayerStacks, is_layer_stack
from evomerge.merging.engine.placed_sources import PlacedSources, sources_of
from evomerge.merging.engine.placement import ComputeDtype, Placement, Split
from evomerge.merging.engine.prepared import PreparedCache
from evomerge.merging.engine.recipe_statistics import RecipeStatistics
from evomerge.merging.engine.resident import LARGE_PAGE, Quantize, Resident, ask_for_large_pages, build_resident
from evomerge.merging.engine.tensor_merge import StepwiseMerge, TensorMerge, goes_step_by_step, uses_all_threads
from evomerge.merging.engine.threads import MergeThreads, Run
from evomerge.merging.methods import implementation
from evomerge.merging.sources.adapters import Factors
from evomerge.merging.sources.errors import CheckpointError
from evomerge.merging.sources.layers import LayerOrder, check_kinds, layer_order, reordered
from evomerge.merging.sources.source import Source, architecture_key, with_buffers
from search_spaces.recipes.errors import RecipeError
from search_spaces.recipes.layout import ModelLayout
from search_spaces.recipes.recipe import Recipe
from search_spaces.recipes.resolve import TensorPlan, resolve

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from search_spaces.spaces.derivatives import Coefficient

T = TypeVar("T")

LARGE = 1 << 22
RETURNED = 1 << 24
"""Bytes of merged tensors after which the memory that they took is given back to the system."""
AnyMerge: TypeAlias = TensorMerge | CoreTensorMerge | StepwiseMerge


class MergeEngine:
    """Writes the model of one recipe after another into the same module.

    Parameters
    ----------
    checkpoints
        Opened sources, by the reference that recipes use.
    base
        The reference of the source whose layout is used; all have the same.
    device
        Where the resident model is kept and the merging happens.
    compute_dtype
        Dtype of the resident parameters. ``auto``: float32 on a CPU, else the recipe's `out_dtype`. Weights
        are rounded to `out_dtype` first in any case, so that they equal those of the saved checkpoint.
    block
        Entries per block; None chooses by device.
    large
        Parameters from which on threads (``torch.get_num_threads()``) and compiled kernels (with the extra `fast`)
        save more time than they cost to start.
    quantize
        Rounds weights of the resident models of recipes that `prepare` and `apply` build; None: they are not rounded.
    devices
        Devices that share the resident model, `device` first; empty or one: it is on `device`. Each merges what it
        holds.
    """

    def __init__(
        self,
        checkpoints: Mapping[str, Source],
        *,
        base: str,
        device: str | torch.device = "cpu",
        compute_dtype: ComputeDtype = "auto",
        block: int | None = None,
        large: int = LARGE,
        quantize: Quantize | None = None,
        devices: Sequence[torch.device] = (),
    ) -> None:
        self._device = torch.device(device)
        self._compute_dtype = compute_dtype
        self._large = large
        self._quantize = quantize
        self._devices = tuple(devices) if len(devices) > 1 else ()
        self._sources = PlacedSources(checkpoints, base, self._device)
        self._threads = MergeThreads(self._device, block)
        self._statistics = RecipeStatistics(self._sources, self.load, self._source_dtype)
        self._prepared = PreparedCache(self._sources, self._statistics)
        self._core_space = CoreSpace(self.checkpoints)
        self._resident: Resident | None = None
        self._resident_key: tuple[object, ...] | None = None
        self._architectures: dict[tuple[str, LayerOrder], str] = {}

    @property
    def checkpoints(self) -> dict[str, Source]:
        """Opened sources, by the reference that recipes use."""
        return self._sources.checkpoints

    @property
    def base(self) -> str:
        """The reference of the source whose layout is used; all have the same."""
        return self._sources.base

    @property
    def layout(self) -> ModelLayout:
        """The base's layout."""
        return self._sources.layout

    @property
    def device(self) -> torch.device:
        """Where the resident model is kept."""
        return self._device

    def shares(self) -> list[tuple[torch.device, float]]:
        """Return the devices that hold a model of the base's depth, and the fraction of its weights on each."""
        if not self._devices:
            return [(self._device, 1.0)]
        sizes = {name: math.prod(self.checkpoint(self.base).shape(name)) for name in self.layout.tensors()}
        split = Split.of(self.layout, sizes, self._devices)
        return list(zip(self._devices, split.shares(sizes), strict=True))

    def checkpoint(self, reference: str) -> Source:
        """Return an opened source.

        Raises
        ------
        CheckpointError
            If the engine was not given it.
        """
        return self._sources.checkpoint(reference)

    def place_sources(self, placement: Placement) -> None:
        """Place source tensors there from now on; each is moved when it is first read.

        Layer stacks keep theirs on the device in any case, and core space reads its base memory-mapped.
        """
        if placement != self._sources.placement:
            self._sources.place(placement)
            self._resident = self._resident_key = None  # its merges hold source tensors

    def prepare(self, recipe: Recipe) -> None:
        """Compute everything for the recipe's structure that does not depend on its coefficients."""
        recipe, plans = self.plans(recipe)
        if is_layer_stack(recipe):
            self.apply(recipe)
            return
        self._statistics.measure(recipe, plans)
        resident = self._resident_for(recipe, self._quantize)
        with torch.inference_mode():
            for _ in self._each(recipe, plans, lambda plan, _: self._merge_into(resident, recipe, plan)):
                pass

    def apply(self, recipe: Recipe, *, unquantized: bool = False) -> PreTrainedModel:
        """Return the resident model, filled with the recipe's weights.

        The module is the same object from call to call while depth and configuration stay the same; its weights are
        those of the last call. Layers in another order are references to the sources' (see `layer_stack`). With
        `unquantized` no weight is rounded to fewer bits, whatever this engine was made for.

        Raises
        ------
        RecipeError
            If the recipe does not fit the models.
        CheckpointError
            If it names a model that is not opened, or tensors of different shapes.
        """
        recipe, plans = self.plans(recipe)
        if is_layer_stack(recipe):
            return self._layer_stack(recipe, unquantized=unquantized)
        self._statistics.measure(recipe, plans)
        resident = self._resident_for(recipe, None if unquantized else self._quantize)
        self._fill(resident, recipe, plans)
        return resident.module

    def load(self, reference: str) -> PreTrainedModel:
        """Return the resident model, filled with one source's own weights in its own configuration."""
        source = self.checkpoint(reference)
        order = tuple((reference, layer) for layer in range(source.layout.num_layers))
        resident = self._resident_of(reference, order, source.dtype)
        with torch.inference_mode():
            for name, target in resident.parameters.items():
                target.copy_(self._sources.tensor(reference, name))
        return resident.module

    def materialize(self, recipe: Recipe) -> PreTrainedModel:
        """Return a new model of the recipe in its `out_dtype`, in the CPU's memory, for the writer."""
        recipe, plans = self.plans(recipe)
        self._statistics.measure(recipe, plans)
        resident = self._new_resident(recipe, plans, torch.device("cpu"))
        self._fill(resident, recipe, plans)
        return resident.module

    def factors(self, recipe: Recipe) -> Iterator[tuple[str, Factors]]:
        """Yield the merged task vector of every adapted tensor, by name, for a recipe with ``adapters: core``.

        Raises
        ------
        CheckpointError
            If a source is not an adapter, or layers change places.
        """
        recipe, plans = self.plans(recipe)
        resident = self._resident_for(recipe)
        with torch.inference_mode():
            for plan in plans:
                merge = self._merge_into(resident, recipe, plan)
                if isinstance(merge, CoreTensorMerge):
                    yield plan.name, merge.factors(plan)

    def outline(self, recipe: Recipe) -> PreTrainedModel:
        """Return the recipe's model without weights, in its `out_dtype` and with its configuration, for the writer."""
        return self._new_resident(*self.plans(recipe), torch.device("meta")).module

    def stream(self, recipe: Recipe, names: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
        """Yield the named tensors of the recipe's model in its `out_dtype`, in the CPU's memory, the largest first.

        Threads merge a tensor each, and each is yielded when it is done. Nothing that is computed for a tensor is kept,
        and a large tensor is overwritten after the next one is asked for. Buffers are the donor's.

        Raises
        ------
        CheckpointError
            If a source tensor holds NaN or infinity.
        """
        donor = self.checkpoint(recipe.donor)
        recipe, plans = self.plans(recipe)
        self._statistics.measure(recipe, plans)
        by_name = {plan.name: plan for plan in plans}
        yield from ((name, donor.tensor(name)) for name in names if name not in by_name)
        wanted = [by_name[name] for name in names if name in by_name]
        spare: list[Tensor] = []
        freed = 0
        for name, values in self._each(recipe, wanted, partial(self._merged, recipe, spare)):
            yield name, values
            freed += values.nbytes
            if values.nbytes >= LARGE_PAGE:
                spare.append(values)
            del values
            if freed >= RETURNED:
                _return_freed_memory()
                freed = 0

    def _merged(self, recipe: Recipe, spare: list[Tensor], plan: TensorPlan, run: Run) -> tuple[str, Tensor]:
        """Return a tensor that is merged once, in the memory of a spare one of its size if there is one."""
        for part in sources_of(plan):
            check_finite(part.model, part.tensor, self._sources.tensor(part.model, part.tensor))
        shape, out_dtype = self._sources.shape(sources_of(plan)[0]), self._dtype_of(recipe, plan)
        target = self._target(shape, out_dtype, spare)
        with torch.inference_mode():
            steps = self._stepwise_dtype(recipe, plan)
            merge = self._new_merge(target.view(-1), shape, recipe, plan, steps=steps, keep=False)
            for unit in merge.units(plan, out_dtype):  # importing compiled kernels takes longer than they save once
                run(unit, matrix=merge.is_whole_matrix)
        self._sources.release(plan)
        return plan.name, target.cpu()

    def _target(self, shape: tuple[int, ...], dtype: torch.dtype, spare: list[Tensor]) -> Tensor:
        """Return memory for a merged tensor; that of a spare one has its pages already, which takes the system time."""
        if self._device.type == "cpu":
            with suppress(IndexError):
                while (values := spare.pop()).numel() != math.prod(shape):
                    pass  # the largest come first: what does not fit now never will
                return values.view(shape)
        target = torch.empty(shape, dtype=dtype, device=self._device)
        if self._device.type == "cpu":
            ask_for_large_pages([target])
        return target

    def _size(self, plan: TensorPlan) -> int:
        return math.prod(self._sources.shape(sources_of(plan)[0]))

    def _each(self, recipe: Recipe, plans: Sequence[TensorPlan], do: Callable[[TensorPlan, Run], T]) -> Iterator[T]:
        """Yield what `do` returns for each tensor, the largest first; those whose operations use all threads alone."""

        def takes_all_threads(plan: TensorPlan) -> bool:
            info = self._sources.info(plan, self._sources.shape(sources_of(plan)[0]))
            return recipe.adapters == "core" or uses_all_threads(implementation(plan.method), info)

        largest_first = sorted(plans, key=self._size, reverse=True)
        for alone in (True, False):
            tasks = [partial(do, plan) for plan in largest_first if takes_all_threads(plan) == alone]
            yield from self._threads.each(tasks, parallel=not alone)

    def footprint(self, recipe: Recipe) -> Footprint:
        """Return what preparing and applying the recipe costs, without doing it."""
        recipe, plans = self.plans(recipe)
        cost = footprint(plans, self._sources, self._threads, self._dtype_for(self.out_dtype(recipe)).itemsize)
        return replace(cost, calibration_bytes=self._statistics.memory(recipe, plans))

    def plans(self, recipe: Recipe) -> tuple[Recipe, tuple[TensorPlan, ...]]:
        """Return the recipe with its layers written out, and how each tensor of its model is merged, in order.

        Raises
        ------
        RecipeError
            If the recipe does not fit the models.
        """
        layout = self.checkpoint(recipe.donor).layout
        sliced = recipe.expanded(layout.num_layers)
        return sliced, resolve(sliced, layout)

    def slopes(self, recipe: Recipe, plan: TensorPlan, wanted: Sequence[Coefficient], gradient: Tensor) -> list[float]:
        """Return the derivatives of a loss by coefficients of one tensor, in their order, from what is prepared.

        Parameters
        ----------
        recipe
            With its layers written out, as `plans` returns it; the last that was applied.
        plan
            One of its plans.
        wanted
            Some of the coefficients that `coefficients_of` finds in the plan.
        gradient
            The loss's, by the merged tensor, on the engine's device.
        """
        from evomerge.merging.engine.tensor_slopes import TensorSlopes

        with torch.inference_mode():
            if is_layer_stack(recipe):
                merge = self._new_merge(gradient.view(-1), tuple(gradient.shape), recipe, plan, steps=None)
            else:  # a step that rounds has no derivative
                merge = self._merge_into(self._resident_for(recipe), recipe, plan, in_blocks=True)
            assert not isinstance(merge, StepwiseMerge)
            slopes = TensorSlopes(merge, plan, wanted, gradient.view(-1))
            parallel = gradient.numel() >= self._large and not merge.is_whole_matrix
            with self._threads.queue(parallel=parallel) as queue:
                for unit in slopes.units():
                    queue.add(merge, unit)
            return slopes.total()

    def out_dtype(self, recipe: Recipe) -> torch.dtype:
        """Return the dtype of the recipe's weights: its `out_dtype`, its `dtype`, or the sources'."""
        name = recipe.out_dtype or recipe.dtype
        if name is not None:
            dtype: torch.dtype = getattr(torch, name)
            return dtype
        result = self.checkpoint(recipe.models[0]).dtype
        for reference in recipe.models[1:]:
            result = torch.promote_types(result, self.checkpoint(reference).dtype)
        return result

    def _dtype_of(self, recipe: Recipe, plan: TensorPlan) -> torch.dtype:
        """Return the dtype that a merged tensor is rounded to."""
        dtype = self.out_dtype(recipe)
        return with_buffers(dtype, self.checkpoint(recipe.donor)) if self._sources.is_buffer(plan) else dtype

    # --- from recipe to merges of tensors ---

    def _fill(self, resident: Resident, recipe: Recipe, plans: tuple[TensorPlan, ...]) -> None:
        large = sum(values.numel() for values in resident.parameters.values()) >= self._large
        together = [plan for plan in plans if plan.name not in resident.quantized]
        with torch.inference_mode():
            self._run(resident, recipe, together, large=large)
            for plan in plans:
                if plan.name in resident.quantized:
                    self._run(resident, recipe, [plan], large=large)
                    resident.quantize(plan.name)

    def _run(self, resident: Resident, recipe: Recipe, plans: Iterable[TensorPlan], *, large: bool) -> None:
        compiled = large and self._device.type == "cpu" and find_spec("numba") is not None
        with self._threads.queue(parallel=large) as queue:
            for plan in plans:
                merge = self._merge_into(resident, recipe, plan)
                for unit in merge.units(plan, self._dtype_of(recipe, plan), compiled=compiled):
                    queue.add(merge, unit)

    def _merge_into(self, resident: Resident, recipe: Recipe, plan: TensorPlan, *, in_blocks: bool = False) -> AnyMerge:
        """Return the merge that fills a parameter of the resident model, which keeps it for later candidates.

        With `in_blocks` it is never a `StepwiseMerge`.
        """
        parts = ((part.model, part.tensor) for part in sources_of(plan))
        steps = None if in_blocks else self._stepwise_dtype(recipe, plan)
        key = (plan.method, plan.name, recipe.seed, recipe.calibration_text, recipe.adapters, steps, *parts)
        merge = resident.merges.get(key)
        if merge is None:
            shape = resident.shapes[plan.name]
            merge = self._new_merge(resident.parameters[plan.name], shape, recipe, plan, steps=steps)
            resident.merges[key] = merge
        return merge

    def _new_merge(
        self,
        target: Tensor,
        shape: tuple[int, ...],
        recipe: Recipe,
        plan: TensorPlan,
        *,
        steps: torch.dtype | None,
        keep: bool = True,
    ) -> AnyMerge:
        """Return the merge that fills the target; in core space if the recipe says so and an expert adapts the tensor.

        With `steps` the tensor is merged step by step in that dtype. With `keep`, prepared state stays in the cache
        for later merges.
        """
        method = implementation(plan.method)
        if recipe.adapters == "core":
            scratch = self._threads.for_matrices.on(target.device)
            core = self._core_space.merge(method, plan, target, scratch, recipe.seed or 0)
            if core is not None:
                return core
        self._check_shapes(plan, shape)
        info = self._sources.info(plan, shape)
        base = None if plan.base is None else self._sources.tensor(plan.base.model, plan.base.tensor)
        models = [self._sources.tensor(part.model, part.tensor) for part in plan.contributions]
        if steps is not None:
            draws = self._prepared.of_models(method, plan, recipe, info, keep=keep) if method.spec.stochastic else ()
            return StepwiseMerge(method, target, base=base, models=models, shape=shape, dtype=steps, prepared=draws)
        return TensorMerge(
            method,
            target,
            base=base,
            models=models,
            info=info,
            prepared=self._prepared.of_models(method, plan, recipe, info, keep=keep),
            shared=self._prepared.of_all(method, plan, recipe, info, keep=keep),
            activation=self._statistics.activation_shares(recipe, plan),
        )

    def _stepwise_dtype(self, recipe: Recipe, plan: TensorPlan) -> torch.dtype | None:
        """Return the dtype in which a tensor is merged step by step; None for blocks in float32."""
        method = implementation(plan.method)
        fast = recipe.dtype == "float32" and not method.stepwise_in_float32
        if fast or method.stepwise is None or recipe.adapters == "core":
            return None
        stored = [self._sources.dtype(part) for part in sources_of(plan)]
        dtype: torch.dtype = getattr(torch, recipe.dtype) if recipe.dtype else reduce(torch.promote_types, stored)
        if self._sources.is_buffer(plan):
            dtype = reduce(torch.promote_types, stored, dtype)
        return dtype if goes_step_by_step(method, plan, dtype, stored, self._dtype_of(recipe, plan)) else None

    def _check_shapes(self, plan: TensorPlan, shape: tuple[int, ...]) -> None:
        for part in sources_of(plan):
            own = self._sources.shape(part)
            if own != shape:
                raise CheckpointError(
                    f"{part.model}: {part.tensor} has shape {list(own)} where the merged {plan.name} has "
                    f"{list(shape)}; merge models of one architecture and size"
                )

    # --- the resident model ---

    def _resident_for(self, recipe: Recipe, quantize: Quantize | None = None) -> Resident:
        return self._resident_of(recipe.donor, layer_order(recipe), self.out_dtype(recipe), quantize)

    def _resident_of(
        self, donor: str, order: LayerOrder, out_dtype: torch.dtype, quantize: Quantize | None = None
    ) -> Resident:
        """Return the resident model; build another when depth, layer kinds or configuration change."""
        dtype = self._dtype_for(out_dtype)
        key = (self._architecture_key(donor, order), dtype, quantize)
        if self._resident is None or self._resident_key != key:
            self._resident = None  # free the old one first: two may not fit
            config, source = self._config(donor, order), self.checkpoint(donor)
            self._resident = build_resident(config, source, dtype, self._device, quantize, self._devices)
            self._sources.split = self._resident.split
            self._resident_key = key
        return self._resident

    def _layer_stack(self, recipe: Recipe, *, unquantized: bool) -> PreTrainedModel:
        order, out_dtype = layer_order(recipe), self.out_dtype(recipe)
        config, key = self._config(recipe.donor, order), self._architecture_key(recipe.donor, order)
        quantize = None if unquantized else self._quantize
        return self._layer_stacks.build(recipe, config, key, out_dtype, self._dtype_for(out_dtype), quantize)

    @cached_property
    def _layer_stacks(self) -> LayerStacks:
        """Builds models from references; a merge below has a resident model of its own."""
        inner = MergeEngine(
            self.checkpoints,
            base=self.base,
            device=self._device,
            compute_dtype=self._compute_dtype,
            devices=self._devices,
        )
        inner.place_sources(self._sources.placement)
        return LayerStacks(self.checkpoints, lambda recipe: _weights(inner.apply(recipe)), self._device, self._devices)

    def _dtype_for(self, out_dtype: torch.dtype) -> torch.dtype:
        if self._compute_dtype != "auto":
            dtype: torch.dtype = getattr(torch, self._compute_dtype)
            return dtype
        return torch.float32 if self._device.type == "cpu" else out_dtype

    def _source_dtype(self, reference: str) -> torch.dtype:
        """Return what a source's own model computes in."""
        return self._dtype_for(self.checkpoint(reference).dtype)

    def _new_resident(self, recipe: Recipe, plans: Sequence[TensorPlan], device: torch.device) -> Resident:
        """Return an unfilled model in the recipe's `out_dtype`, which has a place for every tensor of the merge."""
        order, donor = layer_order(recipe), self.checkpoint(recipe.donor)
        self._architecture_key(recipe.donor, order)  # checks the kinds of the layers
        resident = build_resident(self._config(recipe.donor, order), donor, self.out_dtype(recipe), device)
        for plan in plans:
            if plan.name not in resident.shapes:
                raise RecipeError(
                    f"{donor.reference}: a {donor.outline.architecture} that its configuration describes has no "
                    f"{plan.name}, so a merge would lose it; keep the number of layers"
                )
        return resident

    def _config(self, donor: str, order: LayerOrder) -> PretrainedConfig:
        configs = {reference: checkpoint.config for reference, checkpoint in self.checkpoints.items()}
        return reordered(self.checkpoint(donor).config, order, configs)

    def _architecture_key(self, donor: str, order: LayerOrder) -> str:
        key = self._architectures.get((donor, order))
        if key is None:
            config = self._config(donor, order)
            check_kinds(config, order, {model: self.checkpoint(model).layout for model, _ in order})
            key = self._architectures[donor, order] = architecture_key(self.checkpoint(donor), config)
        return key


def _weights(module: PreTrainedModel) -> dict[str, Tensor]:
    return {name: parameter.data for name, parameter in module.named_parameters()}


def _return_freed_memory() -> None:
    """Make glibc return freed memory: after tensors of mixed sizes its heap would otherwise grow with the model."""
    with suppress(OSError, AttributeError):  # another C library
        c_library().malloc_trim(0)
