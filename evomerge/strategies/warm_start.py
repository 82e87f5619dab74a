"""Warm starts: initialise a search from the best candidates of a finished one.

Populations start with the candidates themselves (`WarmStartPopulation`). CMA-ES starts with a normal distribution
around them (`WarmStartDistribution`):

M. Nomura et al., "Warm Starting CMA-ES for Hyperparameter Optimization", AAAI 2021, arXiv 2012.06932, equations 5
to 7. The best γ = 10 % of the earlier run's N candidates, each widened by a normal distribution of standard deviation
α = 0.1 in the unit box, have the mean Σ xᵢ / n and the variance α² + Var(x), where n = γN. The covariance is diagonal,
because n is usually smaller than the number of genes.

What is read from the earlier run becomes part of the settings and is saved with the new run. Resuming the new run does
not need the earlier one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, model_validator
from typing_extensions import Self

from evomerge.files.messages import counted
from evomerge.strategies.unit_box import UnitBox
from search_spaces.spaces.space import Genotype, SearchSpace

GAMMA = 0.1
ALPHA = 0.1


class WarmStart(BaseModel):
    """An earlier run by its folder; a string alone stands for `{run: FOLDER}`."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    run: str = ""
    """Run directory of an earlier search."""

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        return {"run": value} if isinstance(value, str) else value

    @property
    def is_loaded(self) -> bool:
        """Whether the earlier run's candidates have been read into these settings."""
        raise NotImplementedError

    def wanted(self, scored: int, places: int) -> int:
        """Return how many of the earlier run's candidates to read.

        Parameters
        ----------
        scored
            How many candidates the earlier run has scored.
        places
            How many the first population of the new search has room for.
        """
        raise NotImplementedError

    def from_points(self, space: SearchSpace, points: Sequence[Genotype]) -> Self:
        """Return these settings with what `points` give: N points of `space`, float64[G] each, best first; N ≥ 1."""
        raise NotImplementedError


class WarmStartDistribution(WarmStart):
    """The distribution of an earlier run's best candidates, used instead of the space's start."""

    mean: tuple[float, ...] = ()
    """Filled in when the search starts: mean of the earlier run's best candidates, per gene, in [0, 1]."""
    deviations: tuple[float, ...] = ()
    """Filled in when the search starts: standard deviation per gene, as a fraction of its range."""

    @property
    def is_loaded(self) -> bool:
        """Whether the earlier run's candidates have been read into these settings."""
        return bool(self.mean)

    def wanted(self, scored: int, places: int) -> int:
        """Return how many of the earlier run's candidates to read: its best tenth, at least one."""
        return max(1, round(GAMMA * scored))

    def from_points(self, space: SearchSpace, points: Sequence[Genotype]) -> Self:
        """Return these settings with the normal distribution around `points`, in the unit box."""
        mean, deviations = normal_around(UnitBox(space).to_unit(points))
        return self.model_copy(update={"mean": tuple(mean.tolist()), "deviations": tuple(deviations.tolist())})

    def distribution(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return mean and standard deviations in the unit box, float64[G] each.

        Raises
        ------
        ValueError
            If the earlier run has not been read.
        """
        if not self.is_loaded:
            raise ValueError(_not_loaded(self))
        return np.array(self.mean), np.array(self.deviations)


class WarmStartPopulation(WarmStart):
    """An earlier run's best candidates, used as the first population."""

    genotypes: tuple[tuple[float, ...], ...] = ()
    """Filled in when the search starts: the earlier run's best candidates as points of this search's space."""

    @property
    def is_loaded(self) -> bool:
        """Whether the earlier run's candidates have been read into these settings."""
        return bool(self.genotypes)

    def wanted(self, scored: int, places: int) -> int:
        """Return how many of the earlier run's candidates to read: as many as there is room for."""
        return places

    def from_points(self, space: SearchSpace, points: Sequence[Genotype]) -> Self:
        """Return these settings with `points` as the first candidates."""
        return self.model_copy(update={"genotypes": tuple(tuple(point.tolist()) for point in points)})

    def points(self, space: SearchSpace) -> list[Genotype]:
        """Return the candidates as points of `space`, float64[G] each, best first.

        Raises
        ------
        ValueError
            If the earlier run has not been read, or its candidates have another number of genes than `space`.
        """
        if not self.is_loaded:
            raise ValueError(_not_loaded(self))
        if any(len(genotype) != space.dimension for genotype in self.genotypes):
            raise ValueError(
                f"strategy.warm_start.genotypes: the space has {counted(space.dimension, 'gene')} and these "
                "points have not; "
                "remove warm_start.genotypes and keep warm_start.run"
            )
        return [space.settled(np.array(genotype)) for genotype in self.genotypes]


def normal_around(points: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and standard deviations, float64[G] each, of unit-box points float64[N, G], each widened by α."""
    points = np.asarray(points, dtype=np.float64)
    return points.mean(axis=0), np.sqrt(ALPHA**2 + points.var(axis=0))  # (eq. 7), its diagonal


def _not_loaded(warm_start: WarmStart) -> str:
    return (
        f"strategy.warm_start: the run {warm_start.run!r} has not been read; start the search with `evomerge search`, "
        "or call warm_start.from_points(space, points) with its best candidates"
    )
