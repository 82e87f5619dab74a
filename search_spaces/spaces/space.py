"""Search spaces: sets of recipes with coordinates, and the ways to vary a point.

A space defines genotypes and their variation operators; strategies select. Letters: G genes.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from copy import copy
from functools import cached_property
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from typing_extensions import Self

from search_spaces.recipes.errors import RecipeError
from search_spaces.recipes.recipe import Recipe
from search_spaces.spaces.genes import Gene, Integer, Real

Genotype = npt.NDArray[np.float64]
_Scalar = TypeVar("_Scalar", bound=np.generic)

# Rounding errors that a strategy's transformations may leave outside the box, relative to its width.
_TOLERANCE = 1e-9


class SearchSpace(ABC):
    """A box of genotypes and their recipes.

    Subclasses set `genes` and define `decode` and `encode`. The operators here respect the kinds of genes and their
    priors; a space with conditional genes overrides `active`.

    Attributes
    ----------
    genes
        Name, kind and range of each coordinate, G of them.
    notes
        What a user should know about the space, such as a start that it cannot express.
    """

    genes: tuple[Gene, ...]
    notes: tuple[str, ...] = ()

    @abstractmethod
    def decode(self, genotype: Genotype) -> Recipe:
        """Return the recipe of `genotype` (float64[G], inside the box), in canonical form.

        Raises
        ------
        RecipeError
            If the genotype has another shape, is not finite, or is outside the box.
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

    @cached_property
    def discrete(self) -> npt.NDArray[np.bool_]:
        """Which genes are whole numbers or choices, bool[G], read-only."""
        return _read_only(np.array([gene.discrete for gene in self.genes], dtype=np.bool_))

    @property
    def coefficients(self) -> tuple[str, ...]:
        """What each gene is, as ``owner.parameter[group]``: its name, or that of the first of several joined in it."""
        return tuple(gene.name for gene in self.genes)

    def starting_at(self, genotype: Genotype) -> Self:
        """Return the same space with its searches beginning at `genotype` (float64[G], inside the box)."""
        moved = copy(self)
        moved.__dict__.pop("start", None)  # kept from before
        point = self._checked(genotype)
        moved.genes = tuple(gene.starting_at(x) for gene, x in zip(self.genes, point.tolist(), strict=True))
        return moved

    def structures(self) -> tuple[Recipe, ...]:
        """Return recipes that together need everything worth preparing before the first candidate."""
        return (self.decode(self.start),)

    def shortfall(self, recipe: Recipe) -> str | None:
        """Return what a recipe from elsewhere misses that all recipes of the space have; None: nothing.

        A space of smaller models says so of a whole one: "8 layers, where the most are 6,". Sources and baselines that
        miss something stand in the final table and are not recommended.
        """
        return None

    def active(self, genotype: Genotype) -> npt.NDArray[np.bool_]:
        """Return which genes take part in the recipe of `genotype`, bool[G].

        A conditional gene is inactive if another gene's value makes it meaningless (a density, if the method has none).
        `decode` ignores it, so genotypes that differ only in inactive genes have the same recipe. At least one gene is
        active.
        """
        return np.ones(self.dimension, dtype=np.bool_)

    def observation(self, genotype: Genotype) -> Genotype:
        """Return what a policy that decides one gene after another knows, float64[F]; F is the same for all points.

        Parameters
        ----------
        genotype
            float64[G], NaN for genes that are not decided yet. By default F = 2 G: whether each gene is decided, and
            the position in its range, from -1 to 1.
        """
        decided = ~np.isnan(genotype)
        place = 2 * (genotype - self.low) / (self.high - self.low) - 1
        return np.concatenate([decided, np.where(decided, place, 0.0)])

    def settled(self, points: Genotype) -> Genotype:
        """Return `points` (float64[..., G]) moved into the box, with each discrete gene at the middle of its cell."""
        settled = np.clip(points, self.low, self.high)
        # Cells begin at whole numbers or at halves; rounded as by the genes' `value`. The last has the upper bound.
        half = self.low - np.floor(self.low)
        cells = np.minimum(np.floor(settled + half) - (self.low + half), self.high - self.low - 1)
        return np.where(self.discrete, self.low + cells + 0.5, settled)

    def initial_population(self) -> tuple[Genotype, ...]:
        """Return genotypes for a first population, float64[G] each; by default only `start`."""
        return (self.start.copy(),)

    def sample(self, rng: np.random.Generator) -> Genotype:
        """Draw a genotype float64[G] from the genes' priors; genes without one are uniform."""
        point = self.settled(rng.uniform(self.low, self.high))
        for index, gene in enumerate(self.genes):
            if not isinstance(gene, Integer) and gene.prior is not None:
                point[index] = gene.sample(rng)
        return point

    def crossover(self, a: Genotype, b: Genotype, rng: np.random.Generator) -> Genotype:
        """Return a child of `a` and `b`, float64[G].

        Blend crossover BLX-0.5 (Eshelman and Schaffer 1993): each real gene is uniform on the parents' interval,
        widened by half its length on both sides, so that children are not drawn to the middle. Values outside the box
        are moved to its boundary. A discrete gene is that of either parent, with probability ½.
        """
        low, high = np.minimum(a, b), np.maximum(a, b)
        margin = 0.5 * (high - low)
        child = np.clip(rng.uniform(low - margin, high + margin), self.low, self.high)
        if self.discrete.any():
            either = np.where(rng.random(self.dimension) < 0.5, a, b)
            child = np.where(self.discrete, either, child)
        return child

    def recombine(
        self, point: Genotype, donors: Sequence[Genotype], shares: Sequence[float], rng: np.random.Generator
    ) -> Genotype:
        """Return `point` inside the box, float64[G], with the discrete genes of `donors`: two methods have no mean.

        For strategies that compute with coordinates, such as the mean of parents. Each discrete gene is that of one
        donor (float64[G] each), drawn with the probabilities `shares`, which sum to one. Nothing is drawn if all genes
        are real.
        """
        settled = self.settled(point)
        if not self.discrete.any():
            return settled
        drawn = rng.choice(len(donors), size=self.dimension, p=shares)
        return np.where(self.discrete, np.array(donors)[drawn, np.arange(self.dimension)], settled)

    def similarity(self, a: Genotype, b: Genotype) -> float:
        """Return how alike two merges are, from -1 to 1: the cosine of their task vectors, or what stands for it.

        By default it is the cosine of the active real coordinates, as if each weighed a direction of its own and all
        directions had one length. It is 0 if either has none but zeros.
        """
        x, y = (np.where(self.active(point) & ~self.discrete, point, 0.0) for point in (a, b))
        return cosine(float(x @ y), float(x @ x), float(y @ y))

    def mutate(self, a: Genotype, rng: np.random.Generator) -> Genotype:
        """Return `a` with some genes moved, float64[G].

        Each gene moves with probability 1 / (number of active genes), and at least one active gene does. A real gene
        moves by a normal step of a tenth of its range, reflected at the bounds so that mass does not collect there; a
        discrete gene moves to another value. Inactive genes drift.
        """
        active = np.flatnonzero(self.active(a))
        moved = rng.random(self.dimension) < 1.0 / len(active)
        moved[active[rng.integers(len(active))]] = True
        step = rng.normal(0.0, 0.1 * (self.high - self.low))  # ~ N(0, (range / 10)²)
        child = np.where(moved & ~self.discrete, self._reflected(a + step), a)
        for index in np.flatnonzero(moved & self.discrete):
            gene = self.genes[index]
            if not isinstance(gene, Real):
                child[index] = gene.another(a[index], rng)
        return child

    def _reflected(self, points: Genotype) -> Genotype:
        """Reflect `points` at the bounds, as often as needed, until they are inside the box."""
        width = self.high - self.low
        folded = np.abs(np.mod(points - self.low + width, 2 * width) - width)
        return np.clip(self.low + folded, self.low, self.high)

    def _checked(self, genotype: Genotype) -> Genotype:
        """Return `genotype` as float64[G] inside the box; raises as `decode` does."""
        point = np.asarray(genotype, dtype=np.float64)
        if point.shape != (self.dimension,):
            raise RecipeError(f"genotype: its shape is {point.shape}; pass an array of shape ({self.dimension},)")
        margin = _TOLERANCE * (self.high - self.low)
        outside = ~((point >= self.low - margin) & (point <= self.high + margin))  # true for NaN
        if outside.any():
            index = int(np.argmax(outside))
            gene = self.genes[index]
            raise RecipeError(
                f"genotype[{index}]: {point[index]} is outside {gene.name}'s range; "
                f"pass a number from {gene.low} to {gene.high}"
            )
        return np.clip(point, self.low, self.high)


def cosine(product: float, square: float, other: float) -> float:
    """Return the cosine of the angle between two vectors, from their inner product and squared lengths; 0 without."""
    lengths = math.sqrt(max(square, 0.0) * max(other, 0.0))
    return min(1.0, max(-1.0, float(product) / lengths)) if lengths > 0 else 0.0


def _frozen(values: list[float]) -> Genotype:
    return _read_only(np.array(values, dtype=np.float64))


def _read_only(array: npt.NDArray[_Scalar]) -> npt.NDArray[_Scalar]:
    array.flags.writeable = False
    return array
