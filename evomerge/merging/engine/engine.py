"""The merge engine: recipes become weights, in place, in one resident model."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from evomerge.merging.engine.activation_informed import shares
from evomerge.merging.engine.calibration_statistics import Statistics, statistics
from evomerge.merging.engine.core_space import CoreJob, CoreSpace
from evomerge.merging.engine.jobs import Job
from evomerge.merging.engine.layer_stack import Stacks, is_stack
from evomerge.merging.engine.placement import Placement, placer
from evomerge.merging.engine.resident import Resident, build_resident
from evomerge.merging.engine.threads import Crew
from evomerge.merging.methods import implementation
from evomerge.merging.methods.blocks import Form
from evomerge.merging.methods.registry import MergeMethod, Prepared, SourceGroup, SourceModel, SourceTensor
from evomerge.merging.sources.adapters import Factors
from evomerge.merging.sources.checkpoints import Checkpoint, CheckpointError
from evomerge.merging.sources.layers import LayerOrder, check_kinds, layer_order, reordered
from search_spaces.recipes.layout import ModelLayout
from search_spaces.recipes.recipe import Recipe
from search_spaces.recipes.resolve import Contribution, TensorPlan, resolve

LARGE = 1 << 22
OTHER_BUFFERS = 8
"""Of a block, besides its models: base, result, the same rounded, and at most five that a method asks for."""
ComputeDtype = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class Footprint:
    """What a recipe costs, in bytes, known without doing it.

    Attributes
    ----------
    source_bytes
        Distinct source tensors: memory-mapped, shared by processes, best kept in the page cache.
    prepared_bytes
        State prepared once, beyond the sources.
    resident_bytes
        The resident model's parameters.
    touched_bytes
        Read and written per candidate: every source once, the prepared state once, the parameters once.
    parameters
        Number of parameters of the merged model, tied ones counted once.
    buffer_bytes
        The threads' blocks, and the largest matrix for methods that decompose: the same however many tensors there are.
    """

    source_bytes: int
    prepared_bytes: int
    resident_bytes: int
    touched_bytes: int
    parameters: int
    buffer_bytes: int = 0

    @property
    def peak_bytes(self) -> int:
        """The most that merging holds: the sources' pages, prepared state, 1.3 models and buffers."""
        return self.source_bytes + self.prepared_bytes + int(1.3 * self.resident_bytes) + self.buffer_bytes


