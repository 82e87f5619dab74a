"""Standard merges, as baselines for the recipes that a search finds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from search_spaces.recipes.errors import RecipeError
from search_spaces.recipes.layout import ModelLayout
from search_spaces.recipes.parameter_values import constant
from search_spaces.recipes.recipe import Recipe, Slice, Source

TASK_ARITHMETIC_SCALE = 0.3
"""Factor of every task vector, the choice of arXiv:2212.04089 without tuning."""


def uniform_recipe(
    models: Mapping[str, str],
    layout: ModelLayout | int,
    method: str = "linear",
    *,
    dtype: str | None = "float32",
    out_dtype: str | None = "bfloat16",
) -> Recipe:
    """Return the plain average of the experts.

    Parameters
    ----------
    models
        Name to reference, the base first, which only gives config and tokenizer.
    layout
        The models' layout, or their number of layers.
    method
        ``linear``, or a method with a base and weights, which are all 1 / (number of experts).
    dtype, out_dtype
        Precision of the arithmetic and of the result.

    Raises
    ------
    RecipeError
        If there are no experts, or the method has no weights.
    """
    base, *experts = _base_and_experts(models)
    layers = _all_layers(layout)
    weight = 1.0 if method == "linear" else 1.0 / len(experts)  # linear divides by the sum itself
    sources = [Source(expert, layers, (("weight", constant(weight)),)) for expert in experts]
    if method != "linear":
        sources.append(Source(base, layers))
    return Recipe(method, (Slice(tuple(sources)),), base_model=base, dtype=dtype, out_dtype=out_dtype)


def task_arithmetic_recipe(
    models: Mapping[str, str],
    layout: ModelLayout | int,
    scale: float = TASK_ARITHMETIC_SCALE,
    *,
    dtype: str | None = "float32",
    out_dtype: str | None = "bfloat16",
) -> Recipe:
    """Return base plus `scale` times every expert's task vector (arXiv:2212.04089).

    Parameters
    ----------
    models
        Name to reference, the base first.
    layout
        The models' layout, or their number of layers.
    scale
        The factor; by default the paper's choice without tuning.
    dtype, out_dtype
        Precision of the arithmetic and of the result.

    Raises
    ------
    RecipeError
        If there are no experts.
    """
    base, *experts = _base_and_experts(models)
    layers = _all_layers(layout)
    sources = [Source(expert, layers, (("weight", constant(scale)),)) for expert in experts]
    whole = Slice((*sources, Source(base, layers)))
    return Recipe("task_arithmetic", (whole,), base_model=base, dtype=dtype, out_dtype=out_dtype)


def source_recipe(
    model: str,
    layout: ModelLayout | int,
    *,
    dtype: str | None = "float32",
    out_dtype: str | None = "bfloat16",
) -> Recipe:
    """Return the recipe that is one model unchanged.

    Parameters
    ----------
    model
        Reference of the model.
    layout
        The model's layout, or its number of layers.
    dtype, out_dtype
        Precision of the arithmetic and of the result.
    """
    whole = Slice((Source(model, _all_layers(layout)),))
    return Recipe("passthrough", (whole,), base_model=model, dtype=dtype, out_dtype=out_dtype)


def weighted_recipe(
    method: str,
    models: Mapping[str, str],
    layout: ModelLayout | int,
    weights: Mapping[str, float],
    *,
    dtype: str | None = "float32",
    out_dtype: str | None = "bfloat16",
) -> Recipe:
    """Return the weighted sum of some models, as ``linear`` or ``task_arithmetic``; or one of two models as ``slerp``.

    Parameters
    ----------
    method
        One of these three.
    models
        Name to reference, the base first.
    layout
        The models' layout, or their number of layers.
    weights
        By name, summing to one; models that are absent have none.
    dtype, out_dtype
        Precision of the arithmetic and of the result.

    Raises
    ------
    RecipeError
        If ``slerp`` is asked for anything but a base, an expert, and all the weight on one of them.
    """
    base, *experts = models
    layers = _all_layers(layout)
    settings: dict[str, Any] = {"base_model": models[base], "dtype": dtype, "out_dtype": out_dtype}
    if method == "slerp":
        t = weights.get(experts[0], 0.0)
        if len(experts) > 1 or t not in (0, 1):
            raise RecipeError(f"slerp has two models, and {dict(weights)} is neither of them; write linear")
        whole = Slice((Source(models[experts[0]], layers), Source(models[base], layers)))
        return Recipe(method, (whole,), parameters=(("t", constant(t)),), **settings)
    named = experts if method == "task_arithmetic" else list(models)
    sources = [Source(models[name], layers, (("weight", constant(weights.get(name, 0.0))),)) for name in named]
    if method == "task_arithmetic":
        sources.append(Source(models[base], layers))
    return Recipe(method, (Slice(tuple(sources)),), **settings)


def _all_layers(layout: ModelLayout | int) -> tuple[int, int]:
    return 0, layout if isinstance(layout, int) else layout.num_layers


def _base_and_experts(models: Mapping[str, str]) -> list[str]:
    if len(models) < 2:
        raise RecipeError(f"models: {len(models)} given; name a base and at least one expert")
    return list(models.values())
