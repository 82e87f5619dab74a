"""The merge method as a gene, with the coefficients of every method.

The first gene chooses a variant: a method, or, for a method that takes fewer models than there are, the method with
some of the experts (``slerp(ops, ja)``). The other genes are the union of the variants' coefficients; those of the
chosen variant are active. Methods that add task vectors to a base share weights, densities and the like, which mean the
same for each, so that a search which changes the method keeps what it learned. All other coefficients have the
method's name in theirs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations

import numpy as np
import numpy.typing as npt
from typing_extensions import Unpack

from search_spaces.recipes.errors import RecipeError
from search_spaces.recipes.layout import ModelLayout
from search_spaces.recipes.methods import METHODS, MethodSpec
from search_spaces.recipes.recipe import Recipe
from search_spaces.spaces.coefficient_config import CoefficientSettings
from search_spaces.spaces.coefficients import CoefficientSpace, RecipeSettings
from search_spaces.spaces.genes import Choice, Real
from search_spaces.spaces.space import Genotype, SearchSpace


class MethodChoiceSpace(SearchSpace):
    """Recipes of several merge methods; see the module's docstring.

    Parameters
    ----------
    config
        Methods (two or more), grouping and ranges.
    models
        Name to reference of each model, the base first.
    layout
        The layout of all models.
    settings
        As for `CoefficientSpace`.

    Attributes
    ----------
    variants
        By option of the first gene: the space of one method and all or some of the models.
    choice
        The first gene.
    places
        By option: the indices of the variant's genes among the joint genes.

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
        self.config = config
        self.variants: dict[str, CoefficientSpace] = {}
        shares: list[float] = []
        for method in config.methods:
            subsets = dict(_subsets(METHODS[method], models))
            for label, some in subsets.items():
                self.variants[label] = CoefficientSpace(config.only(method), some, layout, **settings)
                likely = config.method_prior.get(method, 0.0) if config.method_prior else 1 / len(config.methods)
                shares.append(likely / len(subsets))
        options = tuple(self.variants)
        # Without `method_prior` the shares only keep subsets of models from counting as separate methods.
        self.choice = Choice("method", options, options[0], tuple(shares), believed=bool(config.method_prior))
        self._build_genes()

    def _build_genes(self) -> None:
        """Join the variants' genes; a shared gene has the widest of their ranges and the first one's start."""
        joined: dict[str, Real] = {}
        for space in self.variants.values():
            for gene in space.genes:
                name = _shared_name(space.spec, gene.name)
                known = joined.get(name, gene)
                low, high = min(known.low, gene.low), max(known.high, gene.high)
                joined[name] = Real(name, low, high, known.start, known.prior)
        self.genes = (self.choice, *joined.values())
        places = {name: index for index, name in enumerate(joined, start=1)}
        self.places = {
            label: np.array([places[_shared_name(space.spec, gene.name)] for gene in space.genes])
            for label, space in self.variants.items()
        }

    def active(self, genotype: Genotype) -> npt.NDArray[np.bool_]:
        """Return which genes take part, bool[G]: the choice and the chosen method's coefficients."""
        active = np.zeros(self.dimension, dtype=np.bool_)
        active[0] = True
        active[self.places[self.choice.value(genotype[0])]] = True
        return active

    def weighted(self, weights: Mapping[str, float]) -> Genotype:
        """Return the start with other weights, by the expert's name, and a method that has them; float64[G].

        Raises
        ------
        RecipeError
            If no weight is searched.
        """
        weighing = {
            label: space for label, space in self.variants.items() if any(".weight[" in g.name for g in space.genes)
        }
        if not weighing:
            raise RecipeError("space.start: no weight is searched; give a recipe's file, or remove it")
        point = np.array(self.start)
        for label, space in weighing.items():
            point[self.places[label]] = space.weighted(weights)
        first = "task_arithmetic" if "task_arithmetic" in weighing else next(iter(weighing))
        point[0] = self.choice.coordinate(first)
        return np.clip(point, self.low, self.high)

    def decode(self, genotype: Genotype) -> Recipe:
        """Return the canonical recipe of `genotype`; coefficients are moved into the method's own range."""
        point = self._checked(genotype)
        label = self.choice.value(point[0])
        space = self.variants[label]
        return space.decode(np.clip(point[self.places[label]], space.low, space.high))

    def encode(self, recipe: Recipe) -> Genotype:
        """Return the genotype of `recipe`, with inactive genes where the search begins.

        Raises
        ------
        RecipeError
            If the recipe's method is none of the space's, or the recipe fits no variant of it.
        """
        refusal = RecipeError(
            f"the recipe's merge_method is {recipe.methods}, the space's are {', '.join(self.config.methods)}; "
            "give a recipe with one of these"
        )
        for label, space in self.variants.items():
            if space.spec.name != recipe.merge_method:
                continue
            try:
                coefficients = space.encode(recipe)
            except RecipeError as error:
                refusal = error
                continue
            point = np.array(self.start)
            point[0] = self.choice.coordinate(label)
            point[self.places[label]] = coefficients
            return point
        raise refusal

    def structures(self) -> tuple[Recipe, ...]:
        """Return a recipe of each variant: together they need everything worth preparing."""
        return tuple(space.decode(space.start) for space in self.variants.values())


def _shared_name(spec: MethodSpec, gene: str) -> str:
    """Return the name in the joined space of a variant's gene, ``owner.parameter[group]``."""
    parameter = gene.partition("[")[0].rpartition(".")[2]
    common = spec.base == "required" and spec.parameter(parameter).common
    return gene if common else f"{spec.name}.{gene}"


def _subsets(spec: MethodSpec, models: Mapping[str, str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield label and models of each variant: all models, or as many experts at a time as the method takes.

    If the base is one end of an interpolation (slerp), the first of two experts takes its place.
    """
    base, *experts = models
    ends = spec.base == "required" and spec.max_models == 1
    count = 2 if ends else spec.max_models
    if count is None or len(experts) < count or (len(experts) == count and not ends):
        yield spec.name, dict(models)
        return
    for some in combinations(experts, count):
        names = some if ends else (base, *some)
        yield f"{spec.name}({', '.join(some)})", {name: models[name] for name in names}
