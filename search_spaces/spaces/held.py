"""A space with some of its genes held at a value."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from search_spaces.recipes.errors import RecipeError
from search_spaces.recipes.recipe import Recipe
from search_spaces.spaces.space import Genotype, SearchSpace


class HeldSpace(SearchSpace):
    """The recipes of another space in which some genes have one value; the others are this space's genes.

    Parameters
    ----------
    space
        Any space.
    values
        Value (a number, or a choice's option) by the gene's name, in which ``*`` stands for anything; where several
        fit, the last decides.

    Raises
    ------
    RecipeError
        If a name fits no gene, a value lies outside of its gene's range, or no gene is left.
    """

    def __init__(self, space: SearchSpace, values: Mapping[str, Any]) -> None:
        self.space = space
        self._held = np.zeros(space.dimension, dtype=np.bool_)
        self._values = np.array(space.start)
        for pattern, value in values.items():
            self._hold(pattern, value)
        if self._held.all():
            raise RecipeError("space.fixed: every gene is held; remove an entry")
        self.genes = tuple(gene for gene, held in zip(space.genes, self._held, strict=True) if not held)

    def _hold(self, pattern: str, value: Any) -> None:
        matches = re.compile(".*".join(map(re.escape, pattern.split("*")))).fullmatch
        found = [index for index, gene in enumerate(self.space.genes) if matches(gene.name)]
        if not found:
            raise RecipeError(
                f"space.fixed: no gene is called '{pattern}'; write a name such as {self.space.genes[0].name}"
            )
        for index in found:
            gene = self.space.genes[index]
            x: float = gene.coordinate(value)
            if gene.value(x) != value:
                raise RecipeError(
                    f"space.fixed: {value} is not in {gene.name}'s range; write one from {gene.low} to {gene.high}"
                )
            self._held[index], self._values[index] = True, x

    def decode(self, genotype: Genotype) -> Recipe:
        """Return the recipe of `genotype` with the held genes at their values."""
        return self.space.decode(self._whole(self._checked(genotype)))

    def encode(self, recipe: Recipe) -> Genotype:
        """Return the genotype of `recipe`, whatever it says of the genes that are held."""
        return self.space.encode(recipe)[~self._held]

    def active(self, genotype: Genotype) -> npt.NDArray[np.bool_]:
        """Return which genes take part in the recipe of `genotype`, bool[G]."""
        return self.space.active(self._whole(genotype))[~self._held]

    def structures(self) -> tuple[Recipe, ...]:
        """Return those of the whole space."""
        return self.space.structures()

    def _whole(self, genotype: Genotype) -> Genotype:
        point = self._values.copy()
        point[~self._held] = genotype
        return point
