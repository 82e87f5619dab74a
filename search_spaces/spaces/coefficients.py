"""The parameter space: one coefficient per layer group, module group, source and parameter.

Letters: T source models, L layers, G genes, K groups. `layer_groups` says which tensors share coefficients: groups of
layers, divided into parts by modules. A part has one gene per model and per-model parameter, and one per shared
parameter (slerp's ``t``). With `smooth`, the groups of layers are knots of straight lines over the layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
from typing_extensions import TypedDict

from search_spaces.recipes.errors import RecipeError
from search_spaces.recipes.fields import Slice, Source
from search_spaces.recipes.layout import ModelLayout
from search_spaces.recipes.methods import MethodSpec, Parameter, method_spec
from search_spaces.recipes.parameter_values import (
    Condition,
    Parameters,
    Scalar,
    constant,
    fitting_epsilon,
    simplified,
)
from search_spaces.recipes.recipe import Recipe
from search_spaces.recipes.resolve import TensorPlan, resolve
from search_spaces.spaces.coefficient_config import CoefficientSettings
from search_spaces.spaces.genes import Real, to_shares
from search_spaces.spaces.layer_groups import Part, smoothing
from search_spaces.spaces.space import Genotype, SearchSpace

_KNOT_DIGITS = 9
"""Knots are rounded to so many digits, so that `encode`, which solves for them, finds the very same ones."""


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
        If there are too few or too many models for the method, two have the same reference, the groups or modules do
        not fit the models, or nothing is left to search.
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
        self.groups = config.groups_of(layout)
        self._shares = smoothing(self.groups, layout.num_layers) if config.smooth else {}
        self._build_genes()

    def _build_genes(self) -> None:
        """Make the genes of all parts in order; a part is the index of its first gene."""
        genes: list[Real] = []
        self._firsts: list[list[int]] = []
        for group in self.groups:
            firsts = []
            for part in group.parts:
                firsts.append(len(genes))
                for owner, parameter in self._columns:
                    genes.append(self.config.gene(parameter, f"{owner}{parameter.name}[{part.label}]"))
            self._firsts.append(firsts)
        self._group_of = {index: at for at, group in enumerate(self.groups) for index in group.slices}
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
        slices = tuple(self._slice(index, values) for index in range(self.layout.num_layers + 2))
        recipe = Recipe(
            merge_method=self.spec.name,
            slices=slices,
            base_model=self._base,
            parameters=self._shared_parameters(),
            dtype=self._dtype,
            out_dtype=self._out_dtype,
            seed=self._seed if self.spec.stochastic else None,
            calibration_text=self.config.text_for(self.models),
        )
        return recipe.canonical()

    def _shared_parameters(self) -> Parameters:
        fixed: dict[str, Scalar] = dict(self.config.fixed_parameters)
        if self.spec.weighted_average:
            fixed["normalize"] = False  # already divided
        return tuple((name, constant(value)) for name, value in sorted(fixed.items()))

    def _written_values(self, point: Genotype) -> Genotype:
        """Return the value written for each gene: its coordinate, or for linear its share of the part's sum."""
        if not self.spec.weighted_average:
            return np.clip(np.round(point, _KNOT_DIGITS), self.low, self.high) if self._shares else point
        parts = point.reshape(-1, len(self._columns))
        return np.concatenate([to_shares(weights) for weights in parts])

    def _slice(self, index: int, values: Genotype) -> Slice:
        """Return one slice, with a condition for each part that has tensors in it; the last one is the catch-all."""
        group = self.groups[self._group_of[index]]
        present = [at for at, part in enumerate(group.parts) if index in part.tensors] or [len(group.parts) - 1]
        settings: dict[str, dict[str, list[Condition]]] = {}
        for at in present:
            pattern = None if at == present[-1] else group.parts[at].filter
            for (owner, name), value in self._fitted(self._values(index, at, values)).items():
                settings.setdefault(owner, {}).setdefault(name, []).append(Condition(value, pattern))

        def written(owner: str) -> Parameters:
            entries = sorted(settings.get(owner, {}).items())
            return tuple((name, simplified(tuple(conditions))) for name, conditions in entries)

        depth = self.layout.num_layers
        layers = (min(max(index - 1, 0), depth), min(index, depth))
        sources = [Source(reference, layers, written(f"{name}.")) for name, reference in self._merged]
        if self.spec.base != "none":
            sources.append(Source(self._base, layers))
        return Slice(tuple(sources), written(""))

    def _fitted(self, values: Sequence[float]) -> dict[tuple[str, str], float]:
        """Return the values by owner and parameter; della's spread no wider than each model's density allows."""
        row = {(owner, p.name): value for (owner, p), value in zip(self._columns, values, strict=True)}
        if not any(p.name == "epsilon" and p.per_model for p in self.spec.parameters):
            return row
        for owner in (f"{name}." for name, _ in self._merged):
            density, epsilon = (row.get((owner, name), self._fixed.get(name)) for name in ("density", "epsilon"))
            if density is not None and epsilon is not None:
                row[owner, "epsilon"] = fitting_epsilon(epsilon, density)
        return row

    def _values(self, index: int, part: int, values: Genotype) -> list[float]:
        """Return the values of a slice's part, one per column: its group's, or between the knots."""
        width = len(self._columns)
        if index not in self._shares:
            first = self._firsts[self._group_of[index]][part]
            return [float(value) for value in values[first : first + width]]
        total = np.zeros(width)
        for share, firsts in zip(self._shares[index], self._firsts, strict=True):
            if share:
                total += share * values[firsts[part] : firsts[part] + width]
        return [float(value) for value in total]

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
        for group, firsts in zip(self.groups, self._firsts, strict=True):
            for part, first in zip(group.parts, firsts, strict=True):
                for column, (owner, parameter) in enumerate(self._columns):
                    value = self._encoded(part, owner, parameter, plans)
                    point[first + column] = point[first + column] if value is None else value
        if self._shares:
            self._fit_knots(point, plans)
        if self.spec.weighted_average:
            for firsts in self._firsts:
                for first in firsts:
                    genes = slice(first, first + len(self._columns))
                    point[genes] = self._scaled_shares(point[genes], self.start[genes])
        return np.clip(point, self.low, self.high)

    def _encoded(self, part: Part, owner: str, parameter: Parameter, plans: Mapping[str, TensorPlan]) -> float | None:
        """Return the mean of a parameter over a part's tensors; None if none has it."""
        found = [plans[name] for names in part.tensors.values() for name in names]
        values = [_value_in(plan, self.models.get(owner[:-1]), parameter) for plan in found]
        known = [value for value in values if value is not None]
        return _mean(known) if known else None

    def _fit_knots(self, point: Genotype, plans: Mapping[str, TensorPlan]) -> None:
        """Set the genes of the groups of layers to the knots that are nearest to a recipe, by least squares."""
        knots = [at for at in range(len(self.groups)) if any(shares[at] for shares in self._shares.values())]
        for part in range(len(self._firsts[knots[0]])):
            for column, (owner, parameter) in enumerate(self._columns):
                rows, values = [], []
                for index in range(self.layout.num_layers + 2):
                    own = self._group_of[index]
                    if own not in knots or index not in self.groups[own].parts[part].tensors:
                        continue
                    names = self.groups[own].parts[part].tensors[index]
                    value = self._encoded(Part("", None, {index: names}), owner, parameter, plans)
                    if value is not None:
                        shares = self._shares.get(index) or tuple(float(at == own) for at in range(len(self.groups)))
                        rows.append([shares[at] for at in knots])
                        values.append(value)
                if rows:
                    solved = np.linalg.lstsq(np.array(rows), np.array(values), rcond=None)[0]
                    point[[self._firsts[at][part] + column for at in knots]] = solved

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
        for name, fixed in self._fixed.items():
            per_model = self.spec.parameter(name).per_model
            for holder in plan.contributions if per_model else (plan,):
                density, expected = holder.parameters.get("density"), fixed
                if name == "epsilon" and fixed is not None and density is not None and per_model:
                    expected = fitting_epsilon(fixed, density)
                if holder.parameters.get(name) != expected:
                    found = holder.parameters.get(name)
                    raise RecipeError(
                        f"the recipe has {name} {found} at {plan.name}, the space {expected}; "
                        f"write {name}: {expected}, or space.fixed.{name}: {found}"
                    )


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
