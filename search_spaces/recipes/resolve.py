"""From a recipe to a plan for each tensor, by the rules of mergekit 0.1.5.

* Scopes, first match wins: source, slice, recipe, the method's default.
* A filter is a substring of a tensor's name: of the SOURCE's for per-model parameters (its layer number included), of
  the OUTPUT's for shared ones.
* A gradient runs over the layers of its slice; a slice of one layer takes its last value (t = 1).
* Tensors before the layers use the first slice, those after them the last, both at t = 0: the final norm and the head
  take a gradient's FIRST value.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import NoReturn

from search_spaces.recipes.errors import RecipeError
from search_spaces.recipes.fields import PathLayer, Slice
from search_spaces.recipes.layout import ModelLayout
from search_spaces.recipes.methods import Parameter
from search_spaces.recipes.mixture_table import Mixture, Piece
from search_spaces.recipes.parameter_values import Parameters, Scalar, chain, evaluate, simplified
from search_spaces.recipes.recipe import Recipe


@dataclass(frozen=True)
class Contribution:
    """One source's part of an output tensor; `tensor` is the tensor's name in the source."""

    model: str
    tensor: str
    parameters: Mapping[str, Scalar]


@dataclass(frozen=True)
class TensorPlan:
    """How one output tensor is made.

    Attributes
    ----------
    name
        Name in the output.
    method
        The merge method.
    contributions
        Sources in the recipe's order, without the base if the method treats it apart.
    base
        The base's tensor for such methods, else None. For slerp it is the end at t = 0.
    parameters
        Shared parameters. Parameters without effect (``int8_mask``) and those that are off unless set (``scale``) are
        absent, here and in contributions.
    pieces
        If weights change within the tensor: its pieces in order, with a weight per contribution in place of all
        parameters. Else empty.
    scale
        Factor of the merged tensor.
    """

    name: str
    method: str
    contributions: tuple[Contribution, ...]
    base: Contribution | None
    parameters: Mapping[str, Scalar]
    pieces: tuple[Piece, ...] = ()
    scale: float = 1.0


def resolve(recipe: Recipe, layout: ModelLayout) -> tuple[TensorPlan, ...]:
    """Return the plan of every output tensor, in the order of the output model.

    Parameters
    ----------
    recipe
        Any form; `models:` is expanded to the layout's layers.
    layout
        The layout of all sources.

    Raises
    ------
    RecipeError
        If a layer range is outside the model or a tensor lacks a required parameter.
    """
    recipe = recipe.expanded(layout.num_layers)
    if recipe.path is not None:
        return _along(recipe.path, resolve(replace(recipe, path=None), layout), layout)
    _check_ranges(recipe, layout)
    if recipe.mixture is not None:
        return _mixed(recipe, recipe.mixture, layout)
    slices = [_SliceRules(recipe, part) for part in recipe.slices]
    nowhere = dict.fromkeys(recipe.models, "")  # outside the layers, sources and output have the same names
    plans = [slices[0].plan(name, "", nowhere, 0.0) for name in layout.embeddings]
    layer = 0
    for rules in slices:
        for index in range(rules.num_layers):
            plans.extend(_plan_layer(rules, index, layer, layout))
            layer += 1
    plans.extend(slices[-1].plan(name, "", nowhere, 0.0) for name in layout.final)
    return tuple(plans)


def _along(path: tuple[PathLayer, ...], merged: tuple[TensorPlan, ...], layout: ModelLayout) -> tuple[TensorPlan, ...]:
    """Plan a path through the layers of a merge (with the plans `merged`) and of other models."""
    plans = {plan.name: plan for plan in merged}
    found = [plans[name] for name in layout.embeddings]
    for index, at in enumerate(path):
        if at.layer >= layout.num_layers:
            raise RecipeError(
                f"evomerge.path[{index}].layer: there is no layer {at.layer}; write 0 to {layout.num_layers - 1}"
            )
        for name in layout.layers[at.layer]:
            source, output = layout.layer_tensor(at.layer, name), layout.layer_tensor(index, name)
            scale = at.scale_of(name)
            if at.model is None:
                found.append(replace(plans[source], name=output, scale=scale))
            else:
                parameters = {} if scale == 1 else {"scale": scale}
                part = Contribution(at.model, source, parameters)
                found.append(TensorPlan(output, "passthrough", (part,), None, {}))
    return (*found, *(plans[name] for name in layout.final))


def _mixed(recipe: Recipe, table: Mixture, layout: ModelLayout) -> tuple[TensorPlan, ...]:
    """Plan a merge with a table of weights."""
    pieces, names = dict(table.pieces()), layout.tensors()
    different = set(pieces) ^ set(names)
    if different:
        name = min(different)
        whose = "is not in the table" if name in names else "is not in the models"
        raise RecipeError(f"evomerge.mixture.tensors: {name} {whose}; name the models that the table was made for")
    if recipe.num_layers != layout.num_layers:
        raise RecipeError(f"evomerge.mixture: it is for all {layout.num_layers} layers; write that layer_range")
    models = [source.model for source in recipe.slices[0].sources]
    return tuple(
        TensorPlan(name, "linear", tuple(Contribution(model, name, {}) for model in models), None, {}, pieces[name])
        for name in names
    )


def _plan_layer(rules: _SliceRules, index: int, layer: int, layout: ModelLayout) -> list[TensorPlan]:
    """Plan output layer `layer`, which is layer `index` of its slice."""
    t = index / (rules.num_layers - 1) if rules.num_layers > 1 else 1.0
    prefixes = {source.model: layout.layer_tensor(source.start + index, "") for source in rules.sources}
    output = layout.layer_tensor(layer, "")
    names = layout.layers[rules.sources[0].start + index]
    for source in rules.sources:
        if layout.layers[source.start + index] != names:
            raise RecipeError(
                f"layers {rules.sources[0].start + index} and {source.start + index} have different tensors; "
                "merge layers of one kind"
            )
    return [rules.plan(name, output, prefixes, t) for name in names]


def unused_filters(recipe: Recipe, layout: ModelLayout) -> tuple[str, ...]:
    """Return the filters that no tensor's name contains, so their values are not used.

    Names are those of the models and of the result, which may have more layers.
    """
    scopes = [recipe.parameters]
    for part in recipe.slices:
        scopes += [part.parameters, *(source.parameters for source in part.sources)]
    conditions = [each for scope in scopes for _, setting in scope for each in setting if not each.is_catch_all]
    wanted = tuple(dict.fromkeys(str(each.filter) for each in conditions))
    if not wanted:
        return ()
    numbers = range(max(layout.num_layers, recipe.num_layers or 0))
    kinds = {name for names in layout.layers for name in names}
    names = [*layout.tensors(), *(layout.layer_tensor(number, name) for number in numbers for name in kinds)]
    return tuple(part for part in wanted if not any(part in name for name in names))


def _check_ranges(recipe: Recipe, layout: ModelLayout) -> None:
    for place, part in enumerate(recipe.slices):
        for index, source in enumerate(part.sources):
            if source.num_layers and source.start + source.num_layers > layout.num_layers:
                raise RecipeError(
                    f"slices[{place}].sources[{index}].layer_range: {list(source.layer_range or ())} is "
                    f"outside of {source.model}; end it at {layout.num_layers}, the model's number of layers"
                )


class _SliceRules:
    """One slice with all scopes joined, so that each tensor needs only a few substring tests."""

    def __init__(self, recipe: Recipe, part: Slice) -> None:
        spec, scopes = recipe.spec_of(part), recipe.scopes_of(part)
        base = recipe.base_of(part) if spec.base != "none" else None
        self.method = spec.name
        self.num_layers = part.num_layers
        self.sources = part.sources
        self.base = base if any(source.model == base for source in part.sources) else None
        self._shared = _Rules(spec.shared, scopes, "")
        self._merged = [
            _Rules(spec.per_model, (source.parameters, *scopes), source.model)
            for source in part.sources
            if source.model != base
        ]

    def plan(self, name: str, prefix: str, source_prefixes: Mapping[str, str], t: float) -> TensorPlan:
        """Plan the tensor ``prefix + name`` at position `t`; each source has its own prefix."""
        contributions = []
        for rules in self._merged:
            tensor = source_prefixes[rules.model] + name
            contributions.append(Contribution(rules.model, tensor, rules.values(tensor, t)))
        base = None if self.base is None else Contribution(self.base, source_prefixes[self.base] + name, {})
        output = prefix + name
        if base is not None and not contributions:
            return TensorPlan(output, "passthrough", (base,), None, {})  # nothing is added to the base
        return TensorPlan(output, self.method, tuple(contributions), base, self._shared.values(output, t))


class _Rules:
    """The joined settings of one source, or of the shared parameters (`model` is empty then)."""

    def __init__(self, parameters: Iterable[Parameter], scopes: tuple[Parameters, ...], model: str) -> None:
        self.model = model
        self._settings = [
            (parameter, simplified(chain(scopes, parameter.name, parameter.default)))
            for parameter in parameters
            if not parameter.inert
        ]
        self._constant = self._same_everywhere()

    def _same_everywhere(self) -> dict[str, Scalar] | None:
        """Return the values if they depend on neither the tensor nor t, which is the common case."""
        values = {}
        for parameter, setting in self._settings:
            if len(setting) != 1 or setting[0].filter is not None or isinstance(setting[0].value, tuple):
                return None
            values[parameter.name] = setting[0].value
        return values

    def values(self, tensor: str, t: float) -> Mapping[str, Scalar]:
        """Return each parameter's value for a tensor, at position `t` of its slice."""
        if self._constant is not None:
            return self._constant
        values = {}
        for parameter, setting in self._settings:
            value = evaluate(setting, tensor, t)
            if value is not None:
                values[parameter.name] = value
            elif parameter.required:
                self._refuse(parameter.name, tensor)
        return values

    def _refuse(self, name: str, tensor: str) -> NoReturn:
        of_model = f" of {self.model}" if self.model else ""
        raise RecipeError(
            f"{name}: {tensor}{of_model} has no value; write {name}: NUMBER, or end its list of conditions "
            "with one that has no filter"
        )


