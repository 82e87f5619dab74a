"""``kind: layer_coefficients``: the config, and the space over coefficients that it describes.

One method is a `CoefficientSpace`. Several are a `MethodChoiceSpace` (one method for the whole merge) or a
`MethodGroupsSpace` (one for each group of layers). Start and fixed genes are applied on top.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from search_spaces.recipes import mergekit_yaml
from search_spaces.recipes.baselines import TASK_ARITHMETIC_SCALE
from search_spaces.recipes.errors import RecipeError
from search_spaces.spaces.coefficient_config import CoefficientSettings, Range
from search_spaces.spaces.coefficients import CoefficientSpace, RecipeSettings
from search_spaces.spaces.context import SpaceContext
from search_spaces.spaces.method_choice import MethodChoiceSpace
from search_spaces.spaces.method_groups import MethodGroupsSpace
from search_spaces.spaces.registry import register_space
from search_spaces.spaces.space import Genotype, SearchSpace
from search_spaces.spaces.wrappers import FixedGenesSpace

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
        if self.start is not None:
            space = space.starting_at(_start(self.start, space, context.models, context.squared_norms))
        return FixedGenesSpace(space, self.fixed_genes) if self.fixed_genes else space


def _start(
    start: str,
    space: CoefficientSpace | MethodChoiceSpace | MethodGroupsSpace,
    models: Mapping[str, str],
    squared_norms: Callable[[], Mapping[str, float]] | None,
) -> Genotype:
    _, *experts = models
    if start == "uniform":
        return space.weighted(dict.fromkeys(experts, 1 / len(experts)))
    if start == "task_arithmetic":
        return space.weighted(dict.fromkeys(experts, TASK_ARITHMETIC_SCALE))
    if start == "metagpt":
        if squared_norms is None:
            raise RecipeError("space.start: metagpt needs the models' weights; write uniform or task_arithmetic")
        return space.weighted(metagpt_weights(squared_norms()))
    if not Path(start).is_file():
        raise RecipeError(f"space.start: there is no file {start}; write one, or {', '.join(STARTS)}")
    try:
        return space.encode(mergekit_yaml.read(start))
    except RecipeError as error:
        raise RecipeError(f"space.start: {error}") from None


def metagpt_weights(squared_norms: Mapping[str, float]) -> dict[str, float]:
    """Return each expert's share of the squared norms of the task vectors (arXiv:2406.11385)."""
    total = sum(squared_norms.values())
    if not total:
        return dict.fromkeys(squared_norms, 1 / len(squared_norms))  # experts that equal the base
    return {name: norm / total for name, norm in squared_norms.items()}
