"""What mergekit 0.1.5 cannot rebuild to the same weights, and the nearest recipe that it can."""

from __future__ import annotations

from dataclasses import replace

from search_spaces.recipe import Recipe
from search_spaces.settings import find

# mergekit rounds to `dtype` after every step of these; evomerge accumulates in float32 and rounds once.
_ROUNDED_AT_EVERY_STEP = ("task_arithmetic", "ties", "dare_ties")
_EXACT_DTYPES = ("float32", "float64")

_MASKS = (
    "dare_ties masks: evomerge draws each from the seed, the model and the tensor's name and rescales by "
    "1/density; mergekit draws them from one generator and rescales by the sum of magnitudes"
)


def obstacles(recipe: Recipe) -> tuple[str, ...]:
    """Return a sentence for each reason why mergekit would give other weights; nothing when it would not."""
    found = []
    if _draws_masks(recipe):
        found.append(_MASKS)
    if _loses_precision(recipe):
        found.append(
            f"dtype {recipe.dtype or 'of the sources'}: mergekit rounds to it after every step of "
            f"{recipe.merge_method}; evomerge computes in float32 and rounds once"
        )
    return tuple(found)


def rounded(recipe: Recipe) -> tuple[Recipe, tuple[str, ...]]:
    """Return the nearest recipe that mergekit reads in full, and a sentence for each thing given up."""
    notes = []
    if _draws_masks(recipe):
        notes.append(
            "dare_ties masks: the seed is dropped; mergekit draws masks of its own (give it --random-seed)"
        )
    if _loses_precision(recipe):
        out_dtype = recipe.out_dtype or recipe.dtype
        recipe = replace(recipe, dtype="float32", out_dtype=out_dtype)
        saved = (
            f"out_dtype {out_dtype} keeps the result's" if out_dtype else "the result is saved in it as well"
        )
        notes.append(f"dtype: float32 is written for the arithmetic; {saved}")
    return replace(recipe, seed=None), tuple(notes)


def _draws_masks(recipe: Recipe) -> bool:
    """Whether any density is below 1: only then is something drawn."""
    if not recipe.spec.stochastic:
        return False
    scopes = [source.parameters for part in recipe.canonical().slices for source in part.sources]
    values = [condition.value for scope in scopes for condition in find(scope, "density")]
    return any(min(value) < 1 if isinstance(value, tuple) else value < 1 for value in values)


def _loses_precision(recipe: Recipe) -> bool:
    return recipe.merge_method in _ROUNDED_AT_EVERY_STEP and recipe.dtype not in _EXACT_DTYPES
