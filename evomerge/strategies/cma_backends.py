"""One descent of CMA-ES in the unit cube, by pycma or, with an adapted learning rate, by `cmaes`.

A descent is asked for a population, float64[P, G], told its fitness, and says when it has stalled. It lives in
at least two dimensions: with one gene a second coordinate is a dummy that nothing reads.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

DIAGONAL_ABOVE = 200
"""With more genes the covariance matrix is diagonal (separable CMA-ES: O(G) instead of O(G²))."""


@dataclass(frozen=True)
class DescentStart:
    """Where and how a descent begins.

    Attributes
    ----------
    mean
        float64[G], in the unit cube.
    sigma
        Step size, as a fraction of the cube's edge.
    scales
        float64[G]: the first standard deviation of each gene is `sigma` times this.
    population
        Samples per generation.
    """

    mean: Array
    sigma: float
    scales: Array
    population: int

    @property
    def padded(self) -> tuple[Array, Array]:
        """Mean and scales in at least two dimensions."""
        if len(self.mean) > 1:
            return self.mean, self.scales
        return np.append(self.mean, 0.5), np.append(self.scales, 1.0)


class Descent(Protocol):
    """What CMA-ES asks of an implementation."""

    def ask(self) -> Array:
        """Draw a population, float64[P, G]."""

    def tell(self, fitness: Array) -> None:
        """Learn from the last population's fitness, float64[P], larger is better."""

    @property
    def mean(self) -> Array:
        """The distribution's mean, float64[G]."""

    @property
    def stalled(self) -> bool:
        """Whether going on promises nothing."""


class PycmaDescent:
    """pycma: full or diagonal covariance, active update, bounds by a smooth transformation."""

    def __init__(self, start: DescentStart, rng: np.random.Generator, *, diagonal: bool) -> None:
        self._dimension = len(start.mean)
        self._samples: list[Array] = []  # pycma's own arrays, which it must get back
        mean, scales = start.padded
        options = {
            "bounds": [0, 1],
            "popsize": start.population,
            "CMA_stds": scales,
            # Its own generator, and none of numpy's global one.
            "randn": lambda rows, columns: rng.standard_normal((rows, columns)),
            "seed": math.nan,
            "CMA_diagonal": diagonal,
            "verbose": -9,
            "verb_log": 0,
            "signals_filename": None,  # else pycma looks for a file of options in the working directory
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that matplotlib is missing; that the seed is not used
            import cma  # slow, and only this strategy needs it

            self._es: Any = cma.CMAEvolutionStrategy(mean, start.sigma, options)

    def ask(self) -> Array:
        """Draw a population."""
        self._samples = self._es.ask()
        return np.array(self._samples)[:, : self._dimension]

    def tell(self, fitness: Array) -> None:
        """Learn; pycma minimises."""
        self._es.tell(self._samples, list(-fitness))

    @property
    def mean(self) -> Array:
        """The mean."""
        return np.asarray(self._es.result.xfavorite)[: self._dimension]

    @property
    def stalled(self) -> bool:
        """What pycma's own criteria say."""
        return bool(self._es.stop())


class AdaptedDescent:
    """LRA-CMA-ES: the learning rates keep the signal-to-noise ratio of the updates constant.

    M. Nomura, Y. Akimoto, I. Ono, "CMA-ES with Learning Rate Adaptation", arXiv 2304.03473; the package `cmaes`.
    """

    def __init__(self, start: DescentStart, rng: np.random.Generator) -> None:
        from evomerge.strategies.extras import require

        cmaes = require("cmaes", "strategy.learning_rate: adapted")
        self._dimension = len(start.mean)
        self._samples: list[Array] = []
        mean, scales = start.padded
        self._es: Any = cmaes.CMA(
            mean=mean.copy(),
            sigma=start.sigma,
            cov=np.diag(scales**2),
            bounds=np.tile([0.0, 1.0], (len(mean), 1)),
            population_size=start.population,
            seed=int(rng.integers(2**32)),
            lr_adapt=True,
        )

    def ask(self) -> Array:
        """Draw a population."""
        self._samples = [self._es.ask() for _ in range(self._es.population_size)]
        return np.array(self._samples)[:, : self._dimension]

    def tell(self, fitness: Array) -> None:
        """Learn; cmaes minimises."""
        self._es.tell(list(zip(self._samples, (-fitness).tolist(), strict=True)))

    @property
    def mean(self) -> Array:
        """The mean."""
        return np.clip(np.asarray(self._es.mean), 0.0, 1.0)[: self._dimension]

    @property
    def stalled(self) -> bool:
        """What cmaes' own criteria say."""
        return bool(self._es.should_stop())
