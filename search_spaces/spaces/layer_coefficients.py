"""``kind: layer_coefficients``: the config, and the space over coefficients that it describes.

One method is a `CoefficientSpace`. Several are a `MethodChoiceSpace` (one method for the whole merge) or a
`MethodGroupsSpace` (one for each group of layers). Start and fixed genes are applied on top.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from search_spaces.recipes.baselines import TASK_ARITHMETIC_SCALE
from search_spaces.recipes.errors import RecipeError
from search_spaces.spaces.coefficient_config import CoefficientSettings, Range
from search_spaces.spaces.coefficients import CoefficientSpace, RecipeSettings
from search_spaces.spaces.context import SpaceContext
from search_spaces.spaces.expert_masks import ExpertMaskSpace
from search_spaces.spaces.layer_groups import is_weight_of
from search_spaces.spaces.method_choice import MethodChoiceSpace
from search_spaces.spaces.method_groups import MethodGroupsSpace
from search_spaces.spaces.registry import beginning_at, recipe_from, register_space
from search_spaces.spaces.space import SearchSpace
from search_spaces.spaces.wrappers import FixedGenesSpace, TiedGenesSpace

__all__ = ["STARTS", "CoefficientConfig", "Range", "metagpt_weights"]

STARTS = ("uniform", "task_arithmetic", "metagpt")
"""Starts by name; any other start is a recipe file."""


@register_space
class CoefficientConfig(CoefficientSettings):
    """One coefficient per group of layers, group of modules, model and parameter of the merge method."""

    def build(self, context: SpaceContext) -> SearchSpace:
        """Return the space that the settings describe over the models of `context`.

        Raises
        ------
        RecipeError
            If the models or the fixed genes do not fit, or the start cannot be read or is not a point of the space.
        """
        several = MethodChoiceSpace if self.method_scope == "merge" else MethodGroupsSpace
        kind = CoefficientSpace if isinstance(self.method, str) else several
        settings = RecipeSettings(dtype=context.dtype, out_dtype=context.out_dtype, seed=context.seed)
        space = kind(self, context.models, context.layout, **settings)
        if self.start in STARTS:
            weights = _named_weights(str(self.start), context)
            space = space.starting_at(space.weighted(weights))
            space.notes = tuple(_moved_weights(str(self.start), weights, space))
        whole = self._wrapped(space, context)
        if self.start is not None and self.start not in STARTS:
            recipe = recipe_from(self.start, "space.start", ", ".join(STARTS))
            whole = beginning_at(self.start, recipe, whole, context)
        return whole

    def _wrapped(self, space: SearchSpace, context: SpaceContext) -> SearchSpace:
        """Return `space` with masks, genes of fixed value, and ties, in this order: each may name the one before."""
        if self.masks != "none":
            groups = self.groups_of(context.layout) if self.mask_scope == "layers" else None
            space = ExpertMaskSpace(space, list(context.models.items())[1:], self.masks, groups)
        if self.fixed_genes:
            space = FixedGenesSpace(space, self.fixed_genes)
            if not space.active(space.start).any():
                raise RecipeError("space.fixed: all experts are off, so no other gene has an effect; remove an entry")
        return TiedGenesSpace(space, self.ties) if self.ties else space


def _named_weights(start: str, context: SpaceContext) -> dict[str, float]:
    """Return the weight of each expert at a start that has a name."""
    _, *experts = context.models
    if start == "uniform":
        return dict.fromkeys(experts, 1 / len(experts))
    if start == "task_arithmetic":
        return dict.fromkeys(experts, TASK_ARITHMETIC_SCALE)
    if context.squared_norms is None:
        raise RecipeError("space.start: metagpt needs the models' weights; write uniform or task_arithmetic")
    return metagpt_weights(context.squared_norms())


def _moved_weights(start: str, weights: Mapping[str, float], space: SearchSpace) -> Iterator[str]:
    """Yield a sentence for each expert whose weight at the start is outside the range that is searched."""
    for name, weight in weights.items():
        own = [gene for gene in space.genes if is_weight_of(name, gene.name)]
        outside = next((gene for gene in own if not gene.low <= weight <= gene.high), None)
        if outside is not None:
            yield (
                f"space.start: {start} has {weight:.3g} for {name}, outside the range {outside.low:g} to "
                f"{outside.high:g} of {outside.name}; the search begins at its end; widen space.weight to contain it"
            )


def metagpt_weights(squared_norms: Mapping[str, float]) -> dict[str, float]:
    """Return each expert's share of the squared norms of the task vectors (arXiv:2406.11385)."""
    total = sum(squared_norms.values())
    if not total:
        return dict.fromkeys(squared_norms, 1 / len(squared_norms))  # experts that equal the base
    return {name: norm / total for name, norm in squared_norms.items()}
