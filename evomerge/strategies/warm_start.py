"""A warm start: where a former search of the same space has found its best candidates.

M. Nomura et al., "Warm Starting CMA-ES for Hyperparameter Optimization", AAAI 2021, arXiv 2012.06932, equations 5
to 7 with a diagonal covariance, since a run's best tenth is mostly smaller than the number of genes: the best
γ = 10 % of its candidates, each widened by a normal distribution of standard deviation α = 0.1 in the unit box, have
the mean Σ xᵢ / n and the variance α² + Var(x).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, model_validator

GAMMA = 0.1
ALPHA = 0.1


class WarmStart(BaseModel):
    """Where a search begins instead of the space's start; a name alone stands for `{run: NAME}`."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    run: str = ""
    """Run directory of a former search of the same space."""
    mean: tuple[float, ...] = ()
    """What was read from that run when the search began: mean of its best candidates, per gene, in [0, 1]."""
    deviations: tuple[float, ...] = ()
    """Likewise, standard deviation per gene, as a fraction of its range."""

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, value: object) -> object:
        return {"run": value} if isinstance(value, str) else value

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
        best = np.array(unit)[order[: max(1, round(GAMMA * len(unit)))]]
        deviations = np.sqrt(ALPHA**2 + best.var(axis=0))  # eq. 7, its diagonal
        return self.model_copy(update={"mean": tuple(best.mean(0).tolist()), "deviations": tuple(deviations.tolist())})
