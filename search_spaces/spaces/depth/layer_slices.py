"""Recipes made of whole layers: each copied from a model, or a merge of several, with a merge method of its own.

A recipe has a slice per layer between the embeddings and the final norm with the head, which come from one model.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

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


def ends_of(model: str, num_layers: int) -> tuple[Slice, Slice]:
    """Return the embeddings, and the final norm with the head, of the model with that reference."""
    first, last = (Slice((Source(model, (at, at)),), merge_method="passthrough") for at in (0, num_layers))
    return first, last


def slices_of(recipe: Recipe, num_layers: int) -> tuple[Slice, ...]:
    """Return all slices of a recipe, each with its own method and base: L + 2 of them, or fewer layers or more."""
    whole = recipe.expanded(num_layers).canonical()
    return tuple(
        Slice(part.sources, part.parameters, whole.base_of(part), whole.spec_of(part).name) for part in whole.slices
    )


def stacked(layers: Iterable[Slice], ends: tuple[Slice, Slice], context: SpaceContext) -> Recipe:
    """Return the recipe with these layers between the two ends, in canonical form.

    Parameters
    ----------
    layers, ends
        Slices with methods of their own.
    context
        Its first model gives config and tokenizer.
    """
    first, last = ends
    return Recipe(
        first.merge_method or "passthrough",
        (first, *layers, last),
        base_model=next(iter(context.models.values())),
        dtype=context.dtype,
        out_dtype=context.out_dtype,
        seed=context.seed,
    ).canonical()


def layers_of(recipe: Recipe, ends: tuple[Slice, Slice], anchor: str, context: SpaceContext) -> tuple[Slice, ...]:
    """Return the layers of a recipe as `stacked` takes them; the inverse of `stacked`.

    Parameters
    ----------
    recipe
        Any.
    ends
        Those that it must have.
    anchor
        What the ends are from, for the error.
    context
        The models.

    Raises
    ------
    RecipeError
        If embeddings and head are others, or the recipe has a path or a table of weights.
    """
    if recipe.path is not None or recipe.mixture is not None:
        raise RecipeError("the recipe has a path or a table of weights; give one whose slices are whole layers")
    depth = context.layout.num_layers
    first, *layers, last = slices_of(recipe, depth)
    wanted = slices_of(stacked([copied(context.models[next(iter(context.models))], 0)], ends, context), depth)
    if (_without_place(first), _without_place(last)) != (_without_place(wanted[0]), _without_place(wanted[-1])):
        raise RecipeError(f"the recipe's embeddings and head are not those of {anchor}; take them from it")
    return tuple(layers)


def _without_place(end: Slice) -> Slice:
    """Return an end without the number of the layer beside it, which means nothing."""
    return replace(end, sources=tuple(replace(source, layer_range=None) for source in end.sources))


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
