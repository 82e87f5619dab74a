"""One descent of CMA-ES in the unit box, by pycma or, with an adapted learning rate, by `cmaes`.

A descent proposes a population, float64[P, G], is told its fitness, and reports when it has stalled. It needs at
least two dimensions: with one gene, a second coordinate is added and ignored.

Two libraries are used, because neither replaces the other:

- `cma` (pycma) runs the default: active covariance update, the box by a smooth transformation, diagonal covariance for
  many genes. `cmaes` handles the box by resampling and clipping and has other stopping criteria. With it, every search
  with `cma_es` would propose other candidates: the published results would no longer follow from their seeds, and no
  recorded run could be resumed, because resuming replays the proposals.
- `cmaes` (the extra `strategies`) has what pycma lacks: the adapted learning rate (LRA-CMA-ES) here, and CatCMA with
  margin in `catcma`. A default installation has pycma only.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from evomerge.extras import require

Array = NDArray[np.float64]

DIAGONAL_ABOVE = 200
"""With more genes the covariance matrix is diagonal (separable CMA-ES: O(G) instead of O(G²))."""


@dataclass(frozen=True)
class DescentStart:
    """Initial distribution and population of a descent.

    Attributes
    ----------
    mean
        float64[G], in the unit box.
    sigma
        Step size, as a fraction of the box's edge.
    scales
        float64[G]: the initial standard deviation of each gene is `sigma` times this.
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
    """An implementation of CMA-ES."""

    def ask(self) -> Array:
        """Draw a population, float64[P, G]."""

    def tell(self, fitness: Array) -> None:
        """Learn from the last population's fitness, float64[P]; larger is better."""

    @property
    def mean(self) -> Array:
        """The distribution's mean, float64[G]."""

    @property
    def stalled(self) -> bool:
        """Whether its stopping criteria are met."""


class PycmaDescent:
    """pycma: full or diagonal covariance, active update, bounds by a smooth transformation."""

    def __init__(self, start: DescentStart, rng: np.random.Generator, *, diagonal: bool) -> None:
        self._dimension = len(start.mean)
        self._samples: list[Array] = []  # pycma's own arrays; `tell` needs the same ones
        mean, scales = start.padded
        options = {
            "bounds": [0, 1],
            "popsize": start.population,
            "CMA_stds": scales,
            # Our generator instead of numpy's global one.
            "randn": lambda rows, columns: rng.standard_normal((rows, columns)),
            "seed": math.nan,
            "CMA_diagonal": diagonal,
            "verbose": -9,
            "verb_log": 0,
            "signals_filename": None,  # otherwise pycma reads options from a file in the working directory
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about missing matplotlib, and about the seed, which is not used
            import cma  # slow to import, and needed by this strategy only

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
        """Whether pycma's stopping criteria are met."""
        return bool(self._es.stop())


def adapted_package() -> ModuleType:
    """Import the package of `AdaptedDescent`.

    Raises
    ------
    MissingExtraError
        If it is not installed.
    """
    return require("cmaes", "strategies", "strategy.learning_rate: adapted")


class AdaptedDescent:
    """LRA-CMA-ES: adapts the learning rates to keep the signal-to-noise ratio of the updates constant.

    M. Nomura, Y. Akimoto, I. Ono, "CMA-ES with Learning Rate Adaptation", arXiv 2304.03473; package `cmaes`.
    """

    def __init__(self, start: DescentStart, rng: np.random.Generator) -> None:
        cmaes = adapted_package()
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
        mean: Array = np.clip(np.asarray(self._es.mean), 0.0, 1.0)
        return mean[: self._dimension]

    @property
    def stalled(self) -> bool:
        """Whether cmaes' stopping criteria are met."""
        return bool(self._es.should_stop())
