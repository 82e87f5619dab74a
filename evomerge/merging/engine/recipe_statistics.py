"""The calibration statistics that recipes need: measured before any weight is written, and kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from evomerge.merging.calibration.parts import WHOLE, Statistics
from evomerge.merging.calibration.statistics import memory, statistics
from evomerge.merging.engine.activation_informed import PARAMETER, shares
from evomerge.merging.engine.placed_sources import PlacedSources
from evomerge.merging.engine.placement import Share, free_memory
from evomerge.merging.methods import implementation
from evomerge.merging.methods.registry import MergeMethod
from evomerge.merging.sources.errors import CheckpointError
from search_spaces.recipes.recipe import Recipe
from search_spaces.recipes.resolve import Contribution, TensorPlan

if TYPE_CHECKING:
    from transformers import PreTrainedModel

OF_BASE = "base."
"""Before the name of a statistic that is measured of the base, on the model's text."""


class Measured(NamedTuple):
    """What is measured of which model on which text."""

    kind: str
    model: str
    text: str


class RecipeStatistics:
    """Statistics of the sources on recipes' calibration texts.

    Parameters
    ----------
    sources
        The opened sources.
    load
        Gives a source's model with its weights, by reference; called only for what is not in the cache.
    dtype
        What the model of a source computes in, by its reference.
    """

    def __init__(
        self,
        sources: PlacedSources,
        load: Callable[[str], PreTrainedModel],
        dtype: Callable[[str], torch.dtype] = lambda _: torch.float32,
    ) -> None:
        self._sources = sources
        self._load = load
        self._dtype = dtype
        self._measured: dict[Measured, Statistics] = {}

    def measure(self, recipe: Recipe, plans: tuple[TensorPlan, ...]) -> None:
        """Measure what the recipe needs on its calibration texts.

        Raises
        ------
        CheckpointError
            If a text cannot be used, or the free memory is too small.
        """
        missing = [each for each in _needs(recipe, plans) if each not in self._measured]
        for each in missing:
            checkpoint, dtype = self._sources.checkpoint(each.model), self._dtype(each.model)

            def load(each: Measured = each) -> PreTrainedModel:
                self._check_memory(each)
                return self._load(each.model)

            self._measured[each] = statistics(
                each.kind, checkpoint, Path(each.text), load, dtype=str(dtype).removeprefix("torch.")
            )

    def memory(self, recipe: Recipe, plans: Sequence[TensorPlan]) -> int:
        """Return the most bytes that measuring holds beside a model and one window's activations."""
        return max(map(self._memory, _needs(recipe, plans)), default=0)

    def activation_shares(self, recipe: Recipe, plan: TensorPlan) -> Tensor | None:
        """Return each input channel's share of the largest activation, float32[N].

        None for tensors that activation-informed merging leaves as they are merged.
        """
        if plan.base is None or plan.base.tensor in self._sources.layout.embeddings:
            return None
        text = recipe.text_of(plan.base.model)
        if text is None:
            return None
        measured = self._measured.get(Measured("activations", plan.base.model, text), {}).get(plan.base.tensor)
        return None if measured is None else shares(measured.to(self._sources.device))

    def of_tensor(
        self, method: MergeMethod, part: Contribution, base: Contribution | None, recipe: Recipe
    ) -> Mapping[str, Tensor]:
        """Return the method's statistics for a source tensor, without those that it has none of."""
        found: dict[str, Tensor] = {}
        for name in method.spec.statistics:
            of = base if name.startswith(OF_BASE) else part
            assert of is not None, "a method that measures the base requires one"
            measured = self._measured[_measured(name, of, part, recipe)]
            values = measured.get(of.tensor, measured.get(WHOLE))
            if values is not None:
                found[name] = values.to(self._sources.device)
        return found

    def _memory(self, each: Measured) -> int:
        number = torch.empty((), dtype=self._dtype(each.model)).element_size()
        return memory(each.kind, self._sources.checkpoint(each.model), Path(each.text), number)

    def _check_memory(self, each: Measured) -> None:
        free = free_memory(self._sources.device, Share())
        room, need = free.host if free.device is None else free.device, self._memory(each)
        if need > room:
            raise CheckpointError(
                f"{each.text}: measuring {each.kind} of {each.model} holds {need / 1e9:.1f} GB beside the model, and "
                f"{room / 1e9:.1f} GB are free; write a shorter text, free memory, or use a method without {each.kind}"
            )


def _needs(recipe: Recipe, plans: Sequence[TensorPlan]) -> Iterator[Measured]:
    """Yield what the recipe's tensors need, each once, in the order of the plans."""
    if recipe.calibration_text is None:
        return
    wanted: dict[Measured, None] = {}
    for plan in plans:
        if plan.base is not None and PARAMETER in plan.parameters:
            wanted[_measured("activations", plan.base, plan.base, recipe)] = None
        for name in implementation(plan.method).spec.statistics:
            for part in plan.contributions:
                of = plan.base if name.startswith(OF_BASE) else part
                assert of is not None, "a method that measures the base requires one"
                wanted[_measured(name, of, part, recipe)] = None
    yield from wanted


def _measured(name: str, of: Contribution, reader: Contribution, recipe: Recipe) -> Measured:
    """Return what a statistic's name means for a model, on the text of `reader`."""
    text = recipe.text_of(reader.model)
    assert text is not None, "a recipe of such a method is not valid without"
    return Measured(name.removeprefix(OF_BASE), of.model, text)
