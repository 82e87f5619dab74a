"""Genes: the kinds of coordinates of a genotype.

Every kind is an interval, so that genotypes are vectors in a box and strategies need not know the kinds: `low`, `high`
and `start` are coordinates, `value` maps a coordinate to its value and `coordinate` is the inverse. A discrete gene
divides its interval into cells of width one, with the middle as each cell's coordinate, so that a uniform sample of the
box is a uniform sample of values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt

from search_spaces.recipes.errors import RecipeError, did_you_mean


@dataclass(frozen=True)
class Real:
    """A real number in ``[low, high]``; searches begin at `start`.

    Attributes
    ----------
    prior
        Mean, within the range, and standard deviation of a normal distribution truncated at the bounds, from which
        samples are drawn; None for the uniform distribution.

    Raises
    ------
    RecipeError
        If a bound is not finite, the range is empty, `start` or the prior's mean is outside it, or the prior's
        standard deviation is not positive.
    """

    name: str
    low: float
    high: float
    start: float
    prior: tuple[float, float] | None = None

    discrete: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise RecipeError(f"gene {self.name}: [{self.low}, {self.high}] is not a range; write low < high")
        if not self.low <= self.start <= self.high:
            raise RecipeError(
                f"gene {self.name}: start {self.start} is not in [{self.low}, {self.high}]; write one inside"
            )
        if self.prior is None:
            return
        mean, deviation = self.prior
        if not self.low <= mean <= self.high:
            raise RecipeError(
                f"gene {self.name}: the prior's mean {mean} is not in [{self.low}, {self.high}]; write one inside"
            )
        if not (math.isfinite(deviation) and deviation > 0):
            raise RecipeError(f"gene {self.name}: the prior's standard deviation is {deviation}; write one above 0")

    def value(self, x: float) -> float:
        """Return the value of coordinate `x`, which is `x`."""
        return float(x)

    def coordinate(self, value: float) -> float:
        """Return the coordinate of `value`, which is moved into the range."""
        return min(max(float(value), self.low), self.high)

    def starting_at(self, x: float) -> Real:
        """Return the gene with another start, which is also the prior's mean."""
        return replace(self, start=x, prior=None if self.prior is None else (x, self.prior[1]))

    def sample(self, rng: np.random.Generator) -> float:
        """Draw a coordinate from the prior."""
        if self.prior is None:
            return float(rng.uniform(self.low, self.high))
        normal = NormalDist(*self.prior)
        quantile = rng.uniform(normal.cdf(self.low), normal.cdf(self.high))
        return self.coordinate(normal.inv_cdf(min(max(quantile, 1e-16), 1 - 1e-16)))


@dataclass(frozen=True)
class Integer:
    """A whole number from `smallest` to `largest`, both included; searches begin at `start`.

    The box is ``[smallest - 0.5, largest + 0.5]``, decoded by rounding.

    Raises
    ------
    RecipeError
        If the range has fewer than two numbers, or `start` is outside it.
    """

    name: str
    smallest: int
    largest: int
    start: int

    discrete: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.smallest < self.largest:
            raise RecipeError(f"gene {self.name}: {self.smallest} to {self.largest} is not a range; write low < high")
        if not self.smallest <= self.start <= self.largest:
            raise RecipeError(
                f"gene {self.name}: start {self.start} is not in [{self.smallest}, {self.largest}]; write one inside"
            )

    @property
    def low(self) -> float:
        """Lower bound of the box."""
        return self.smallest - 0.5

    @property
    def high(self) -> float:
        """Upper bound of the box."""
        return self.largest + 0.5

    def value(self, x: float) -> int:
        """Return the number nearest to coordinate `x`; halves round up."""
        return min(max(math.floor(x + 0.5), self.smallest), self.largest)

    def coordinate(self, value: int) -> float:
        """Return the coordinate of `value`, which is moved into the range."""
        return float(min(max(value, self.smallest), self.largest))

    def starting_at(self, x: float) -> Integer:
        """Return the gene with another start."""
        return replace(self, start=self.value(x))

    def sample(self, rng: np.random.Generator) -> float:
        """Draw the coordinate of a number, uniformly."""
        return float(rng.integers(self.smallest, self.largest, endpoint=True))

    def another(self, x: float, rng: np.random.Generator) -> float:
        """Return the coordinate of a number other than that of `x`: a step of a tenth of the range, at least 1."""
        here = self.value(x)
        step = rng.normal(0.0, 0.1 * (self.largest - self.smallest))  # ~ N(0, (range / 10)²)
        whole = int(math.copysign(max(1, round(abs(step))), step))
        there = self.coordinate(here + whole)
        return there if there != here else self.coordinate(here - whole)


