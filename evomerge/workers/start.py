"""A worker in this process, from opened models to ready: built, its sources placed, its state prepared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property

import torch

from evomerge.files.messages import counted
from evomerge.merging.engine.engine import MergeEngine
from evomerge.merging.engine.footprint import Footprint
from evomerge.merging.engine.placement import (
    Choice,
    DeviceError,
    Share,
    choose,
    free_memory,
    free_together,
    torch_device,
)
from evomerge.merging.engine.resident import Quantize
from evomerge.merging.sources.source import Source
from evomerge.workers.base import Request, WorkerSettings
from evomerge.workers.gradient_steps import GradientSteps, StepInputs, StepMemory
from evomerge.workers.inline import MergeWorker
from evomerge.workers.source_watch import SourceWatch
from fitness.functions.opening import Suite, evaluator_for
from fitness.scoring.answering import Answering, OwnAnswers
from fitness.scoring.engine_config import AnyEngine, Quantization, TransformersEngine
from fitness.scoring.evaluator import Evaluator
from fitness.scoring.products import packed_bytes
from fitness.scoring.quantized import quantized_sizes, quantizer
from search_spaces.recipes.recipe import Recipe


@dataclass(frozen=True)
class WorkerInputs:
    """What a worker merges and asks.

    Attributes
    ----------
    checkpoints
        Opened models, by reference.
    base
        The base's reference; its tokenizer encodes the items.
    suite
        The tasks, or the function in their place.
    batch_size, max_length
        See the search file's `fitness` section.
    steps
        What steps of a gradient search are asked; None: there are none.
    engine
        What computes the answers.
    """

    checkpoints: Mapping[str, Source]
    base: str
    suite: Suite
    batch_size: int
    max_length: int | None
    steps: StepInputs | None = None
    engine: AnyEngine = field(default_factory=TransformersEngine)

    @property
    def beside(self) -> int:
        """How many programs share a device's memory: the worker, and an engine of its own."""
        return 1 if isinstance(self.engine, TransformersEngine) else 2


@dataclass(frozen=True)
class Preparation:
    """What can be done before the first candidate.

    Attributes
    ----------
    structures
        One recipe for each kind of prepared state that candidates need (`SearchSpace.structures`).
    start
        A recipe to prepare the evaluator with.
    items
        The items that are asked first.
    """

    structures: tuple[Recipe, ...]
    start: Recipe
    items: tuple[str, ...]


class LocalWorker:
    """A worker in this process that is built, placed and prepared when it is first needed.

    Parameters
    ----------
    inputs, preparation
        What it merges and asks, and what is prepared.
    settings
        How it computes.
    share
        Its share of the memory of its device and of the machine.
    """

    def __init__(
        self, inputs: WorkerInputs, preparation: Preparation, settings: WorkerSettings, share: Share | None = None
    ) -> None:
        self._inputs = inputs
        self._preparation = preparation
        self._settings = settings
        self._share = share or Share()

    @cached_property
    def worker(self) -> MergeWorker:
        """The worker; it can score, and prepares what it needs when it first needs it.

        Raises
        ------
        DeviceError
            If its device cannot be used.
        """
        return build_worker(self._inputs, self._settings, self._share)

    @cached_property
    def footprint(self) -> Footprint:
        """What the costliest candidate maps and touches, and what is prepared for all structures together."""
        found = [asdict(self.worker.engine.footprint(recipe)) for recipe in self._preparation.structures]
        costs = {key: max(each[key] for each in found) for key in found[0]}
        return Footprint(**costs | {"prepared_bytes": sum(each["prepared_bytes"] for each in found)})

    @property
    def packed_bytes(self) -> int:
        """What weights that are packed while texts are generated take, beside the model they are copied from."""
        generates = "generate_until" in self._inputs.suite.kinds.values()
        in_float32 = self.footprint.resident_bytes == 4 * self.footprint.parameters
        if not (generates and in_float32 and self.worker.engine.device.type == "cpu"):
            return 0
        if not isinstance(self._inputs.engine, TransformersEngine):
            return 0
        return packed_bytes(self._inputs.checkpoints[self._inputs.base].outline.module)

    @cached_property
    def placement(self) -> Choice:
        """Where the sources are placed, decided from the memory that is free when this is first read.

        Raises
        ------
        PlacementError
            If they do not fit where the settings want them.
        """
        engine = self.worker.engine
        share = replace(self._share, device=self._share.device / self._inputs.beside)
        shares = engine.shares()
        free, name = free_together(shares, share), " and ".join(str(device) for device, _ in shares)
        return choose(self._settings.placement, engine.device, self.footprint, free, name=name)

    def engine_notes(self) -> list[str]:
        """Return sentences about what answers take beside or in place of the merged model, once that is ready."""
        evaluator, quantization = self.worker.evaluator, self._inputs.engine.quantization
        notes = self._shared() + ([] if quantization is None else [self._quantized(quantization)])
        return notes + (evaluator.answering.describe() if isinstance(evaluator, Evaluator) else [])

    def _shared(self) -> list[str]:
        """Return what each device holds, if several share the model."""
        shares = self.worker.engine.shares()
        if len(shares) == 1:
            return []
        whole = self.footprint
        return [
            f"{device} holds {100 * part:.0f} % of the weights: {part * whole.resident_bytes / 1e6:,.1f} MB of the "
            f"resident model, {part * whole.peak_bytes / 1e6:,.1f} MB with the sources on it"
            for device, part in shares
        ]

    def _quantized(self, quantization: Quantization) -> str:
        whole = self.footprint
        sizes = quantized_sizes(self._inputs.checkpoints[self._inputs.base].outline.module, quantization)
        each = whole.resident_bytes // whole.parameters
        smaller = whole.resident_bytes - each * (sizes.weights - sizes.largest) + sizes.stored
        return (
            f"quantization {quantization}: {sizes.weights:,} of {whole.parameters:,} weights are rounded; the resident "
            f"model takes {smaller / 1e6:,.1f} MB during the search, and {whole.resident_bytes / 1e6:,.1f} MB for "
            "held-out items, which unquantised models answer"
        )

    def ready(self) -> MergeWorker:
        """Return the worker after doing all that does not depend on a candidate."""
        engine = self.worker.engine
        if engine.device.type != "cpu":  # a CPU computes from the mapped files
            engine.place_sources(self.placement.placement)
        for structure in self._preparation.structures:
            engine.prepare(structure)
        self.worker.prepare(self._preparation.start, self._preparation.items)
        _ = self.step_memory  # fits the steps to it
        return self.worker

    @cached_property
    def step_memory(self) -> StepMemory | None:
        """What a gradient step needs beside the models, fitted to the memory that is free when this is first read.

        None: there are no such steps.

        Raises
        ------
        StepMemoryError
            If there is too little.
        """
        steps, device = self.worker.steps, self.worker.engine.device
        if steps is None:
            return None
        free = free_memory(device, self._share)
        request = Request(self._preparation.start, steps.longest(), gradient_at=())
        return steps.fit(request, free.host if free.device is None else free.device)


