"""Paths through the layers of several models, as passthrough recipes, and which models can have scaled paths.

A path is written as mergekit does, as a passthrough merge with one slice per layer. Sakana's scaling of the residual
stream needs no code in the model. Let the stream be multiplied by w_k > 0 before layer k, for each layer of the path,
and let c_k = w_1 ⋯ w_k. Rescale the stream after layer k by 1/c_k. A layer reads the stream through a norm, which is
invariant to its scale, so its input does not change. Its output must be multiplied by 1/c_k, and only `o_proj` and
`down_proj` write it. So multiplying these two by 1/c_k computes the same function, since the final norm is invariant
to c_L. (Equal up to the epsilon that norms add to the mean square.)
This needs layers that read through a norm and write without one. Gemma 2 and 3, GLM 4 and OLMo 2 have another norm
after attention and MLP, which would remove the factor: their paths cannot be scaled.
"""

from __future__ import annotations

from collections.abc import Sequence

from search_spaces.recipes.errors import RecipeError
from search_spaces.recipes.fields import WRITERS, PathLayer, Slice, Source
from search_spaces.recipes.layout import ModelLayout
from search_spaces.recipes.parameter_values import Condition, Parameters, evaluate, find
from search_spaces.recipes.recipe import Recipe

_READERS = ({"input_layernorm", "post_attention_layernorm"}, {"input_layernorm"})
"""Norms of layers that read through a norm and write without one: one before each part, or one before both."""


def scales_obstacle(layout: ModelLayout) -> str | None:
    """Return why the scales of a path cannot be written into these models; None when they can."""
    for names in layout.layers:
        norms = {name.partition(".")[0] for name in names if "norm" in name.partition(".")[0]}
        extra = sorted(norms - _READERS[0])
        if extra:
            return (
                f"the models' layers have norms besides those before attention and MLP ({', '.join(extra)}), which "
                "would remove a scale of the residual stream or change its use"
            )
        if norms not in _READERS:
            return "the models' layers have no input_layernorm, and only a norm hides a scale of the residual stream"
        missing = [writer for writer in WRITERS if not any(writer in name for name in names)]
        if missing:
            return f"the models' layers have no {missing[0]} that a scale could be written into"
    return None


def path_recipe(
    path: Sequence[PathLayer],
    base: str,
    num_layers: int,
    *,
    dtype: str | None = "float32",
    out_dtype: str | None = None,
) -> Recipe:
    """Return the passthrough recipe of a path, in canonical form: embeddings, final norm and head are `base`'s.

    Parameters
    ----------
    path
        The layers in order.
    base
        Reference of the model that gives all other tensors.
    num_layers
        The base's number of layers.
    dtype, out_dtype
        Precision of the arithmetic and of the result.
    """
    layers = (Slice((Source(at.model or base, (at.layer, at.layer + 1), _scaled(at.scale)),)) for at in path)
    ends = [Slice((Source(base, (at, at)),)) for at in (0, num_layers)]
    slices = (ends[0], *layers, ends[1])
    return Recipe("passthrough", slices, base_model=base, dtype=dtype, out_dtype=out_dtype).canonical()


def path_of(recipe: Recipe, num_layers: int) -> tuple[PathLayer, ...]:
    """Return the path that a passthrough recipe takes; the inverse of `path_recipe`.

    Raises
    ------
    RecipeError
        If it is not a passthrough recipe, or scales other tensors than the writers, or the writers differently.
    """
    if any(spec.name != "passthrough" for spec in recipe.specs):
        raise RecipeError(f"the recipe's merge_method is {recipe.merge_method}; give one with passthrough")
    path = []
    for part in recipe.expanded(num_layers).canonical().slices:
        (source,) = part.sources
        setting = find(source.parameters, "scale")
        factors = {evaluate(setting, writer, 0.0) for writer in WRITERS}
        others = evaluate(setting, "", 0.0)
        if len(factors) > 1 or others not in (None, 1.0) or (not source.num_layers and factors - {None, 1.0}):
            raise RecipeError(
                "the recipe scales tensors other than o_proj and down_proj, or these two differently; "
                "scale both alike, and no others"
            )
        if source.num_layers:
            factor = factors.pop()
            path.append(PathLayer(source.model, source.start, 1.0 if factor is None else float(factor)))
    return tuple(path)


def _scaled(factor: float) -> Parameters:
    if factor == 1.0:
        return ()
    return (("scale", tuple(Condition(factor, writer) for writer in WRITERS)),)