def weighted_sum(plan: TensorPlan) -> dict[str, float] | None:
    """Return the weight of each model, the base among them, if a tensor is one weighted sum of models; else None.

    SLERP is one at its two ends.
    """
    if plan.pieces or plan.scale != 1 or any(part.tensor != plan.name for part in plan.contributions):
        return None
    weights = [float(part.parameters.get("weight", 1.0)) for part in plan.contributions]
    found: dict[str, float] = {}
    if plan.method == "passthrough" and all(part.parameters.get("scale", 1.0) == 1 for part in plan.contributions):
        scale = 1.0
    elif plan.method == "linear":
        total = sum(weights)
        scale = (1 / total if total else 0.0) if plan.parameters.get("normalize") else 1.0
    elif plan.method == "task_arithmetic" and plan.base is not None:
        scale = float(plan.parameters.get("lambda", 1.0))
        scale /= (sum(weights) or 1.0) if plan.parameters.get("normalize") else 1.0
        found[plan.base.model] = 1.0 - scale * sum(weights)
    elif plan.method == "slerp" and plan.base is not None and plan.parameters["t"] in (0, 1):
        scale = float(plan.parameters["t"])
        found[plan.base.model] = 1.0 - scale
    else:
        return None
    for part, weight in zip(plan.contributions, weights, strict=True):
        found[part.model] = found.get(part.model, 0.0) + scale * weight
    return found


