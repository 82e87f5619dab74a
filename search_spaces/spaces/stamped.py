"""A space whose recipes all carry the same settings: whose vocabulary the result has, how adapters are merged."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from typing_extensions import Self

from search_spaces.recipes.recipe import Recipe
from search_spaces.spaces.space import Genotype, SearchSpace


class StampedSpace(SearchSpace):
    """Another space's points and operators; its recipes with settings written into them.

    All that concerns genotypes is the inner space's: what `SearchSpace` has a default for, the inner one may override.

    Parameters
    ----------
    inner
        The space that decodes.
    settings
        Fields of `Recipe` and their values.
    """

    def __init__(self, inner: SearchSpace, **settings: Any) -> None:
        self.inner = inner
        self.genes = inner.genes
        self._settings = settings

    def decode(self, genotype: Genotype) -> Recipe:
        """Return the inner space's recipe with the settings, in canonical form."""
        return self._stamped(self.inner.decode(genotype))

    def encode(self, recipe: Recipe) -> Genotype:
        """Return the inner space's genotype of the recipe; the settings say nothing about the point."""
        cleared: dict[str, Any] = dict.fromkeys(self._settings)
        return self.inner.encode(replace(recipe, **cleared))

    def starting_at(self, genotype: Genotype) -> Self:
        """Return the same space with its searches beginning at `genotype` (float64[G], inside the box)."""
        moved = copy(self)
        moved.__dict__.pop("start", None)  # kept from before
        moved.inner = self.inner.starting_at(genotype)
        moved.genes = moved.inner.genes
        return moved

    def structures(self) -> tuple[Recipe, ...]:
        """Return the inner space's, with the settings."""
        return tuple(map(self._stamped, self.inner.structures()))

    def active(self, genotype: Genotype) -> npt.NDArray[np.bool_]:
        """Return which genes take part in the recipe, bool[G]."""
        return self.inner.active(genotype)

    def settled(self, points: Genotype) -> Genotype:
        """Settle as the inner space does."""
        return self.inner.settled(points)

    def founders(self) -> tuple[Genotype, ...]:
        """Return the inner space's founders."""
        return self.inner.founders()

    def sample(self, rng: np.random.Generator) -> Genotype:
        """Draw as the inner space does."""
        return self.inner.sample(rng)

    def crossover(self, a: Genotype, b: Genotype, rng: np.random.Generator) -> Genotype:
        """Cross as the inner space does."""
        return self.inner.crossover(a, b, rng)

    def recombine(
        self, point: Genotype, donors: Sequence[Genotype], shares: Sequence[float], rng: np.random.Generator
    ) -> Genotype:
        """Recombine as the inner space does."""
        return self.inner.recombine(point, donors, shares, rng)

    def mutate(self, a: Genotype, rng: np.random.Generator) -> Genotype:
        """Mutate as the inner space does."""
        return self.inner.mutate(a, rng)

    def _stamped(self, recipe: Recipe) -> Recipe:
        return replace(recipe, **self._settings).canonical()
