"""Search spaces: sets of recipes with coordinates, and the ways to vary a point.

A space owns the genotype and its variation operators; selection is the strategies' business. G genes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property

import numpy as np
import numpy.typing as npt

from search_spaces.errors import RecipeError
from search_spaces.genes import Gene
from search_spaces.recipe import Recipe

Genotype = npt.NDArray[np.float64]

# Numerical dust that a strategy's transformations may leave outside of the box, relative to its width.
_TOLERANCE = 1e-9


class SearchSpace(ABC):
    """A box of genotypes and the recipes they stand for.

    Subclasses set `genes` and say what a genotype means. The operators here serve every space of real genes.

    Attributes
    ----------
    genes
        Name and range of each coordinate, G of them.
    """

    genes: tuple[Gene, ...]

    @abstractmethod
    def decode(self, genotype: Genotype) -> Recipe:
        """Return the recipe that `genotype` (float64[G], inside the box) stands for, in canonical form.

        Raises
        ------
        RecipeError
            If the genotype has another shape, is not finite, or lies outside of the box.
        """

    @abstractmethod
    def encode(self, recipe: Recipe) -> Genotype:
        """Return a genotype float64[G] that decodes to `recipe`, or to the nearest recipe of the space.

        Raises
        ------
        RecipeError
            If the recipe has another method, base or models than the space.
        """

    @property
    def dimension(self) -> int:
        """Number of genes, G."""
        return len(self.genes)

    @cached_property
    def low(self) -> Genotype:
        """Lower bounds, float64[G], read-only."""
        return _frozen([gene.low for gene in self.genes])

    @cached_property
    def high(self) -> Genotype:
        """Upper bounds, float64[G], read-only."""
        return _frozen([gene.high for gene in self.genes])

    @cached_property
    def start(self) -> Genotype:
        """Where a search begins, float64[G], read-only."""
        return _frozen([gene.start for gene in self.genes])

    def sample(self, rng: np.random.Generator) -> Genotype:
        """Draw a genotype float64[G] uniformly from the box."""
        return rng.uniform(self.low, self.high)

    def crossover(self, a: Genotype, b: Genotype, rng: np.random.Generator) -> Genotype:
        """Return a child of `a` and `b`, float64[G].

        Blend crossover BLX-0.5 (Eshelman and Schaffer 1993): each gene is uniform on the parents' interval,
        widened by half its length on both sides, so that children are not drawn to the middle. What falls
        outside of the box is put on its boundary.
        """
        low, high = np.minimum(a, b), np.maximum(a, b)
        margin = 0.5 * (high - low)
        return np.clip(rng.uniform(low - margin, high + margin), self.low, self.high)

    def mutate(self, a: Genotype, rng: np.random.Generator) -> Genotype:
        """Return `a` with some genes moved, float64[G].

        Each gene moves with probability 1/G, and one always does: by a normal step of a tenth of its range,
        reflected at the bounds, so that the boundary does not collect mass.
        """
        moved = rng.random(self.dimension) < 1.0 / self.dimension
        moved[rng.integers(self.dimension)] = True
        step = rng.normal(0.0, 0.1 * (self.high - self.low))  # ~ N(0, (range / 10)²)
        return np.where(moved, self._reflected(a + step), a)

    def _reflected(self, points: Genotype) -> Genotype:
        """Fold `points` back into the box at its bounds, as often as needed."""
        width = self.high - self.low
        folded = np.abs(np.mod(points - self.low + width, 2 * width) - width)
        return np.clip(self.low + folded, self.low, self.high)

    def _checked(self, genotype: Genotype) -> Genotype:
        """Return `genotype` as float64[G] inside the box; see `decode` for what is refused."""
        point = np.asarray(genotype, dtype=np.float64)
        if point.shape != (self.dimension,):
            raise RecipeError(f"genotype: its shape is {point.shape}; pass an array of shape ({self.dimension},)")
        margin = _TOLERANCE * (self.high - self.low)
        outside = ~((point >= self.low - margin) & (point <= self.high + margin))  # true for NaN
        if outside.any():
            index = int(np.argmax(outside))
            gene = self.genes[index]
            raise RecipeError(
                f"genotype[{index}]: {point[index]} lies outside of {gene.name}'s range; "
                f"pass a number from {gene.low} to {gene.high}"
            )
        return np.clip(point, self.low, self.high)


def _frozen(values: list[float]) -> Genotype:
    array = np.array(values, dtype=np.float64)
    array.flags.writeable = False
    return array
