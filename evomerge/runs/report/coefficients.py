"""What the found recipe is made of: its coefficients by layer, model and module, or its path through layers."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

from evomerge.runs.report.contents import Contents
from search_spaces.recipes.errors import RecipeError
from search_spaces.recipes.fields import PathLayer
from search_spaces.recipes.layer_path import path_of
from search_spaces.recipes.layout import ModelLayout
from search_spaces.recipes.parameter_values import Scalar
from search_spaces.recipes.recipe import Recipe
from search_spaces.recipes.resolve import TensorPlan, resolve

OUTSIDE = "outside the layers"
"""Module of the tensors before and after the layers."""
EQUAL = 1e-9
"""Values that are closer than this are one."""
MOST_LOOKED_AT = 100
"""Candidates, best first, among which one that is not a source is searched."""
SHARED = "all models"
"""Model of a parameter that belongs to none of them, such as SLERP's `t`."""


@dataclass(frozen=True)
class Cell:
    """The mean of a coefficient over the tensors of one module of one layer, and its extremes.

    `place` is the layer's number, or the tensor's name outside of the layers.
    """

    parameter: str
    module: str
    place: str
    model: str
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Drawn:
    """The recipe that is drawn, and whose it is."""

    of: str
    recipe: Recipe


def drawn(contents: Contents) -> Drawn | None:
    """Return the found recipe; where it is a source, that of the best candidate that was not given to the search.

    None where there is no recipe, or none that can be read.
    """
    if contents.found is None:
        return None
    if not unchanged(contents):
        return Drawn("the found recipe" if contents.result else "the best recipe so far", contents.found)
    history = contents.history
    searched = (one for one in history.ranking() if history.asked[one].candidate.kind != "founder")
    for identity in islice(searched, MOST_LOOKED_AT):
        recipe = contents.decode(identity)
        if recipe is not None and not _unchanged(contents, _steps(contents, recipe)):
            return Drawn(f"candidate {identity}, the best that is not a source,", recipe)
    return None


def unchanged(contents: Contents) -> str:
    """Return the source that the found recipe is; empty where it is none."""
    return "" if contents.found is None else _unchanged(contents, _steps(contents, contents.found))


def cells(contents: Contents, recipe: Recipe) -> list[Cell]:
    """Return the coefficients of a recipe; none where it has none, or the models are not known."""
    layout = contents.environment.layout
    if not layout.layers:
        return []
    try:
        plans = resolve(recipe, layout)
    except RecipeError:
        return []
    values: dict[tuple[str, str, str, str], list[tuple[float, float]]] = defaultdict(list)
    for plan in plans:
        module, place = _place(plan.name, layout)
        for parameter, model, value, share in _coefficients(plan):
            values[parameter, module, place, model and contents.model_name(model)].append((value, share))
    return [_cell(*key, found) for key, found in values.items()]


def varying(found: list[Cell]) -> list[str]:
    """Return the parameters that differ between cells, in order; one value everywhere needs no figure."""
    return [name for name, low, high in ranges(found) if high - low > EQUAL]


def ranges(found: list[Cell]) -> list[tuple[str, float, float]]:
    """Return each parameter with its lowest and highest value."""
    values: dict[str, list[float]] = defaultdict(list)
    for cell in found:
        values[cell.parameter] += [cell.low, cell.high]
    return [(name, min(own), max(own)) for name, own in values.items()]


def _cell(parameter: str, module: str, place: str, model: str, found: list[tuple[float, float]]) -> Cell:
    total = sum(share for _, share in found)
    mean = sum(value * share for value, share in found) / total
    only = [value for value, _ in found]
    return Cell(parameter, module, place, model or SHARED, mean, min(only), max(only))


def _coefficients(plan: TensorPlan) -> Iterator[tuple[str, str, float, float]]:
    """Yield a tensor's coefficients: the parameter, the model (empty: all), the value, and its share of the tensor."""
    if plan.method == "passthrough":
        return
    start = 0
    for piece in plan.pieces:
        for part, weight in zip(plan.contributions, piece.weights, strict=True):
            yield "weight", part.model, weight, (piece.end - start) / plan.pieces[-1].end
        start = piece.end
    for part in plan.contributions:
        yield from ((name, part.model, value, 1.0) for name, value in _numbers(part.parameters))
    yield from ((name, "", value, 1.0) for name, value in _numbers(plan.parameters))


def _numbers(parameters: Mapping[str, Scalar]) -> Iterator[tuple[str, float]]:
    for name, value in parameters.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield name, float(value)


def _place(tensor: str, layout: ModelLayout) -> tuple[str, str]:
    """Return the module and the place of a tensor of the result."""
    before, _, after = re.escape(layout.layer_prefix).partition(re.escape("{}"))
    found = re.fullmatch(f"{before}(\\d+){after}(.+)", tensor)
    if found is None:
        return OUTSIDE, tensor.removesuffix(".weight").rpartition(".")[2]
    child = found[2].partition(".")[0]
    known = {layout.attention: "attention", layout.mlp: "mlp"}
    return known.get(child, "norms" if "norm" in child else child), found[1]


@dataclass(frozen=True)
class Step:
    """One layer of the result: which layer of which model it is, and the factor of what it writes."""

    position: int
    model: str
    layer: int
    scale: float


def path(contents: Contents, recipe: Recipe) -> list[Step]:
    """Return a recipe's path through layers; nothing for merges that keep the layers' order."""
    steps = _steps(contents, recipe)
    return [] if _unchanged(contents, steps) else steps


def _steps(contents: Contents, recipe: Recipe) -> list[Step]:
    layout = contents.environment.layout
    if not layout.layers:
        return []
    return [
        Step(position, "the merge" if at.model is None else contents.model_name(at.model), at.layer, at.scale)
        for position, at in enumerate(_layers(recipe, layout.num_layers))
    ]


def _unchanged(contents: Contents, steps: list[Step]) -> str:
    """Return the model whose layers a path has in their order, all of them; empty for any other path."""
    whole = [(at, at, 1.0) for at in range(contents.environment.layout.num_layers)]
    models = {step.model for step in steps}
    same = len(models) == 1 and [(step.position, step.layer, step.scale) for step in steps] == whole
    return models.pop() if same else ""


def _layers(recipe: Recipe, layers: int) -> tuple[PathLayer, ...]:
    if recipe.path is not None:
        return recipe.path
    if any(spec.name != "passthrough" for spec in recipe.specs):
        return ()
    try:
        return path_of(recipe, layers)
    except RecipeError:
        return ()
