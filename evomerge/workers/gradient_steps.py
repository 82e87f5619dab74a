"""Steps of a gradient search: the items' losses, and the derivatives of their weighted sum by the genes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
import torch

from evomerge.merging.checks.similarity import squared_norms
from evomerge.merging.derivatives.activations import Activations, measure
from evomerge.merging.derivatives.checkpointing import recomputed
from evomerge.merging.derivatives.watched import NotFiniteError, watched
from evomerge.merging.engine.engine import MergeEngine
from evomerge.merging.engine.placement import PlacementError
from evomerge.strategies.step_loss import LossConfig
from evomerge.workers.base import OUT_OF_MEMORY, Request
from evomerge.workers.step_parts import step_evaluation
from fitness.items import task_of
from fitness.results import Evaluation
from fitness.scoring.evaluator import Evaluator
from fitness.scoring.losses import LossPlan
from fitness.scoring.shortage import no_memory
from fitness.scoring.text_losses import DivergencePlan, Likeliest, TextWindows
from search_spaces.spaces.derivatives import ChainRule

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger("evomerge")

StepPlan: TypeAlias = LossPlan | DivergencePlan


OF_GRADIENT = 3
"""Copies of the largest tensor: its gradient, and two on the way to it where a tied tensor has one from each place."""
OF_DISTANCE = 2
"""Further ones in float32 for the distance from the base."""


class StepMemoryError(PlacementError):
    """A gradient step that does not fit into memory; one line with the numbers that says what to write instead."""


@dataclass(frozen=True)
class StepMemory:
    """The memory of a step, in bytes, beyond that of a merge.

    Attributes
    ----------
    gradients
        For one tensor's gradient at a time.
    activations
        Of the largest batch that a step can have.
    how
        The batch size, and whether layers are computed again, in words.
    """

    gradients: int
    activations: int
    how: str

    @property
    def total(self) -> int:
        """Both together."""
        return self.gradients + self.activations


@dataclass(frozen=True)
class StepInputs:
    """What steps are asked for.

    Attributes
    ----------
    chain_rule
        From derivatives by coefficients to derivatives by genes.
    items
        What steps are asked some of: search items, or windows of the texts.
    count
        How many of each task or text a step is asked.
    loss
        What is minimised.
    windows
        The experts' texts, for losses that read one.
    experts
        References of the experts, by name.
    """

    chain_rule: ChainRule
    items: tuple[str, ...]
    count: int
    loss: LossConfig
    windows: TextWindows | None = None
    experts: Mapping[str, str] = field(default_factory=dict)


class GradientSteps:
    """Computes steps in a worker's process.

    Attributes
    ----------
    batch_size
        Sequences per forward and backward pass; smaller from the first step on that finds too little memory.
    recomputes
        Whether layers are computed again in the backward pass instead of keeping their activations.
    """

    def __init__(self, engine: MergeEngine, evaluator: Evaluator, inputs: StepInputs) -> None:
        self.engine, self.evaluator, self.inputs = engine, evaluator, inputs
        self.batch_size = evaluator.batch_size
        self.recomputes = False
        self._unit: float | None = None

    def evaluate(self, request: Request, seconds: dict[str, float]) -> Evaluation:
        """Return the items' losses and the derivatives of their weighted sum by the genes.

        Raises
        ------
        LossError, NotFiniteError
            If a loss or a gradient is not finite; the message names the item.
        MemoryError
            If memory runs out with a single item in a batch and layers computed again.
        """
        started = time.perf_counter()
        evaluation = self._in_memory(lambda: self._evaluate(request))
        seconds["score"] = time.perf_counter() - started
        return evaluation

    def plan(
        self, request: Request, module: PreTrainedModel, predictions: Mapping[str, Likeliest], rows: int
    ) -> StepPlan:
        """Return the losses of a request's items in batches of `rows`."""
        whole, windows = request.whole or request.items, self.inputs.windows
        if windows is None:
            entropy = self.inputs.loss.kind == "entropy"
            return self.evaluator.losses(module, request.items, whole, batch_size=rows, entropy=entropy)
        counts = {expert: len(own) for expert, own in windows.of_expert(whole).items()}
        weights = {item: 1 / len(counts) / counts[task_of(item)] for item in request.items}
        kind: Literal["js", "kl"] = "kl" if self.inputs.loss.kind == "kl" else "js"
        device = self.evaluator.device
        return DivergencePlan(windows, request.items, predictions, weights, kind, batch_size=rows, device=device)

    def need(self, request: Request) -> StepMemory:
        """Return the memory of a step as it would be computed now.

        Parameters
        ----------
        request
            A step; its recipe is the model that is resident afterwards.
        """
        activations = self._activations(request)
        return self._need(request, activations)

    def fit(self, request: Request, free: int) -> StepMemory:
        """Choose batch size and recomputation so that a step like `request` fits into `free` bytes.

        Raises
        ------
        StepMemoryError
            If not even one item a batch fits with layers computed again.
        """
        activations = self._activations(request)
        first = need = self._need(request, activations)
        self.recomputes = need.total > free
        while (need := self._need(request, activations)).total > free and self.batch_size > 1:
            self.batch_size //= 2
        if need.total > free:
            raise StepMemoryError(
                f"a gradient step needs {need.total / 1e9:.2f} GB beside the models ({need.how}), and "
                f"{free / 1e9:.2f} GB are free; write a smaller fitness.max_length, or a strategy.kind without "
                "gradients"
            )
        if self.recomputes:
            log.warning(
                "a gradient step needs %.2f GB and %.2f GB are free: %s", first.total / 1e9, free / 1e9, self.how
            )
        return need

    def longest(self) -> tuple[str, ...]:
        """Return the items of the largest step."""
        windows, inputs = self.inputs.windows, self.inputs
        if windows is None:
            return self.evaluator.longest_items(inputs.items, inputs.count)
        return tuple(item for own in windows.of_expert(inputs.items).values() for item in own[: inputs.count])

    def _activations(self, request: Request) -> Activations:
        return measure(self.engine.apply(request.recipe), self.engine.layout)

    def _need(self, request: Request, activations: Activations) -> StepMemory:
        module = self.engine.apply(request.recipe)
        shapes = self.plan(request, module, {}, self.batch_size).shapes
        sizes = [
            activations.bytes(
                rows=each.rows, width=each.width, kept=each.kept, scored=each.scored, recomputed=self.recomputes
            )
            for each in shapes
        ]
        largest = max(parameter.numel() for parameter in module.parameters())
        gradients = OF_GRADIENT * largest * next(module.parameters()).itemsize
        if self.inputs.loss.distance_to_base:
            gradients += OF_DISTANCE * largest * 4
        return StepMemory(gradients, max(sizes), self.how)

    def _evaluate(self, request: Request) -> Evaluation:
        try:
            return self._step(request, self.batch_size)
        except NotFiniteError as error:
            self._name_the_item(request)
            raise error

    def _name_the_item(self, request: Request) -> None:
        """Ask each item alone, so that the error names the first whose gradient is not finite."""
        self._step(request, 1)

    def _step(self, request: Request, rows: int) -> Evaluation:
        assert request.gradient_at is not None
        genotype = np.array(request.gradient_at)
        predictions = self._predictions(request)
        total, losses = 0.0, np.zeros(len(request.items), np.float32)
        with watched(self.engine, request.recipe, self.inputs.chain_rule.wanted(genotype)) as model:
            plan = self.plan(request, model.module, predictions, rows)
            with recomputed(model.module, self.engine.layout) if self.recomputes else nullcontext():
                for batch in plan.losses(model.module):
                    self._backward(batch.total, [request.items[place] for place in batch.places])
                    total += float(batch.total.detach())
                    losses[list(batch.places)] = batch.losses
            strength = self.inputs.loss.distance_to_base * len(request.items) / len(request.whole or request.items)
            if strength:
                total += model.pull_to_base(strength, self._distance_unit())
        gradient = self.inputs.chain_rule.derivatives(genotype, model.derivatives)
        return step_evaluation(total, request.items, losses, gradient.tolist())

    @staticmethod
    def _backward(total: torch.Tensor, items: list[str]) -> None:
        try:
            total.backward()  # type: ignore[no-untyped-call]  # torch says no type
        except NotFiniteError as error:
            which = f"item {items[0]}" if len(items) == 1 else f"{len(items)} items, {items[0]} among them"
            raise NotFiniteError(f"{error} ({which})") from None

    def _predictions(self, request: Request) -> dict[str, Likeliest]:
        """Return the experts' predictions for a request's windows; the resident model holds one expert at a time."""
        windows, found = self.inputs.windows, dict[str, Likeliest]()
        if windows is not None:
            for expert, own in windows.of_expert(request.items).items():
                model = self.engine.load(self.inputs.experts[expert])
                found |= windows.predictions(model, own, self.batch_size, self.evaluator.device)
        return found

    def _distance_unit(self) -> float:
        """Return the mean squared distance of the experts from the base."""
        if self._unit is None:
            norms = squared_norms(self.engine.checkpoints, self.engine.base)
            self._unit = sum(norms.values()) / len(norms) or 1.0
        return self._unit

    def _in_memory(self, work: Callable[[], Evaluation]) -> Evaluation:
        """Return what `work` returns; where memory runs out use smaller batches, then recompute layers, for good."""
        for _ in self._smaller():
            try:
                return work()
            except Exception as problem:
                if not no_memory(problem):
                    raise
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        raise MemoryError(
            "a gradient step does not fit with one item a batch and layers computed again in the backward pass; "
            "write a smaller fitness.max_length, or a strategy.kind without gradients"
        )

    def _smaller(self) -> Iterator[None]:
        """Yield once as things are, then after each change that needs less memory."""
        yield
        while self.batch_size > 1 or not self.recomputes:
            if self.batch_size > 1:
                self.batch_size //= 2
            else:
                self.recomputes = True
            log.warning("%s in a gradient step: from here on %s", OUT_OF_MEMORY, self.how)
            yield

    @property
    def how(self) -> str:
        """The batch size, and whether layers are computed again, in words."""
        rows = f"{self.batch_size} sequence{'s' if self.batch_size > 1 else ''} a batch"
        return f"{rows}, layers computed again in the backward pass" if self.recomputes else rows
