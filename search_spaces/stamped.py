"""A space whose recipes all carry the same settings: whose vocabulary the result has, how adapters are merged."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from search_spaces.recipe import Recipe
from search_spaces.space import Genotype, SearchSpace


class StampedSpace(SearchSpace):
    """Another space's points and operators; its recipes with settings written into them.

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
        return replace(self.inner.decode(genotype), **self._settings).canonical()

    def encode(self, recipe: Recipe) -> Genotype:
        """Return the inner space's genotype of the recipe; the settings say nothing about the point."""
        cleared: dict[str, Any] = dict.fromkeys(self._settings)
        return self.inner.encode(replace(recipe, **cleared))

    def sample(self, rng: np.random.Generator) -> Genotype:
        """Draw as the inner space does."""
        return self.inner.sample(rng)

    def crossover(self, a: Genotype, b: Genotype, rng: np.random.Generator) -> Genotype:
        """Cross as the inner space does."""
        return self.inner.crossover(a, b, rng)

    def mutate(self, a: Genotype, rng: np.random.Generator) -> Genotype:
        """Mutate as the inner space does."""
        return self.inner.mutate(a, rng)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)
