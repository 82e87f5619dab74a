"""The calibration statistics that recipes need: measured before any weight is written, and kept."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from evomerge.merging.engine.activation_informed import PARAMETER, shares
from evomerge.merging.engine.calibration_statistics import Statistics, statistics
from evomerge.merging.engine.placed_sources import PlacedSources
from evomerge.merging.methods import implementation
from evomerge.merging.methods.registry import MergeMethod
from search_spaces.recipes.recipe import Recipe
from search_spaces.recipes.resolve import Contribution, TensorPlan

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class RecipeStatistics:
    """Statistics of the sources on recipes' calibration texts.

    Parameters
    ----------
    sources
        The opened sources.
    load
        Gives a source's model with its weights, by reference; called only for what is not in the cache.
    """

    def __init__(self, sources: PlacedSources, load: Callable[[str], PreTrainedModel]) -> None:
        self._sources = sources
        self._load = load
        self._measured: dict[tuple[str, str, str], Statistics] = {}

    def measure(self, recipe: Recipe, plans: tuple[TensorPlan, ...]) -> None:
        """Measure what the recipe needs on its calibration text."""
        if recipe.calibration_text is None:
            return
        wanted: dict[tuple[str, str], None] = {}  # a set in the order of the plans
        for plan in plans:
            if plan.base is not None and PARAMETER in plan.parameters:
                wanted["activations", plan.base.model] = None
            needed = implementation(plan.method).spec.statistic
            if needed is not None:
                wanted.update(dict.fromkeys((needed, part.model) for part in plan.contributions))
        text = recipe.calibration_text
        for kind, model in wanted:
            if (kind, model, text) not in self._measured:
                checkpoint, load = self._sources.checkpoint(model), partial(self._load, model)
                self._measured[kind, model, text] = statistics(kind, checkpoint, Path(text), load)

    def activation_shares(self, recipe: Recipe, plan: TensorPlan) -> Tensor | None:
        """Return each input channel's share of the largest activation, float32[N].

        None for tensors that activation-informed merging leaves as they are merged.
        """
        if recipe.calibration_text is None or plan.base is None or plan.base.tensor in self._sources.layout.embeddings:
            return None
        key = ("activations", plan.base.model, recipe.calibration_text)
        measured = self._measured.get(key, {}).get(plan.base.tensor)
        return None if measured is None else shares(measured.to(self._sources.device))

    def of_tensor(self, method: MergeMethod, part: Contribution, recipe: Recipe) -> Tensor | None:
        """Return the method's statistic for a source tensor, flat; None if the method needs none."""
        if method.spec.statistic is None:
            return None
        assert recipe.calibration_text is not None, "a recipe of such a method is not valid without"
        measured = self._measured[method.spec.statistic, part.model, recipe.calibration_text]
        return measured[part.tensor].reshape(-1).to(self._sources.device)