def model_weights(recipe: Recipe, layout: ModelLayout) -> dict[str, float] | None:
    """Return each model's weight, by its reference, in a merge that is one weighted sum for all tensors; else None."""
    plans = resolve(recipe, layout)
    whole = [{model: w for model, w in (weighted_sum(_joined(plan)) or {}).items() if w} for plan in plans]
    first = whole[0]
    if not first or any(
        abs(one.get(model, 0.0) - first.get(model, 0.0)) > TOLERANCE for one in whole for model in {**one, **first}
    ):
        return None
    return first


def _joined(plan: TensorPlan) -> TensorPlan:
    """Return a plan of one piece without noise as a plan of none."""
    if len(plan.pieces) != 1 or plan.pieces[0].noises:
        return plan
    parts = [
        replace(part, parameters={"weight": weight})
        for part, weight in zip(plan.contributions, plan.pieces[0].weights, strict=True)
    ]
    return replace(plan, pieces=(), contributions=tuple(parts))


@dataclass(frozen=True)
class Difference:
    """How far two recipes are apart.

    Attributes
    ----------
    tensors, total
        Tensors that are merged differently, of so many.
    largest
        The largest difference between two coefficients; infinite where methods or sources differ.
    place
        Which coefficient of which tensor that is.
    """

    tensors: int
    total: int
    largest: float
    place: str

    def __str__(self) -> str:
        """Say it in a few words."""
        by = f"by up to {self.largest:.3g} in" if math.isfinite(self.largest) else "even in"
        return f"{self.tensors} of {self.total} tensors differ, {by} {self.place}"


