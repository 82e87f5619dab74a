"""The parameter space: one coefficient per layer group, module group, source and parameter.

Letters: T source models, L layers, G genes. The groups in order: the embeddings; runs of `layers_per_group` layers,
each divided into module groups; the final norm with the head. A group has one gene per model and per-model parameter,
and one per shared parameter (slerp's ``t``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property

import numpy as np
from typing_extensions import TypedDict

from search_spaces.recipes.errors import RecipeError
from search_spaces.recipes.fields import Slice, Source
from search_spaces.recipes.layout import ModelLayout
from search_spaces.recipes.methods import MethodSpec, Parameter, method_spec
from search_spaces.recipes.parameter_values import Condition, Parameters, Scalar, constant, simplified
from search_spaces.recipes.recipe import Recipe
from search_spaces.recipes.resolve import TensorPlan, resolve
from search_spaces.spaces.coefficient_config import CoefficientSettings
from search_spaces.spaces.genes import Real, to_shares
from search_spaces.spaces.space import Genotype, SearchSpace


class RecipeSettings(TypedDict, total=False):
    """Settings that a space writes into all its recipes; see `CoefficientSpace`."""

    dtype: str | None
    out_dtype: str | None
    seed: int


class CoefficientSpace(SearchSpace):
    """Recipes of one merge method whose coefficients vary by layer group, module group and model.

    Parameters
    ----------
    config
        One method, grouping and ranges; for several methods see `method_choice`.
    models
        Name to reference of each model, the base first (T of them). linear weights all models, the base included;
        other methods weight the experts.
    layout
        The layout of all models.
    dtype, out_dtype
        Written into the recipes: precision of the arithmetic and of the result.
    seed
        Written into the recipes of stochastic methods.

    Raises
    ------
    RecipeError
        If there are too few or too many models for the method, two have the same reference, the models have no such
        module, or nothing is left to search.
    """

    genes: tuple[Real, ...]

    def __init__(
        self,
        config: CoefficientSettings,
        models: Mapping[str, str],
        layout: ModelLayout,
        *,
        dtype: str | None = "float32",
        out_dtype: str | None = "bfloat16",
        seed: int = 0,
    ) -> None:
        self.config = config
        self.models = dict(models)
        self.layout = layout
        self.spec = config.spec
        self._dtype, self._out_dtype, self._seed = dtype, out_dtype, seed
        _check_models(self.spec, self.models)
        self._base = next(iter(self.models.values()))
        merged = list(self.models.items())
        self._merged = merged if self.spec.base == "none" else merged[1:]
        self._searched = config.searched()
        if not self._searched:
            raise RecipeError(f"space.fixed: nothing of {self.spec.name} is left to search; remove an entry")
        self._modules = _modules(config, layout)
        self._build_groups()

    def _build_groups(self) -> None:
        """Make groups and genes in the order of the module's docstring; a group is the index of its first gene."""
        genes: list[Real] = []

        def group(label: str) -> int:
            first = len(genes)
            for owner, parameter in self._columns:
                genes.append(self.config.gene(parameter, f"{owner}{parameter.name}[{label}]"))
            return first

        size, depth = self.config.layers_per_group, self.layout.num_layers
        self._embeddings = group("embeddings")
        self._layer_groups = [
            [group(_layer_label(first, min(first + size, depth), name)) for name, _ in self._modules]
            for first in range(0, depth, size)
        ]
        self._final = group("final")
        self.genes = tuple(genes)

    @cached_property
    def _columns(self) -> list[tuple[str, Parameter]]:
        """A group's genes in order: prefix of the name (``expert.``, empty for shared ones) and parameter."""
        columns = [(f"{name}.", p) for name, _ in self._merged for p in self._searched if p.per_model]
        return columns + [("", p) for p in self._searched if not p.per_model]

    def weighted(self, weights: Mapping[str, float]) -> Genotype:
        """Return the start with other weights, float64[G]: one per expert, by name, the same in all groups.

        If weights are shares (linear), the base gets the rest of 1. Weights outside the box are moved to its boundary.

        Raises
        ------
        RecipeError
            If no weight is searched.
        """
        if not any(parameter.name == "weight" for parameter in self._searched):
            raise RecipeError(
                f"space.start: no weight of {self.spec.name} is searched; give a recipe's file, or remove it"
            )
        point = np.array(self.start).reshape(-1, len(self._columns))
        left = max(0.0, 1.0 - sum(weights.values()))
        for column, (owner, parameter) in enumerate(self._columns):
            if parameter.name == "weight":
                point[:, column] = weights.get(owner[:-1], left)
        return np.clip(point.reshape(-1), self.low, self.high)

    @cached_property
    def _fixed(self) -> dict[str, Scalar | None]:
        """Parameters without genes and their values in the space; `normalize` of averages is left to `decode`."""
        return {
            p.name: self.config.fixed_parameters.get(p.name, p.default)
            for p in self.spec.parameters
            if not p.inert and p not in self._searched and not (self.spec.weighted_average and p.name == "normalize")
        }

    # --- genotype to recipe ---

    def decode(self, genotype: Genotype) -> Recipe:
        """Return the canonical recipe of `genotype`: a slice per layer between a head and a tail slice.

        For linear the weights of a group are divided by their sum (all zero: equal shares).
        """
        values = self._written_values(self._checked(genotype))
        head = self._slice((0, 0), [(None, self._embeddings)], values)
        tail = self._slice((self.layout.num_layers,) * 2, [(None, self._final)], values)
        layers = [self._layer_slice(layer, values) for layer in range(self.layout.num_layers)]
        recipe = Recipe(
            merge_method=self.spec.name,
            slices=(head, *layers, tail),
            base_model=self._base,
            parameters=self._shared_parameters(),
            dtype=self._dtype,
            out_dtype=self._out_dtype,
            seed=self._seed if self.spec.stochastic else None,
            calibration_text=self.config.calibration_text,
        )
        return recipe.canonical()

    def _shared_parameters(self) -> Parameters:
        fixed: dict[str, Scalar] = dict(self.config.fixed_parameters)
        if self.spec.weighted_average:
            fixed["normalize"] = False  # already divided
        return tuple((name, constant(value)) for name, value in sorted(fixed.items()))

    def _written_values(self, point: Genotype) -> Genotype:
        """Return the value written for each gene: its coordinate, or for linear its share of the group's sum."""
        if not self.spec.weighted_average:
            return point
        groups = point.reshape(-1, len(self._columns))
        return np.concatenate([to_shares(weights) for weights in groups])

    def _layer_slice(self, layer: int, values: Genotype) -> Slice:
        groups = self._layer_groups[layer // self.config.layers_per_group]
        filters = [pattern for _, pattern in self._modules]
        return self._slice((layer, layer + 1), list(zip(filters, groups, strict=True)), values)

    def _slice(self, layers: tuple[int, int], groups: Sequence[tuple[str | None, int]], values: Genotype) -> Slice:
        """Return one slice; `groups` are its module groups with their filters, the catch-all last."""
        settings: dict[str, dict[str, list[Condition]]] = {}
        for pattern, group in groups:
            for column, (owner, parameter) in enumerate(self._columns):
                condition = Condition(float(values[group + column]), pattern)
                settings.setdefault(owner, {}).setdefault(parameter.name, []).append(condition)

        def written(owner: str) -> Parameters:
            entries = sorted(settings.get(owner, {}).items())
            return tuple((name, simplified(tuple(conditions))) for name, conditions in entries)

        sources = [Source(reference, layers, written(f"{name}.")) for name, reference in self._merged]
        if self.spec.base != "none":
            sources.append(Source(self._base, layers))
        return Slice(tuple(sources), written(""))

    # --- recipe to genotype ---

    def encode(self, recipe: Recipe) -> Genotype:
        """Return the genotype of `recipe`; for a recipe outside the space, the mean of each group's values.

        A model that the recipe does not use has weight zero. Values outside the box are moved to its boundary.

        Raises
        ------
        RecipeError
            If the recipe has another method, base, depth or layer order, models that are not in the space, or other
            values of parameters that are fixed in the space.
        """
        self._check_same_kind(recipe)
        plans = self._plans_by_name(recipe)
        point = np.array(self.start)
        for group, tensors in self._tensors_of_groups():
            self._encode_group(point, group, [plans[name] for name in tensors])
        return np.clip(point, self.low, self.high)

    def _encode_group(self, point: Genotype, group: int, plans: Sequence[TensorPlan]) -> None:
        if not plans:
            return
        for column, (owner, parameter) in enumerate(self._columns):
            values = [_value_in(plan, self.models.get(owner[:-1]), parameter) for plan in plans]
            known = [value for value in values if value is not None]
            if known:
                point[group + column] = _mean(known)
        if self.spec.weighted_average:
            genes = slice(group, group + len(self._columns))
            point[genes] = self._scaled_shares(point[genes], self.start[genes])

    def _scaled_shares(self, shares: Genotype, start: Genotype) -> Genotype:
        """Return weights in the box with the ratios of `shares`, at the scale where the search begins."""
        weights = np.clip(shares, 0.0, None)
        if not weights.any():
            return start
        scaled: Genotype = weights * min(start.sum() / weights.sum(), self.high[0] / weights.max())
        return scaled

    def _check_same_kind(self, recipe: Recipe) -> None:
        if [spec.name for spec in recipe.specs] != [self.spec.name]:
            raise RecipeError(
                f"the recipe's merge_method is {recipe.methods}, the space's {self.spec.name}; "
                f"give a recipe with merge_method: {self.spec.name}"
            )
        foreign = [model for model in recipe.models if model not in self.models.values()]
        if foreign:
            known = ", ".join(self.models.values())
            raise RecipeError(f"the recipe's model '{foreign[0]}' is not in the space; use only {known}")
        for part in recipe.slices:
            if self.spec.base != "none" and recipe.base_of(part) != self._base:
                found = recipe.base_of(part)
                raise RecipeError(f"the recipe's base is {found}; write base_model: {self._base}")

    def _plans_by_name(self, recipe: Recipe) -> dict[str, TensorPlan]:
        plans = {plan.name: plan for plan in resolve(recipe, self.layout)}
        if set(plans) != set(self.layout.tensors()):
            raise RecipeError(
                f"the recipe has another depth than the space's {self.layout.num_layers} layers; "
                "give one that keeps the number of layers"
            )
        for plan in plans.values():
            self._check_plan(plan)
        return plans

    def _check_plan(self, plan: TensorPlan) -> None:
        for contribution in plan.contributions:
            if contribution.tensor != plan.name:
                moved = f"{contribution.tensor} at {plan.name}"
                raise RecipeError(f"the recipe puts {moved}; give one that keeps layers in place")
        for name, expected in self._fixed.items():
            per_model = self.spec.parameter(name).per_model
            for holder in plan.contributions if per_model else (plan,):
                if holder.parameters.get(name) != expected:
                    found = holder.parameters.get(name)
                    raise RecipeError(
                        f"the recipe has {name} {found} at {plan.name}, the space {expected}; "
                        f"write {name}: {expected}, or space.fixed.{name}: {found}"
                    )

    def _tensors_of_groups(self) -> Iterable[tuple[int, list[str]]]:
        yield self._embeddings, list(self.layout.embeddings)
        for index, groups in enumerate(self._layer_groups):
            first = index * self.config.layers_per_group
            last = min(first + self.config.layers_per_group, self.layout.num_layers)
            members: list[list[str]] = [[] for _ in groups]
            for layer in range(first, last):
                for name in self.layout.layers[layer]:
                    full = self.layout.layer_tensor(layer, name)
                    members[_module_of(full, self._modules)].append(full)
            yield from zip(groups, members, strict=True)
        yield self._final, list(self.layout.final)


def _check_models(spec: MethodSpec, models: Mapping[str, str]) -> None:
    merged = len(models) - (spec.base != "none")
    least = max(1, spec.min_models)
    if merged < least:
        raise RecipeError(f"models: {spec.name} needs a base and at least {least} more; add models")
    if spec.max_models is not None and merged > spec.max_models:
        beside = f"{spec.max_models} beside the base"
        raise RecipeError(f"models: {spec.name} takes {beside}, not {merged}; remove models")
    references = list(models.values())
    for reference in references:
        if references.count(reference) > 1:
            raise RecipeError(f"models: two names stand for '{reference}'; keep one")


def _modules(config: CoefficientSettings, layout: ModelLayout) -> list[tuple[str, str | None]]:
    """Return the module groups' names and filters, the catch-all last (the first match decides)."""
    if config.modules == "all":
        return [("", None)]
    named: list[tuple[str, str | None]] = [
        (module, layout.module_filter(module)) for module in config.modules if module != "other"
    ]
    return [*named, ("other", None)]


def _module_of(tensor: str, modules: Sequence[tuple[str, str | None]]) -> int:
    return next(i for i, (_, pattern) in enumerate(modules) if pattern is None or pattern in tensor)


def _layer_label(first: int, end: int, module: str) -> str:
    layers = f"layers {first}" if end - first == 1 else f"layers {first}-{end - 1}"
    return f"{layers}, {module}" if module else layers


def _value_in(plan: TensorPlan, model: str | None, parameter: Parameter) -> float | None:
    """Return the value of `parameter` in `plan`, for `model` if it is per model; None if it has none."""
    if not parameter.per_model:
        return plan.parameters.get(parameter.name)
    for contribution in plan.contributions:
        if contribution.model == model:
            value = contribution.parameters.get(parameter.name)
            return value if value is None else value * _norm(plan) if parameter.name == "weight" else value
    return 0.0 if parameter.name == "weight" else None


def _norm(plan: TensorPlan) -> float:
    """Return what a linear merge that divides by its weights multiplies each with; 1 for all others."""
    if not method_spec(plan.method).weighted_average or not plan.parameters.get("normalize"):
        return 1.0
    total = sum(contribution.parameters["weight"] for contribution in plan.contributions)
    return 1.0 / total if total else 1.0


def _mean(values: Sequence[float]) -> float:
    """Return the mean, and exactly the common value if all are equal, which rounding could change."""
    return float(values[0]) if len(set(values)) == 1 else float(np.mean(values))
