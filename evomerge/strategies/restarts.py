"""Restarts of CMA-ES: population and step size of the next descent after one has stalled."""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np


class Restarts(Protocol):
    """A schedule of restarts.

    Attributes
    ----------
    count
        Restarts so far.
    """

    count: int

    def spent(self, evaluations: int) -> None:
        """Record evaluations used by the current descent."""

    def next(self, rng: np.random.Generator) -> tuple[int, float]:
        """Return population and step size of the next descent."""


class Ipop:
    """IPOP: twice the population at each restart.

    A. Auger, N. Hansen, "A Restart CMA Evolution Strategy With Increasing Population Size", CEC 2005.
    """

    def __init__(self, population: int, sigma: float) -> None:
        self.count = 0
        self._population, self._sigma = population, sigma

    def spent(self, evaluations: int) -> None:
        """Ignore it: the schedule does not depend on evaluations."""

    def next(self, rng: np.random.Generator) -> tuple[int, float]:
        """Return twice the last population, and the initial step size."""
        self.count += 1
        return self._population * 2**self.count, self._sigma


class Bipop:
    """BIPOP: two regimes that share the evaluations evenly, a doubling population and a small one with small steps.

    N. Hansen, "Benchmarking a BI-population CMA-ES on the BBOB-2009 function testbed", GECCO 2009, section 2:
    the next regime is the one that has used fewer evaluations. Small: λ = λ₀ (λ_large / (2 λ₀))^(U²) and
    σ = σ₀ 10^(-2U'), with U and U' uniform on [0, 1]. The first descent is counted for neither regime.
    """

    def __init__(self, population: int, sigma: float) -> None:
        self.count = 0
        self._population, self._sigma = population, sigma
        self._doublings = 0
        self._regime: str | None = None
        self._used = {"large": 0, "small": 0}

    def spent(self, evaluations: int) -> None:
        """Add evaluations to the current regime."""
        if self._regime is not None:
            self._used[self._regime] += evaluations

    def next(self, rng: np.random.Generator) -> tuple[int, float]:
        """Return population and step size of the regime that has used fewer evaluations; the large one on a tie."""
        self.count += 1
        self._regime = "large" if self._used["large"] <= self._used["small"] else "small"
        if self._regime == "large":
            self._doublings += 1
            return self._population * 2**self._doublings, self._sigma
        ratio = 0.5 * 2**self._doublings
        population = math.floor(self._population * ratio ** (rng.random() ** 2))
        return max(self._population, population), self._sigma * 10.0 ** (-2 * rng.random())
