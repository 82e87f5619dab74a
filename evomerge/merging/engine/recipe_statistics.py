"""The calibration statistics that recipes need: measured before any weight is written, and kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from evomerge.merging.calibration.kinds import JOINT
from evomerge.merging.calibration.parts import WHOLE, Statistics
from evomerge.merging.calibration.statistics import joint_statistics, memory, statistics
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
OF_FIRST = "first."
"""Before the name of one that is measured of the first model alone."""
OF_FURTHER = "further."
"""Before the name of one that is measured of all models but the first."""


class Member(NamedTuple):
    """A model and its text."""

    model: str
    text: str


class Measured(NamedTuple):
    """What is measured of which models on which texts; of a kind of several models together, of all."""

    kind: str
    members: tuple[Member, ...]


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
        for each in _needs(recipe, plans):
            if each not in self._measured:
                self._measured[each] = self._measure(each)

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
        key = Measured("activations", (Member(plan.base.model, text),))
        measured = self._measured.get(key, {}).get(plan.base.tensor)
        return None if measured is None else shares(measured.to(self._sources.device_of(plan.name)))

    def of_tensor(self, method: MergeMethod, plan: TensorPlan, at: int, recipe: Recipe) -> Mapping[str, Tensor]:
        """Return the method's statistics for the tensor of one model, without those that it has none of."""
        found: dict[str, Tensor] = {}
        for name in method.spec.statistics:
            each = _measured(name, plan, at, recipe)
            if each is None:
                continue
            measured = self._measured[each]
            of = plan.base if name.startswith(OF_BASE) else plan.contributions[at]
            assert of is not None, "a method that measures the base requires one"
            number = f"{at}:" if each.kind in JOINT else ""
            values = measured.get(f"{number}{of.tensor}", measured.get(f"{number}{WHOLE}"))
            if values is not None:
                found[name] = values.to(self._sources.device_of(plan.name))
        return found

    def key(self, method: MergeMethod, plan: TensorPlan, at: int, recipe: Recipe) -> tuple[object, ...]:
        """Return what the method's statistics of one model depend on."""
        return at, *(_measured(name, plan, at, recipe) for name in method.spec.statistics)

    def _measure(self, each: Measured) -> Statistics:
        dtypes = sorted({str(self._dtype(model)).removeprefix("torch.") for model, _ in each.members})

        def load(at: int) -> PreTrainedModel:
            self._check_memory(each)
            return self._load(each.members[at].model)

        members = [(self._sources.checkpoint(model), Path(text)) for model, text in each.members]
        if each.kind in JOINT:
            return joint_statistics(each.kind, members, load, dtype="-".join(dtypes))
        return statistics(each.kind, *members[0], lambda: load(0), dtype=dtypes[0])

    def _memory(self, each: Measured) -> int:
        return sum(
            memory(each.kind, self._sources.checkpoint(model), Path(text), self._dtype(model).itemsize)
            for model, text in each.members
        )

    def _check_memory(self, each: Measured) -> None:
        free = free_memory(self._sources.device, Share())
        room, need = free.host if free.device is None else free.device, self._memory(each)
        if need > room:
            model, text = each.members[0]
            raise CheckpointError(
                f"{text}: measuring {each.kind} of {model} holds {need / 1e9:.1f} GB beside the model, and "
                f"{room / 1e9:.1f} GB are free; write a shorter text, free memory, or use a method without {each.kind}"
            )


def _needs(recipe: Recipe, plans: Sequence[TensorPlan]) -> Iterator[Measured]:
    """Yield what the recipe's tensors need, each once, in the order of the plans."""
    if recipe.calibration_text is None:
        return
    wanted: dict[Measured, None] = {}
    for plan in plans:
        if plan.base is not None and PARAMETER in plan.parameters:
            wanted[Measured("activations", (_member(plan.base, plan.base, recipe),))] = None
        for name in implementation(plan.method).spec.statistics:
            found = (_measured(name, plan, at, recipe) for at in range(len(plan.contributions)))
            wanted.update(dict.fromkeys(each for each in found if each is not None))
    yield from wanted


def _measured(name: str, plan: TensorPlan, at: int, recipe: Recipe) -> Measured | None:
    """Return what a statistic's name means for one of the models; None if it is measured of others only."""
    if (name.startswith(OF_FIRST) and at > 0) or (name.startswith(OF_FURTHER) and at == 0):
        return None
    kind, part = name.rpartition(".")[2], plan.contributions[at]
    if kind in JOINT:
        return Measured(kind, tuple(_member(each, each, recipe) for each in plan.contributions))
    of = plan.base if name.startswith(OF_BASE) else part
    assert of is not None, "a method that measures the base requires one"
    return Measured(kind, (_member(of, part, recipe),))


def _member(of: Contribution, reader: Contribution, recipe: Recipe) -> Member:
    """Return a model with the text of `reader`."""
    text = recipe.text_of(reader.model)
    assert text is not None, "a recipe of such a method is not valid without"
    return Member(of.model, text)