class MergeEngine:
    """Writes the model of one recipe after another into the same module.

    Parameters
    ----------
    checkpoints
        Opened sources, by the reference that recipes use.
    base
        The reference whose layout stands for all.
    device
        Where the resident model lies and the merging happens.
    compute_dtype
        Dtype of the resident parameters. ``auto``: float32 on a CPU, else the recipe's `out_dtype`. Weights
        are rounded to `out_dtype` first in any case, so that they equal those of the saved checkpoint.
    block
        Entries per block; None chooses by device.
    large
        Parameters from which on threads (``torch.get_num_threads()``) and compiled kernels (with the extra `fast`) are
        worth their start.
    """

    def __init__(
        self,
        checkpoints: Mapping[str, Checkpoint],
        *,
        base: str,
        device: str | torch.device = "cpu",
        compute_dtype: ComputeDtype = "auto",
        block: int | None = None,
        large: int = LARGE,
    ) -> None:
        self.checkpoints = dict(checkpoints)
        self.base = base
        self._device = torch.device(device)
        self._compute_dtype = compute_dtype
        self._crew = Crew(self._device, block)
        self._large = large
        self._placement: Placement = "mapped"
        self._sources: dict[tuple[str, str], Tensor] = {}
        self._prepared: dict[tuple[object, ...], Prepared] = {}
        self._models: dict[tuple[str, str | None], SourceModel] = {}
        self._statistics: dict[tuple[str, str, str], Statistics] = {}
        self._core_space = CoreSpace(self.checkpoints)
        self._resident: Resident | None = None
        self._resident_key: tuple[object, ...] | None = None
        self._architectures: dict[tuple[str, LayerOrder], str] = {}
        layout = self.checkpoint(base).layout
        self._by_token = {*layout.embeddings, layout.head}

    @property
    def layout(self) -> ModelLayout:
        """The base's layout."""
        return self.checkpoints[self.base].layout

    def checkpoint(self, reference: str) -> Checkpoint:
        """Return an opened source.

        Raises
        ------
        CheckpointError
            If the engine was not given it.
        """
        try:
            return self.checkpoints[reference]
        except KeyError:
            raise CheckpointError(
                f"{reference}: the recipe names a model that is not opened; use one of {', '.join(self.checkpoints)}"
            ) from None

    @property
    def device(self) -> torch.device:
        """Where the resident model lies."""
        return self._device

    def place_sources(self, placement: Placement) -> None:
        """Say where source tensors lie from now on; each goes there when it is first read.

        Stacks hold theirs on the device in any case, and core space reads its base mapped.
        """
        if placement != self._placement:
            self._placement = placement
            self._sources.clear()
            self._resident = self._resident_key = None  # its jobs hold tensors

    def prepare(self, recipe: Recipe) -> None:
        """Do for the recipe's structure all that does not depend on its coefficients."""
        recipe, plans = self._plan(recipe)
        if is_stack(recipe):
            self.apply(recipe)
            return
        self._measure(recipe, plans)
        resident = self._resident_for(recipe)
        with torch.inference_mode():
            for plan in plans:
                self._job(resident, recipe, plan)

    def apply(self, recipe: Recipe) -> PreTrainedModel:
        """Return the resident model, filled with the recipe's weights.

        The module is the same object from call to call while depth and configuration stay; its weights are
        those of the last call. Layers in another order are references to the sources' (see `stack`).

        Raises
        ------
        RecipeError
            If the recipe does not fit the models.
        CheckpointError
            If it names a model that is not opened, or tensors of different shapes.
        """
        recipe, plans = self._plan(recipe)
        if is_stack(recipe):
            return self._stack(recipe)
        self._measure(recipe, plans)
        resident = self._resident_for(recipe)
        self._fill(resident, recipe, plans)
        return resident.module

    def load(self, reference: str) -> PreTrainedModel:
        """Return the resident model, filled with one source's own weights in its own configuration."""
        source = self.checkpoint(reference)
        order = tuple((reference, layer) for layer in range(source.layout.num_layers))
        resident = self._resident_of(reference, order, source.dtype)
        with torch.inference_mode():
            for name, target in resident.parameters.items():
                target.copy_(self._source(reference, name))
        return resident.module

    def materialize(self, recipe: Recipe) -> PreTrainedModel:
        """Return a new model of the recipe in its `out_dtype`, in the CPU's memory, for the writer."""
        recipe, plans = self._plan(recipe)
        self._measure(recipe, plans)
        config = self._config(recipe.donor, layer_order(recipe))
        resident = build_resident(config, self.checkpoint(recipe.donor), self.out_dtype(recipe), torch.device("cpu"))
        self._fill(resident, recipe, plans)
        return resident.module

    def factors(self, recipe: Recipe) -> Iterator[tuple[str, Factors]]:
        """Yield the merged task vector of every adapted tensor, by name, for a recipe with ``adapters: core``.

        Raises
        ------
        CheckpointError
            If a source is no adapter, or layers change places.
        """
        recipe, plans = self._plan(recipe)
        resident = self._resident_for(recipe)
        with torch.inference_mode():
            for plan in plans:
                job = self._job(resident, recipe, plan)
                if isinstance(job, CoreJob):
                    yield plan.name, job.factors(plan)

    def outline(self, recipe: Recipe) -> PreTrainedModel:
        """Return the recipe's model without weights, in its `out_dtype` and with its configuration, for the writer."""
        recipe, _ = self._plan(recipe)
        config = self._config(recipe.donor, layer_order(recipe))
        return build_resident(
            config, self.checkpoint(recipe.donor), self.out_dtype(recipe), torch.device("meta")
        ).module

    def stream(self, recipe: Recipe, names: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
        """Yield the named tensors of the recipe's model in its `out_dtype`, in the CPU's memory, one at a time.

        Nothing of a tensor is kept when the next is asked for. Buffers are the donor's.
        """
        donor = self.checkpoint(recipe.donor)
        recipe, plans = self._plan(recipe)
        self._measure(recipe, plans)
        by_name = {plan.name: plan for plan in plans}
        out_dtype, kept = self.out_dtype(recipe), self._prepared
        for name in names:
            plan = by_name.get(name)
            if plan is None:
                yield name, donor.tensor(name)
                continue
            first = _parts(plan)[0]
            shape = self.checkpoint(first.model).shape(first.tensor)
            target = torch.empty(shape, dtype=out_dtype, device=self._device)
            self._prepared = {}
            try:
                with torch.inference_mode():
                    job = self._any_job(target.view(-1), shape, recipe, plan)
                    self._run([(job, plan)], out_dtype, large=target.numel() >= self._large)
            finally:
                self._prepared = kept
            del job
            yield name, target.cpu()
            del target
            _give_back_freed_memory()

    def footprint(self, recipe: Recipe) -> Footprint:
        """Return what preparing and applying the recipe costs, without doing it."""
        recipe, plans = self._plan(recipe)
        sources: dict[tuple[str, str], int] = {}
        prepared: dict[tuple[object, ...], int] = {}
        read = parameters = rows = largest_matrix = 0
        for plan in plans:
            method = implementation(plan.method)
            for part in _parts(plan):
                size = sources[part.model, part.tensor] = self._source_bytes(part)
                read += size
            shape = self.checkpoint(part.model).shape(part.tensor)
            parameters += math.prod(shape)
            form = self._form(plan, shape)
            rows = max(rows, len(plan.contributions) + OTHER_BUFFERS)
            if method.scope == "matrix" and form.is_matrix:
                largest_matrix = max(largest_matrix, math.prod(shape))
            for part in plan.contributions:
                held = method.prepared_size(form)
                prepared[self._prepared_key(method.prepare or method.prepare_all, plan, (part,), 0)] = held
                read += held
            shared = method.shared_size(form)
            prepared["shared", self._prepared_key(method.prepare_all, plan, plan.contributions, 0)] = shared
            read += shared
        resident = parameters * self._dtype_for(self.out_dtype(recipe)).itemsize
        return Footprint(
            source_bytes=sum(sources.values()),
            prepared_bytes=sum(prepared.values()),
            resident_bytes=resident,
            touched_bytes=read + resident,
            parameters=parameters,
            buffer_bytes=self._crew.buffer_bytes(rows, largest_matrix),
        )

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

    # --- from recipe to jobs ---

    def _plan(self, recipe: Recipe) -> tuple[Recipe, tuple[TensorPlan, ...]]:
        layout = self.checkpoint(recipe.donor).layout
        sliced = recipe.expanded(layout.num_layers)
        return sliced, resolve(sliced, layout)

    def _fill(self, resident: Resident, recipe: Recipe, plans: tuple[TensorPlan, ...]) -> None:
        out_dtype = self.out_dtype(recipe)
        large = sum(values.numel() for values in resident.parameters.values()) >= self._large
        with torch.inference_mode():
            self._run(((self._job(resident, recipe, plan), plan) for plan in plans), out_dtype, large=large)

    def _run(self, jobs: Iterable[tuple[Job | CoreJob, TensorPlan]], out_dtype: torch.dtype, *, large: bool) -> None:
        compiled = large and self._device.type == "cpu" and find_spec("numba") is not None
        with self._crew.session(parallel=large) as session:
            for job, plan in jobs:
                for piece in job.pieces(plan, out_dtype, compiled=compiled):
                    session.do(job, piece)

    def _job(self, resident: Resident, recipe: Recipe, plan: TensorPlan) -> Job | CoreJob:
        parts = ((part.model, part.tensor) for part in _parts(plan))
        key = (plan.method, plan.name, recipe.seed, recipe.calibration, recipe.adapters, *parts)
        job = resident.jobs.get(key)
        if job is None:
            shape = tuple(resident.module.get_parameter(plan.name).shape)
            job = resident.jobs[key] = self._any_job(resident.parameters[plan.name], shape, recipe, plan)
        return job

    def _any_job(self, target: Tensor, shape: tuple[int, ...], recipe: Recipe, plan: TensorPlan) -> Job | CoreJob:
        """Return what fills the target; in core space where the recipe says so and an expert adapts the tensor."""
        if recipe.adapters == "core":
            method, scratch = implementation(plan.method), self._crew.for_matrices
            core = self._core_space.job(method, plan, target, scratch, recipe.seed or 0)
            if core is not None:
                return core
        return self._new_job(target, shape, recipe, plan)

    def _new_job(self, target: Tensor, shape: tuple[int, ...], recipe: Recipe, plan: TensorPlan) -> Job:
        method = implementation(plan.method)
        for part in _parts(plan):
            own = self.checkpoint(part.model).shape(part.tensor)
            if own != shape:
                raise CheckpointError(
                    f"{part.model}: {part.tensor} has shape {list(own)} where the merged {plan.name} has "
                    f"{list(shape)}; merge models of one architecture and size"
                )
        form = self._form(plan, shape)
        base = None if plan.base is None else self._source(plan.base.model, plan.base.tensor)
        return Job(
            method,
            target,
            base=base,
            models=[self._source(part.model, part.tensor) for part in plan.contributions],
            form=form,
            prepared=[self._prepare(method, plan, part, recipe, form) for part in plan.contributions]
            if method.prepare
            else [],
            shared=self._prepare_all(method, plan, form) if method.prepare_all else None,
            activation=self._activation(recipe, plan),
        )

    def _prepare(
        self, method: MergeMethod, plan: TensorPlan, part: Contribution, recipe: Recipe, form: Form
    ) -> Prepared:
        assert method.prepare is not None
        seed, measured = recipe.seed or 0, method.spec.statistic is not None
        key = self._prepared_key(method.prepare, plan, (part,), seed if method.spec.stochastic else 0)
        if measured:
            key = (*key, recipe.calibration)
        state = self._prepared.get(key)
        if state is None:
            source = SourceTensor(
                part.tensor,
                self._on_device(part),
                self._base_on_device(plan),
                seed,
                form,
                self._model(plan, part),
                self._statistic(method, part, recipe) if measured else None,
            )
            state = self._prepared[key] = method.prepare(source)
        return state

    def _model(self, plan: TensorPlan, part: Contribution) -> SourceModel:
        base = None if plan.base is None else plan.base.model
        model = self._models.get((part.model, base))
        if model is None:
            model = self._models[part.model, base] = SourceModel(lambda: self._pairs(part.model, base))
        return model

    def _pairs(self, reference: str, base: str | None) -> Iterator[tuple[Tensor, Tensor | None]]:
        for name in self.checkpoint(reference).names:
            other = None if base is None else self._source(base, name).to(self._device)
            yield self._source(reference, name).to(self._device), other

    def _prepare_all(self, method: MergeMethod, plan: TensorPlan, form: Form) -> Prepared:
        assert method.prepare_all is not None
        key = self._prepared_key(method.prepare_all, plan, plan.contributions, 0)
        state = self._prepared.get(key)
        if state is None:
            models = tuple(self._on_device(part) for part in plan.contributions)
            state = self._prepared[key] = method.prepare_all(SourceGroup(models, self._base_on_device(plan), form))
        return state

    @staticmethod
    def _prepared_key(
        prepare: object, plan: TensorPlan, parts: tuple[Contribution, ...], seed: int
    ) -> tuple[object, ...]:
        """Return what prepared state depends on: methods that prepare alike share it."""
        base = None if plan.base is None else (plan.base.model, plan.base.tensor)
        return prepare, base, seed, *((part.model, part.tensor) for part in parts)

    def _form(self, plan: TensorPlan, shape: tuple[int, ...]) -> Form:
        return Form(shape, by_token=plan.name in self._by_token)

    def _on_device(self, part: Contribution) -> Tensor:
        return self._source(part.model, part.tensor).to(self._device)

    def _base_on_device(self, plan: TensorPlan) -> Tensor | None:
        return None if plan.base is None else self._on_device(plan.base)

    def _source(self, reference: str, name: str) -> Tensor:
        """Return a source tensor, flat, where the sources are placed: memory-mapped unless told otherwise."""
        key = (reference, name)
        values = self._sources.get(key)
        if values is None:
            place = placer(self._placement, self._device)
            values = self._sources[key] = place(self.checkpoint(reference).tensor(name).reshape(-1))
        return values

    def _source_bytes(self, part: Contribution) -> int:
        """Return a source tensor's size, without bringing it to its place."""
        values = self._sources.get((part.model, part.tensor))
        return (self.checkpoint(part.model).tensor(part.tensor) if values is None else values).nbytes

    # --- what models do on a text ---

    def _measure(self, recipe: Recipe, plans: tuple[TensorPlan, ...]) -> None:
        """Measure what the recipe wants to know of models on its text, before any weight is written."""
        if recipe.calibration is None:
            return
        wanted: dict[tuple[str, str], None] = {}  # a set in the order of the plans
        for plan in plans:
            if plan.base is not None and "aim" in plan.parameters:
                wanted["activations", plan.base.model] = None
            asked = implementation(plan.method).spec.statistic
            if asked is not None:
                wanted.update(dict.fromkeys((asked, part.model) for part in plan.contributions))
        text = recipe.calibration
        for kind, model in wanted:
            if (kind, model, text) not in self._statistics:
                load = partial(self.load, model)
                self._statistics[kind, model, text] = statistics(kind, self.checkpoint(model), Path(text), load)

    def _activation(self, recipe: Recipe, plan: TensorPlan) -> Tensor | None:
        """Return each input channel's share of the largest activation; None for what `aim` leaves alone."""
        if recipe.calibration is None or plan.base is None or plan.base.tensor in self.layout.embeddings:
            return None
        key = ("activations", plan.base.model, recipe.calibration)
        measured = self._statistics.get(key, {}).get(plan.base.tensor)
        return None if measured is None else shares(measured.to(self._device))

    def _statistic(self, method: MergeMethod, part: Contribution, recipe: Recipe) -> Tensor:
        """Return what was measured of a source tensor for the method, flat."""
        assert method.spec.statistic is not None
        assert recipe.calibration is not None, "a recipe of such a method is not valid without"
        measured = self._statistics[method.spec.statistic, part.model, recipe.calibration]
        return measured[part.tensor].reshape(-1).to(self._device)

    # --- the resident model ---

    def _resident_for(self, recipe: Recipe) -> Resident:
        return self._resident_of(recipe.donor, layer_order(recipe), self.out_dtype(recipe))

    def _resident_of(self, donor: str, order: LayerOrder, out_dtype: torch.dtype) -> Resident:
        """Return the resident model, built anew when depth, layer kinds or configuration change."""
        dtype = self._dtype_for(out_dtype)
        key = (self._architecture_key(donor, order), dtype)
        if self._resident is None or self._resident_key != key:
            self._resident = None  # let go of the old one first: two may not fit
            self._resident = build_resident(self._config(donor, order), self.checkpoint(donor), dtype, self._device)
            self._resident_key = key
        return self._resident

    def _stack(self, recipe: Recipe) -> PreTrainedModel:
        order, out_dtype = layer_order(recipe), self.out_dtype(recipe)
        config, key = self._config(recipe.donor, order), self._architecture_key(recipe.donor, order)
        return self._stacks.build(recipe, config, key, out_dtype, self._dtype_for(out_dtype))

    @cached_property
    def _stacks(self) -> Stacks:
        """Builds models from references; what is merged beneath has a resident model of its own."""
        inner = MergeEngine(self.checkpoints, base=self.base, device=self._device, compute_dtype=self._compute_dtype)
        inner.place_sources(self._placement)
        return Stacks(self.checkpoints, lambda recipe: _weights(inner.apply(recipe)), self._device)

    def _dtype_for(self, out_dtype: torch.dtype) -> torch.dtype:
        if self._compute_dtype != "auto":
            dtype: torch.dtype = getattr(torch, self._compute_dtype)
            return dtype
        return torch.float32 if self._device.type == "cpu" else out_dtype

    def _config(self, donor: str, order: LayerOrder) -> PretrainedConfig:
        configs = {reference: checkpoint.config for reference, checkpoint in self.checkpoints.items()}
        return reordered(self.checkpoint(donor).config, order, configs)

    def _architecture_key(self, donor: str, order: LayerOrder) -> str:
        key = self._architectures.get((donor, order))
        if key is None:
            config = self._config(donor, order)
            check_kinds(config, order, {model: self.checkpoint(model).layout for model, _ in order})
            key = self._architectures[donor, order] = self.checkpoint(donor).architecture_key(config)
        return key


def _weights(module: PreTrainedModel) -> dict[str, Tensor]:
    return {name: parameter.data for name, parameter in module.named_parameters()}


def _parts(plan: TensorPlan) -> tuple[Contribution, ...]:
    return plan.contributions if plan.base is None else (plan.base, *plan.contributions)


def _give_back_freed_memory() -> None:
    """Have glibc return what was freed: after tensors of mixed sizes its heap would otherwise grow with the model."""
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