def build_worker(inputs: WorkerInputs, settings: WorkerSettings, share: Share | None = None) -> MergeWorker:
    """Return a worker in this process that has prepared nothing yet.

    Raises
    ------
    DeviceError
        If its device cannot be used.
    TaskError
        If it cannot compute with quantised weights that the engine asks for.
    """
    device = torch_device(settings.device)
    devices = devices_of(device, settings, inputs)
    device = str(devices[0]) if devices else device
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    engine = MergeEngine(
        inputs.checkpoints,
        base=inputs.base,
        device=device,
        compute_dtype=settings.compute_dtype,
        quantize=_quantize(inputs.engine, torch.device(device)),
        devices=devices,
    )
    evaluator = evaluator_for(
        inputs.suite,
        inputs.checkpoints[inputs.base].tokenizer.load(),
        batch_size=inputs.batch_size,
        max_length=inputs.max_length,
        device=device,
        answering=_answering(inputs.engine, device, settings, share or Share()),
    )
    steps = None
    if inputs.steps is not None:
        assert isinstance(evaluator, Evaluator), "functions have no gradients"
        steps = GradientSteps(engine, evaluator, inputs.steps)
    return MergeWorker(engine, evaluator, SourceWatch(inputs.checkpoints), steps)


def devices_of(device: str, settings: WorkerSettings, inputs: WorkerInputs) -> tuple[torch.device, ...]:
    """Return the GPUs that share a worker's model; none if one device holds it, or vLLM splits it.

    Raises
    ------
    DeviceError
        If this process has fewer, or takes gradient steps.
    """
    if settings.gpus == 1 or torch.device(device).type != "cuda" or not isinstance(inputs.engine, TransformersEngine):
        return ()
    seen = torch.cuda.device_count()
    if seen < settings.gpus:
        raise DeviceError(
            f"workers.gpus_per_worker is {settings.gpus}, and this process sees {counted(seen, 'GPU')}; "
            "write a lower one, or ask where workers run"
        )
    if inputs.steps is not None:
        raise DeviceError(
            f"workers.gpus_per_worker is {settings.gpus}, and gradient steps need the model on one; write 1, or "
            "strategy.kind: cma_es"
        )
    return tuple(torch.device("cuda", at) for at in range(settings.gpus))


def _quantize(engine: AnyEngine, device: torch.device) -> Quantize | None:
    """Return what rounds the weights of candidates; None if they are not quantised."""
    return None if engine.quantization is None else quantizer(engine.quantization, device)


def _answering(engine: AnyEngine, device: str, settings: WorkerSettings, share: Share) -> Answering:
    """Return what computes answers; an engine is started when it is first needed."""
    if isinstance(engine, TransformersEngine):
        return OwnAnswers()
    from fitness.vllm.answers import EnginePlace, VllmAnswers

    def free() -> int:
        found = free_memory(torch.device(device), share)
        return found.host if found.device is None else found.device

    return VllmAnswers(engine, EnginePlace(device, settings.gpus, settings.threads, free))
