"""Layer swapping: the outer layers of one expert around the inner layers of another.

Bandarkar et al. 2024, arXiv:2410.01335. A model trained on a language gives the first `bottom` and the last `top`
layers, where models turn text of any language into their own terms and back; a model trained on a task gives those
between.
At each of the two seams, `transition` layers of the task's part are the mean of both models'.

A recipe of this kind is a point in a space of three whole numbers, and a strong baseline for searches with a
coefficient per layer. It is written as `linear`, so that mergekit rebuilds it and a search over linear coefficients can
start from it.
"""

from __future__ import annotations

from typing import Literal

from search_spaces.recipes.errors import RecipeError
from search_spaces.recipes.layout import ModelLayout
from search_spaces.recipes.parameter_values import constant
from search_spaces.recipes.recipe import Recipe, Slice, Source

Donor = Literal["language", "task", "mean"]
_SHARES: dict[str, float] = {"language": 1.0, "task": 0.0, "mean": 0.5}


def layer_swap_recipe(
    language: str,
    task: str,
    layout: ModelLayout | int,
    *,
    bottom: int,
    top: int,
    transition: int = 0,
    embeddings: Donor = "mean",
    head: Donor = "mean",
    base: str | None = None,
    dtype: str | None = "float32",
    out_dtype: str | None = "bfloat16",
) -> Recipe:
    """Return the recipe that swaps the outer layers of `task` for those of `language`.

    Parameters
    ----------
    language, task
        References of the two experts.
    layout
        Their layout, or their number of layers.
    bottom, top
        How many of the first and last layers come from `language`.
    transition
        How many layers after the bottom, and before the top, are the mean of both.
    embeddings, head
        Who gives the tensors before the layers, and those after them (the final norm and the head). A tied
        head is the embeddings.
    base
        Who gives config and tokenizer; None: `task`.
    dtype, out_dtype
        Precision of the arithmetic and of the result.

    Raises
    ------
    RecipeError
        If the counts are negative or add up to more layers than there are, or a donor is unknown.
    """
    count = layout if isinstance(layout, int) else layout.num_layers
    for name, donor in (("embeddings", embeddings), ("head", head)):
        if donor not in _SHARES:
            raise RecipeError(f"{name}: '{donor}' is no donor; write language, task or mean")
    shares = layer_shares(count, bottom=bottom, top=top, transition=transition)
    cuts = [(0, 0), *((layer, layer + 1) for layer in range(count)), (count, count)]
    slices = [
        Slice((_source(language, cut, share), _source(task, cut, 1 - share)))
        for cut, share in zip(cuts, (_SHARES[embeddings], *shares, _SHARES[head]), strict=True)
    ]
    return Recipe("linear", tuple(slices), base_model=base or task, dtype=dtype, out_dtype=out_dtype).canonical()


def layer_shares(num_layers: int, *, bottom: int, top: int, transition: int = 0) -> tuple[float, ...]:
    """Return how much of each layer comes from the outer model: 1, ½ or 0.

    Where the two transitions meet in the middle, they overlap.

    Raises
    ------
    RecipeError
        If a count is negative, or bottom and top add up to more than `num_layers`.
    """
    if min(bottom, top, transition) < 0:
        raise RecipeError(f"bottom {bottom}, top {top}, transition {transition}: write counts of 0 or more")
    if bottom + top > num_layers:
        raise RecipeError(f"bottom {bottom} and top {top} are more than the {num_layers} layers; write smaller ones")

    def share(layer: int) -> float:
        from_edge = min(layer - bottom, num_layers - top - 1 - layer)  # negative in the outer layers
        return 1.0 if from_edge < 0 else 0.5 if from_edge < transition else 0.0

    return tuple(share(layer) for layer in range(num_layers))


def _source(model: str, layers: tuple[int, int], weight: float) -> Source:
    return Source(model, layers, (("weight", constant(weight)),))
