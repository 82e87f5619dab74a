"""From a recipe to a plan for each tensor, by the rules of mergekit 0.1.5.

* Scopes, first match wins: source, slice, recipe, the method's default.
* A filter is a substring of a tensor's name: of the SOURCE's for per-model parameters (its layer number included), of
  the OUTPUT's for shared ones.
* A gradient runs over the layers of its slice; a slice of one layer takes its last value (t = 1).
* Tensors before the layers use the first slice, those after them the last, both at t = 0: the final norm and the head
  take a gradient's FIRST value.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
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


def _check_ranges(recipe: Recipe, layout: ModelLayout) -> None:
    for place, part in enumerate(recipe.slices):
        for index, source in enumerate(part.sources):
            if source.num_layers and source.start + source.num_layers > layout.num_layers:
                raise RecipeError(
                    f"slices[{place}].sources[{index}].layer_range: {list(source.layer_range or ())} lies "
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
