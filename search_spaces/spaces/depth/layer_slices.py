"""Recipes made of whole layers: each copied from a model, or a merge of several, with a merge method of its own.

A recipe has a slice per layer between the embeddings and the final norm with the head, which come from one model.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from search_spaces.recipes.errors import RecipeError, did_you_mean
from search_spaces.recipes.fields import Slice, Source
from search_spaces.recipes.parameter_values import constant
from search_spaces.recipes.recipe import Recipe
from search_spaces.spaces.context import SpaceContext


def copied(model: str, layer: int) -> Slice:
    """Return layer `layer` of the model with that reference, unchanged."""
    return Slice((Source(model, (layer, layer + 1)),), merge_method="passthrough")


def summed(experts: Sequence[str], base: str, layer: int, scale: float) -> Slice:
    """Return layer `layer` as base + `scale` · Σ (expert - base); all are references."""
    layers = (layer, layer + 1)
    sources = [Source(expert, layers, (("weight", constant(scale)),)) for expert in experts]
    return Slice((*sources, Source(base, layers)), base_model=base, merge_method="task_arithmetic")


def layers_of(recipe: Recipe, num_layers: int) -> tuple[Slice, ...]:
    """Return the layers of a recipe that keeps them in place, each as a slice with its own method and base."""
    whole = recipe.expanded(num_layers).canonical()
    return tuple(
        Slice(part.sources, part.parameters, whole.base_of(part), whole.spec_of(part).name)
        for part in whole.slices[1:-1]
    )


def stacked(layers: Iterable[Slice], ends: str, context: SpaceContext) -> Recipe:
    """Return the recipe with these layers, in canonical form.

    Parameters
    ----------
    layers
        A slice with a method of its own for each.
    ends
        Reference of the model that gives embeddings, final norm and head.
    context
        Its first model gives config and tokenizer.
    """
    depth = context.layout.num_layers
    first, last = (Slice((Source(ends, (at, at)),)) for at in (0, depth))
    return Recipe(
        "passthrough",
        (first, *layers, last),
        base_model=next(iter(context.models.values())),
        dtype=context.dtype,
        out_dtype=context.out_dtype,
        seed=context.seed,
    ).canonical()


def parts_of(recipe: Recipe, ends: str, context: SpaceContext) -> tuple[Slice, ...]:
    """Return the layers of a recipe as `stacked` takes them; the inverse of `stacked`.

    Raises
    ------
    RecipeError
        If embeddings and head are not those of the model `ends`, or the recipe has a path or a table of weights.
    """
    if recipe.path is not None or recipe.mixture is not None:
        raise RecipeError("the recipe has a path or a table of weights; give one whose slices are whole layers")
    whole = recipe.expanded(context.layout.num_layers).canonical()
    for part in (whole.slices[0], whole.slices[-1]):
        if whole.spec_of(part).name != "passthrough" or [source.model for source in part.sources] != [ends]:
            raise RecipeError(f"the recipe's embeddings and head are not those of {ends}; take them from it")
    return layers_of(recipe, context.layout.num_layers)


def reference_of(name: str, context: SpaceContext, key: str) -> str:
    """Return the reference of the model with that name; `key` is where the name is written.

    Raises
    ------
    RecipeError
        If there is no such model.
    """
    if name not in context.models:
        raise RecipeError(f"{key}: there is no model '{name}'; {did_you_mean(name, list(context.models))}")
    return context.models[name]
