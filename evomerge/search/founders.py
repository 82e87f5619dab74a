"""Founders of a search: the recipes that need no search, as points of the search's space."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from evomerge.runs.result import START, Entry
from evomerge.strategies.base import Genotype
from search_spaces.recipes.baselines import weighted_recipe
from search_spaces.recipes.errors import RecipeError
from search_spaces.recipes.layout import ModelLayout
from search_spaces.recipes.recipe import Recipe
from search_spaces.recipes.resolve import difference, model_weights
from search_spaces.spaces.space import SearchSpace

SPELLINGS = ("linear", "task_arithmetic", "slerp")
"""Methods that a weighted sum of models can be written with."""

_SETTINGS = ("out_dtype", "tokenizer_source", "tokens", "adapters")
"""Settings of a recipe that change the model and no coefficient."""


@dataclass(frozen=True)
class Founder:
    """One of them.

    Attributes
    ----------
    entry
        Its row in the final table, with the recipe as one would write it.
    genotype
        The point of the space that gives the same model, float64[G].
    recipe
        The recipe that the space has for it.
    exact
        Whether both recipes give the same model to the last setting, vocabulary included, so that one's answers are the
        other's.
    """

    entry: Entry
    genotype: Genotype
    recipe: Recipe
    exact: bool = True


def founders(
    models: Mapping[str, str], layout: ModelLayout, baselines: Sequence[Entry], space: SearchSpace
) -> list[Founder]:
    """Return the baselines that are points of the space, and its start if it is none of them.

    Two of them may be one point: with one expert, the uniform average is this expert.

    Parameters
    ----------
    models
        Name to reference, the base first.
    layout
        The models' layout.
    baselines
        Sources, uniform average and task arithmetic.
    space
        The search's.
    """
    first = space.settled(space.start.copy())
    start = Founder(Entry(START, "start", space.decode(first)), first, space.decode(first))
    found = []
    for entry in baselines:
        point = expressed(entry.recipe, models, layout, space)
        if point is None:
            continue
        recipe = space.decode(point)
        exact = all(getattr(recipe, name) == getattr(entry.recipe, name) for name in _SETTINGS)
        is_start = difference(recipe, start.recipe, layout) is None
        found.append(Founder(entry, first, start.recipe, exact) if is_start else Founder(entry, point, recipe, exact))
    return found if any(founder.genotype is first for founder in found) else [*found, start]


def expressed(recipe: Recipe, models: Mapping[str, str], layout: ModelLayout, space: SearchSpace) -> Genotype | None:
    """Return the point of a space that gives the same model as a recipe, whatever the methods; None: it has none.

    Parameters
    ----------
    recipe
        Over these models.
    models
        Name to reference, the base first.
    layout
        The models' layout.
    space
        Any space over them.
    """
    for spelling in _spellings(recipe, models, layout):
        try:
            point = space.settled(space.encode(spelling))
            if difference(space.decode(point), recipe, layout) is None:
                return point
        except RecipeError:
            continue
    return None


def _spellings(recipe: Recipe, models: Mapping[str, str], layout: ModelLayout) -> Iterator[Recipe]:
    yield recipe
    weights = model_weights(recipe, layout)
    if weights is None:
        return
    by_name = {name: weights.get(reference, 0.0) for name, reference in models.items()}
    for method in SPELLINGS:
        try:
            yield weighted_recipe(method, models, layout, by_name, out_dtype=recipe.out_dtype)
        except RecipeError:
            continue  # the method takes another number of models