@dataclass(frozen=True)
class Choice:
    """One of several named options; searches begin at `initial`.

    The box is ``[0, n]`` for n options: option i has the cell ``[i, i + 1)``, and the middle is its coordinate.

    Attributes
    ----------
    prior
        Probability of each option, from which samples and mutations are drawn; None for equal probabilities.
    believed
        Whether the prior says which options are likely to be good, so that search distributions begin with it.
        Otherwise it only gives the frequency in samples, and search distributions begin around `initial`.

    Raises
    ------
    RecipeError
        If there are fewer than two options, one is repeated, `initial` is not one of them, or the prior is not a
        distribution over them.
    """

    name: str
    options: tuple[str, ...]
    initial: str
    prior: tuple[float, ...] | None = None
    believed: bool = True

    discrete: ClassVar[bool] = True
    low: ClassVar[float] = 0.0

    def __post_init__(self) -> None:
        if len(self.options) < 2 or len(set(self.options)) != len(self.options):
            raise RecipeError(
                f"gene {self.name}: {list(self.options)} is not a choice; write two or more options, each once"
            )
        if self.initial not in self.options:
            raise RecipeError(
                f"gene {self.name}: start '{self.initial}' is not an option; {did_you_mean(self.initial, self.options)}"
            )
        if self.prior is not None and not self._is_distribution(self.prior):
            raise RecipeError(
                f"gene {self.name}: the prior {list(self.prior)} does not fit; write {len(self.options)} "
                "probabilities that sum to one"
            )

    def _is_distribution(self, prior: tuple[float, ...]) -> bool:
        return len(prior) == len(self.options) and min(prior) >= 0 and math.isclose(sum(prior), 1.0, abs_tol=1e-6)

    @property
    def high(self) -> float:
        """Upper bound of the box: the number of options."""
        return float(len(self.options))

    @property
    def start(self) -> float:
        """Coordinate of `initial`."""
        return self.coordinate(self.initial)

    def index(self, x: float) -> int:
        """Return the index of the option of coordinate `x`."""
        return min(max(math.floor(x), 0), len(self.options) - 1)

    def value(self, x: float) -> str:
        """Return the option of coordinate `x`."""
        return self.options[self.index(x)]

    def coordinate(self, value: str) -> float:
        """Return the coordinate of the option `value`.

        Raises
        ------
        RecipeError
            If it is not an option.
        """
        if value not in self.options:
            raise RecipeError(f"gene {self.name}: '{value}' is not an option; {did_you_mean(value, self.options)}")
        return self.options.index(value) + 0.5

    def starting_at(self, x: float) -> Choice:
        """Return the gene with another start."""
        return replace(self, initial=self.value(x))

    @property
    def probabilities(self) -> npt.NDArray[np.float64]:
        """The prior, float64[n], as an array that sums to one."""
        weights = np.ones(len(self.options)) if self.prior is None else np.array(self.prior)
        probabilities: npt.NDArray[np.float64] = weights / weights.sum()
        return probabilities

    def sample(self, rng: np.random.Generator) -> float:
        """Draw the coordinate of an option from the prior."""
        return rng.choice(len(self.options), p=self.probabilities) + 0.5

    def another(self, x: float, rng: np.random.Generator) -> float:
        """Return the coordinate of an option other than that of `x`, drawn from the prior of the others."""
        weights = self.probabilities
        others = np.arange(len(weights)) != self.index(x)
        weights = np.where(others, weights, 0.0)
        if not weights.any():
            weights = others.astype(float)
        return rng.choice(len(weights), p=weights / weights.sum()) + 0.5


Gene: TypeAlias = Real | Integer | Choice
"""A coordinate of any kind."""

_GRID = 1e-12
"""Shares are multiples of this, far below float32's resolution, so that dividing them again changes nothing."""


def to_shares(weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return non-negative `weights` (float64[T]) divided by their sum, exactly adding up to one.

    Shares are written on the grid of `_GRID`, and the largest takes what is left, so that doing it twice gives the same
    as once and `encode` inverts `decode`. Weights that are all zero become equal shares.
    """
    total = weights.sum()
    if total <= 0:
        weights, total = np.ones_like(weights), float(len(weights))
    units = np.rint(weights / total / _GRID)
    units[np.argmax(units)] += np.rint(1 / _GRID) - units.sum()
    shares: npt.NDArray[np.float64] = units * _GRID
    return shares


def low_and_high(value: object) -> object:
    """Return the section of a range for its short form `[low, high]`; anything else as it is."""
    return {"low": value[0], "high": value[1]} if isinstance(value, list | tuple) and len(value) == 2 else value
