"""A warm start: what a former search has found, for a new one to begin with.

Populations begin with the former run's best candidates themselves (`Founders`). Distributions begin around them:

M. Nomura et al., "Warm Starting CMA-ES for Hyperparameter Optimization", AAAI 2021, arXiv 2012.06932, equations 5
to 7 with a diagonal covariance, since a run's best tenth is mostly smaller than the number of genes: the best
γ = 10 % of its candidates, each widened by a normal distribution of standard deviation α = 0.1 in the unit box, have
the mean Σ xᵢ / n and the variance α² + Var(x).

What was read of the former run is part of the settings, and so of the new run's config: resuming it needs the former
one no more.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, model_validator
from typing_extensions import Self

from evomerge.strategies.base import Genotype
from search_spaces.spaces.space import SearchSpace

GAMMA = 0.1
ALPHA = 0.1


class FormerRun(BaseModel):
    """A former run by its folder; a name alone stands for `{run: NAME}`."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    run: str = ""
    """Run directory of a former search."""

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, value: object) -> object:
        return {"run": value} if isinstance(value, str) else value


class WarmStart(FormerRun):
    """The distribution of a former run's best candidates, in place of the space's start."""

    mean: tuple[float, ...] = ()
    """What was read from that run when the search began: mean of its best candidates, per gene, in [0, 1]."""
    deviations: tuple[float, ...] = ()
    """Likewise, standard deviation per gene, as a fraction of its range."""

    @property
    def known(self) -> bool:
        """Whether the former run has been read."""
        return bool(self.mean)

    def distribution(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return mean and deviations, float64[G] each.

        Raises
        ------
        ValueError
            If the former run has not been read.
        """
        if not self.known:
            raise ValueError("warm_start names a run that was not read: call warm_start.learnt(...) first")
        return np.array(self.mean), np.array(self.deviations)

    def learnt(self, unit: Sequence[NDArray[np.float64]], fitness: Sequence[float]) -> WarmStart:
        """Return it with what a former run's candidates say.

        Parameters
        ----------
        unit
            N points float64[G] of the unit box.
        fitness
            N values, larger is better.

        Raises
        ------
        ValueError
            If there are no points.
        """
        if not len(unit):
            raise ValueError(f"strategy.warm_start: {self.run} has scored no candidate; name another run")
        order = np.argsort(-np.asarray(fitness), kind="stable")
        return self.around(np.array(unit)[order[: best_share(len(unit))]])

    def around(self, best: NDArray[np.float64]) -> WarmStart:
        """Return it with the distribution around a former run's best points of the unit box, float64[N, G]."""
        mean, deviations = around(best)
        return self.model_copy(update={"mean": tuple(mean.tolist()), "deviations": tuple(deviations.tolist())})


class Founders(FormerRun):
    """A former run's best candidates, for the first population."""

    genotypes: tuple[tuple[float, ...], ...] = ()
    """What was read from that run when the search began: its best candidates as points of this search's space."""

    @property
    def known(self) -> bool:
        """Whether the former run has been read."""
        return bool(self.genotypes)

    def of(self, points: Sequence[Genotype]) -> Self:
        """Return it with these points, float64[G] each, best first."""
        return self.model_copy(update={"genotypes": tuple(tuple(point.tolist()) for point in points)})

    def points(self, space: SearchSpace) -> list[Genotype]:
        """Return the candidates as points of `space`, float64[G] each, best first.

        Raises
        ------
        ValueError
            If the former run has not been read, or its candidates are points of another space.
        """
        if not self.known:
            raise ValueError("warm_start names a run that was not read: give warm_start.of(points)")
        if any(len(genotype) != space.dimension for genotype in self.genotypes):
            raise ValueError(
                f"strategy.warm_start.genotypes: the space has {space.dimension} genes and these points have not; "
                "leave them out and name the run"
            )
        return [space.settled(np.array(genotype)) for genotype in self.genotypes]


def best_share(count: int) -> int:
    """Return how many of so many candidates a distribution begins around."""
    return max(1, round(GAMMA * count))


def around(best: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and deviations, float64[G] each, of points of the unit box, float64[N, G], each widened by α."""
    return best.mean(axis=0), np.sqrt(ALPHA**2 + best.var(axis=0))  # (eq. 7), its diagonal
