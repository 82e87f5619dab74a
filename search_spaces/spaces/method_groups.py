"""A method gene for each group of layers, with the coefficients of every method.

The variants and the joint coefficients are those of `method_choice`. They are preceded by a choice for each group: the
embeddings, runs of layers, and the final norm with the head. A group uses the coefficients of its own choice. Slices
of the recipes have their own methods, which is our extension: mergekit has one method per document.

Letters: G groups.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from typing_extensions import Unpack

from search_spaces.recipes.errors import RecipeError
from search_spaces.recipes.fields import Slice
from search_spaces.recipes.layout import ModelLayout
from search_spaces.recipes.recipe import Recipe
from search_spaces.spaces.coefficient_config import CoefficientSettings
from search_spaces.spaces.coefficients import CoefficientSpace, RecipeSettings
from search_spaces.spaces.layer_groups import group_label
from search_spaces.spaces.method_choice import MethodChoiceSpace
from search_spaces.spaces.space import Genotype, SearchSpace


class MethodGroupsSpace(SearchSpace):
    """Recipes whose groups of layers have their own merge methods; see the module's docstring.

    Parameters
    ----------
    config, models, layout, settings
        As for `MethodChoiceSpace`.

    Raises
    ------
    RecipeError
        If there are too few models for one of the methods, or nothing of one is left to search.
    """

    def __init__(
        self,
        config: CoefficientSettings,
        models: Mapping[str, str],
        layout: ModelLayout,
        **settings: Unpack[RecipeSettings],
    ) -> None:
        self._whole = MethodChoiceSpace(config, models, layout, **settings)
        self._base = next(iter(models.values()))
        self._text = config.text_for(models)
        coefficients = self._whole.genes[1:]
        labels = dict.fromkeys(group_label(gene.name) for gene in coefficients)
        choice = self._whole.choice
        self.genes = (*(replace(choice, name=f"method[{label}]") for label in labels), *coefficients)
        self._groups = {label: index for index, label in enumerate(labels)}
        group_of = {index: at for at, group in enumerate(config.groups_of(layout)) for index in group.slices}
        self._slices = [group_of[index] for index in range(layout.num_layers + 2)]

    def active(self, genotype: Genotype) -> npt.NDArray[np.bool_]:
        """Return which genes take part, bool[G + coefficients]: the choices, and each group's own coefficients."""
        active = np.zeros(self.dimension, dtype=np.bool_)
        active[: len(self._groups)] = True
        for group in range(len(self._groups)):
            active[self._own(self._label(genotype, group), group)] = True
        return active

    def weighted(self, weights: Mapping[str, float]) -> Genotype:
        """Return the start with other weights, by the expert's name, and a method that has them; float64.

        Raises
        ------
        RecipeError
            If no weight is searched.
        """
        first, *coefficients = self._whole.weighted(weights)
        return np.array([*[first] * len(self._groups), *coefficients])

    def decode(self, genotype: Genotype) -> Recipe:
        """Return the canonical recipe of `genotype`; coefficients are moved into their method's own range."""
        point = self._checked(genotype)
        labels = [self._label(point, group) for group in range(len(self._groups))]
        recipes = {label: self._variant_recipe(label, point) for label in dict.fromkeys(labels)}
        slices = []
        for index, group in enumerate(self._slices):
            recipe = recipes[labels[group]]
            part = recipe.slices[index]
            slices.append(replace(part, merge_method=recipe.merge_method, base_model=recipe.base_of(part)))
        first, *others = recipes.values()
        together = replace(
            first,
            slices=tuple(slices),
            base_model=self._base,
            seed=next((recipe.seed for recipe in (first, *others) if recipe.seed is not None), None),
            calibration_text=self._text,
        )
        return together.canonical()

    def encode(self, recipe: Recipe) -> Genotype:
        """Return the genotype of `recipe`, with inactive genes where the search begins.

        Raises
        ------
        RecipeError
            If a group has several methods or none of the space's, the depth is another, or a group fits no variant.
        """
        depth = len(self._slices) - 2
        recipe = recipe.expanded(depth).canonical()
        if len(recipe.slices) != len(self._slices):
            raise RecipeError(
                f"the recipe has another depth than the space's {depth} layers; give one that keeps their number"
            )
        point = np.array(self.start)
        for group in range(len(self._groups)):
            label, coefficients = self._encoded(recipe, group)
            point[group] = self._whole.choice.coordinate(label)
            own = self._own(label, group)
            places = self._coefficients(label)
            point[own] = coefficients[np.isin(places, own)]
        return point

    def structures(self) -> tuple[Recipe, ...]:
        """Return a recipe of each variant: together they need everything worth preparing."""
        return self._whole.structures()

    def _encoded(self, recipe: Recipe, group: int) -> tuple[str, Genotype]:
        """Return the variant of a group of the recipe, and its coefficients."""
        members = {index: recipe.slices[index] for index, own in enumerate(self._slices) if own == group}
        methods = {recipe.spec_of(part).name for part in members.values()}
        refusal = RecipeError(
            f"the recipe's method[{list(self._groups)[group]}] is {', '.join(sorted(methods))}, and the space's are "
            f"{', '.join(self._whole.config.methods)}; give a recipe with one of these in each group"
        )
        for label, space in self._whole.variants.items():
            if methods != {space.spec.name}:
                continue
            try:
                return label, space.encode(_with_slices(space, members, recipe))
            except RecipeError as error:
                refusal = error
        raise refusal

    def _variant_recipe(self, label: str, point: Genotype) -> Recipe:
        space = self._whole.variants[label]
        return space.decode(np.clip(point[self._coefficients(label)], space.low, space.high))

    def _label(self, point: Genotype, group: int) -> str:
        return self._whole.choice.value(point[group])

    def _coefficients(self, label: str) -> npt.NDArray[np.int_]:
        """Return the indices of a variant's genes here, in the variant's order."""
        places: npt.NDArray[np.int_] = self._whole.places[label] + (len(self._groups) - 1)
        return places

    def _own(self, label: str, group: int) -> npt.NDArray[np.int_]:
        """Return the indices of a variant's genes that belong to a group."""
        places = self._coefficients(label)
        return places[[self._groups[group_label(self.genes[place].name)] == group for place in places]]


def _with_slices(space: CoefficientSpace, members: Mapping[int, Slice], recipe: Recipe) -> Recipe:
    """Return the start of a variant, with some slices replaced by a recipe's."""
    start = space.decode(space.start)
    slices = list(start.slices)
    for index, part in members.items():
        slices[index] = replace(part, merge_method=None, base_model=recipe.base_of(part))
    return replace(start, slices=tuple(slices))
