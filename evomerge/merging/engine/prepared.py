"""What merge methods prepare for a tensor before they know coefficients: computed once and kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from evomerge.merging.engine.placed_sources import PlacedSources
from evomerge.merging.engine.recipe_statistics import RecipeStatistics
from evomerge.merging.methods.blocks import TensorInfo
from evomerge.merging.methods.registry import MergeMethod, Prepared, SourceGroup, SourceTensor
from search_spaces.recipes.recipe import Recipe
from search_spaces.recipes.resolve import Contribution, TensorPlan

Key: TypeAlias = tuple[object, ...]


def prepared_key(prepare: object, plan: TensorPlan, parts: tuple[Contribution, ...], seed: int = 0) -> Key:
    """Return what prepared state depends on; methods with the same `prepare` share it."""
    base = None if plan.base is None else (plan.base.model, plan.base.tensor)
    return prepare, base, seed, *((part.model, part.tensor) for part in parts)


class PreparedCache:
    """Prepared state of one engine, by method, source tensors, base and seed."""

    def __init__(self, sources: PlacedSources, statistics: RecipeStatistics) -> None:
        self._sources = sources
        self._statistics = statistics
        self._states: dict[Key, Prepared] = {}

    def __len__(self) -> int:
        """Return the number of states that are kept."""
        return len(self._states)

    def of_models(
        self, method: MergeMethod, plan: TensorPlan, recipe: Recipe, info: TensorInfo, *, keep: bool = True
    ) -> list[Prepared]:
        """Return what the method prepares for each model; an empty list if it prepares nothing per model.

        Parameters
        ----------
        method, plan, recipe, info
            The merge of one tensor.
        keep
            Whether to keep new states for later calls.
        """
        if method.prepare is None:
            return []
        return [self._of_model(method, plan, at, recipe, info, keep) for at in range(len(plan.contributions))]

    def of_all(
        self, method: MergeMethod, plan: TensorPlan, recipe: Recipe, info: TensorInfo, *, keep: bool = True
    ) -> Prepared | None:
        """Return what the method prepares for all models together; None if it prepares nothing of that kind."""
        prepare = method.prepare_all
        if prepare is None:
            return None
        key = (*prepared_key(prepare, plan, plan.contributions), self._sources.device_of(plan.name))
        if method.spec.statistics:
            key = (*key, *(self._statistics.key(method, plan, at, recipe) for at in range(len(plan.contributions))))

        def make() -> Prepared:
            models = tuple(self._sources.on_device(part, plan) for part in plan.contributions)
            measured = tuple(
                self._statistics.of_tensor(method, plan, at, recipe) for at in range(len(plan.contributions))
            )
            return prepare(SourceGroup(models, self._sources.base_on_device(plan), info, measured))

        return self._get(key, make, keep)

    def _of_model(
        self, method: MergeMethod, plan: TensorPlan, at: int, recipe: Recipe, info: TensorInfo, keep: bool
    ) -> Prepared:
        prepare, seed, part = method.prepare, recipe.seed or 0, plan.contributions[at]
        assert prepare is not None, "asked for by of_models"
        key = prepared_key(prepare, plan, (part,), seed if method.spec.stochastic else 0)
        key = (*key, self._sources.device_of(plan.name))
        if method.spec.statistics:
            key = (*key, self._statistics.key(method, plan, at, recipe))

        def make() -> Prepared:
            source = SourceTensor(
                part.tensor,
                self._sources.on_device(part, plan),
                self._sources.base_on_device(plan),
                seed,
                info,
                self._sources.model(plan, part),
                self._statistics.of_tensor(method, plan, at, recipe),
            )
            return prepare(source)

        return self._get(key, make, keep)

    def _get(self, key: Key, make: Callable[[], Prepared], keep: bool) -> Prepared:
        state = self._states.get(key)
        if state is None:
            state = make()
            if keep:
                self._states[key] = state
        return state