TOLERANCE = 1e-6
"""Coefficients that are closer than this count as equal: float32 has about seven digits."""


def difference(first: Recipe, second: Recipe, layout: ModelLayout) -> Difference | None:
    """Return how far two recipes over models of one layout are apart; None if they give the same merge.

    Weighted sums are compared by the weights of the models, whichever method writes them, all else by parameters.
    """
    if first.canonical().hash == second.canonical().hash:
        return None
    own = {plan.name: plan for plan in resolve(first, layout)}
    others = {plan.name: plan for plan in resolve(second, layout)}
    apart: list[tuple[float, str]] = []
    for tensor in dict.fromkeys((*own, *others)):
        if tensor in own and tensor in others:
            gap, name = max(_gaps(own[tensor], others[tensor]), key=itemgetter(0), default=(0.0, ""))
        else:
            gap, name = math.inf, "the existence"
        if gap > TOLERANCE:
            apart.append((gap, f"{name} of {tensor}"))
    if not apart:
        return None
    return Difference(len(apart), len({**own, **others}), *max(apart, key=itemgetter(0)))


def _gaps(first: TensorPlan, second: TensorPlan) -> Iterator[tuple[float, str]]:
    """Yield how far the coefficients of two plans of a tensor are apart, and which ones."""
    sums = _sums(first), _sums(second)
    if sums[0] is not None and sums[1] is not None:
        for end in sorted({end for found in sums for end, _ in found or ()}):
            mine, theirs = (next(weights for last, weights in found or () if end <= last) for found in sums)
            rest = f"the weight of {first.base.model}" if first.base == second.base and first.base is not None else None
            for name in {**mine, **theirs}.keys() - {rest}:  # the base's weight follows from the others
                yield abs(mine.get(name, 0.0) - theirs.get(name, 0.0)), name
        return
    mine, theirs = _parameters_of(first), _parameters_of(second)
    if first.method != second.method or mine.keys() != theirs.keys():
        yield math.inf, "the method or the sources"
        return
    for name, value in mine.items():
        yield abs(value - theirs[name]), name


def _sums(plan: TensorPlan) -> list[tuple[float, dict[str, float]]] | None:
    """Return the weights by model of each piece of a weighted sum, with the piece's end; None for other plans."""
    if plan.pieces and plan.scale == 1:
        ends = [*(float(piece.end) for piece in plan.pieces[:-1]), math.inf]
        return [
            (
                end,
                {f"the weight of {part.model}": w for part, w in zip(plan.contributions, piece.weights, strict=True)}
                | {f"the noise {noise.seed}": noise.deviation for noise in piece.noises},
            )
            for end, piece in zip(ends, plan.pieces, strict=True)
        ]
    total = weighted_sum(plan)
    return None if total is None else [(math.inf, {f"the weight of {model}": w for model, w in total.items()})]


def _parameters_of(plan: TensorPlan) -> dict[str, float]:
    found = {name: float(value) for name, value in plan.parameters.items()} | {"scale": plan.scale}
    for part in plan.contributions:
        found |= {f"the {name} of {part.model}": float(value) for name, value in part.parameters.items()}
        found[f"the source {part.tensor} of {part.model}"] = 0.0
    return found
