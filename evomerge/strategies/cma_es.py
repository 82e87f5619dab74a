"""CMA-ES on pycma, for noisy fitness and a box.

N. Hansen, "The CMA Evolution Strategy: A Tutorial", arXiv 1604.00772; implementation: the package `cma`.
Deviations from pycma's defaults, each for noisy fitness:

- The search runs in the unit box (z = (x - low) / (high - low)), so one step size suits every gene.
- Population `auto` is four times pycma's 4 + floor(3 ln G) when the fitness has a standard error above
  `NOISY`, but never so large that the budget holds fewer than `MIN_GENERATIONS` generations.
- Every `mean_every` generations the distribution's mean is offered as a candidate of its own. With noisy
  fitness the best sample ever seen is mostly the luckiest one; the mean has no luck in it. The mean is
  scored and never told to pycma.
- Above `DIAGONAL_ABOVE` genes the covariance matrix is diagonal (separable CMA-ES: O(G) instead of O(G^2)).
- When pycma reports a stall, a new descent starts from a random point with twice the population (IPOP,
  Auger and Hansen 2005).
"""

from __future__ import annotations

import math
import warnings
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from evomerge.strategies.base import Candidate, Genotype, Strategy
from fitness.evaluation import Evaluation
from search_spaces.space import SearchSpace

NOISY = 0.01
DIAGONAL_ABOVE = 200
MIN_GENERATIONS = 12


class CmaEsConfig(BaseModel):
    """Covariance matrix adaptation: the default for up to a few hundred genes."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: Literal["cma_es"] = "cma_es"
    population: Annotated[int, Field(ge=4)] | Literal["auto"] = "auto"
    """Candidates per generation, at least 4; `auto` follows the number of genes, the noise and the budget."""
    sigma: float = Field(default=0.2, gt=0, le=1)
    """First step size, as a fraction of each gene's range."""
    mean_every: int = Field(default=5, ge=1)
    """The distribution's mean is scored each so many generations."""
    diagonal: bool | Literal["auto"] = "auto"
    """Separable mode; `auto`: above 200 genes."""
    restarts: bool = True
    """Start again from a random point, with twice the population, when the search has stalled."""

    def resolved(self, genes: int, *, noise: float, evaluations: int) -> CmaEsConfig:
        """Return the settings with `auto` replaced by what it means for this problem.

        Parameters
        ----------
        genes
            Dimension of the space.
        noise
            Standard error to expect of one fitness value.
        evaluations
            The budget.
        """
        if self.population != "auto":
            return self
        default = 4 + math.floor(3 * math.log(max(genes, 1)))
        wanted = 4 * default if noise > NOISY else default
        population = max(default, min(wanted, evaluations // MIN_GENERATIONS))
        return self.model_copy(update={"population": population})

    def build(self, space: SearchSpace, seed: int) -> CmaEs:
        """Build the strategy; the settings must be resolved."""
        return CmaEs(space, seed, self)


class CmaEs(Strategy):
    """CMA-ES over the space's box; synchronous: a generation is learnt from when all its results are in."""

    def __init__(self, space: SearchSpace, seed: int, config: CmaEsConfig) -> None:
        super().__init__(space, seed)
        if config.population == "auto":
            raise ValueError("population is `auto`: call config.resolved(...) first, or give a number")
        self.config = config
        self.population = config.population
        self.generation = -1
        self.restarted = 0
        self._samples: list[np.ndarray] = []  # pycma's own arrays, which it must get back
        self._fitness: list[float] = []  # one per sample
        self._first = 0  # id of the generation's first sample; the samples come first, a mean is the last
        self._queue: list[tuple[Genotype, Literal["sample", "mean"], int]] = []  # not yet handed out
        self._missing = 0  # results of this generation still to come, the queue's included
        self._best_mean: tuple[float, Genotype] = (-math.inf, space.start.copy())
        self._best_mean_of_descent = -math.inf
        self._es = self._descent(space.start)

    def recommend(self) -> Genotype:
        """Return the distribution's mean, or an earlier descent's where that one scored better."""
        if self._best_mean[0] > self._best_mean_of_descent:
            return self._best_mean[1].copy()
        return self._mean()

    def _propose(self, n: int) -> list[tuple[Genotype, Literal["sample", "mean"], int]]:
        if self._missing == 0:
            self._new_generation()
        taken, self._queue = self._queue[:n], self._queue[n:]
        return taken

    def _learn(self, candidate: Candidate, evaluation: Evaluation) -> None:
        if candidate.kind == "mean":
            self._note_mean(candidate.genotype, evaluation.fitness)
        else:
            self._fitness[candidate.id - self._first] = evaluation.fitness
        self._missing -= 1
        if self._missing == 0:
            self._end_generation()

    def _new_generation(self) -> None:
        self.generation += 1
        self._first = self._asked
        self._samples = self._es.ask()
        self._fitness = [math.nan] * len(self._samples)
        self._queue = [(self._to_genes(z), "sample", self.generation) for z in self._samples]
        if self.generation % self.config.mean_every == 0:
            self._queue.append((self._mean(), "mean", self.generation))
        self._missing = len(self._queue)

    def _end_generation(self) -> None:
        fitness = np.array(self._fitness)
        if np.isfinite(fitness).any():
            # A failed candidate ranks behind every other one; pycma minimises.
            fitness[~np.isfinite(fitness)] = np.nanmin(fitness[np.isfinite(fitness)]) - 1.0
            self._es.tell(self._samples, list(-fitness))
        if self.config.restarts and self._es.stop():
            self._restart()

    def _restart(self) -> None:
        self.restarted += 1
        self.population *= 2
        self._best_mean_of_descent = -math.inf
        self._es = self._descent(self.space.sample(self.rng))

    def _descent(self, start: Genotype) -> Any:
        unit = self._to_unit(start)
        diagonal = self.config.diagonal
        options = {
            "bounds": [0, 1],
            "popsize": self.population,
            # Its own generator, and none of numpy's global one.
            "randn": lambda rows, columns: self.rng.standard_normal((rows, columns)),
            "seed": math.nan,
            "CMA_diagonal": self.space.dimension > DIAGONAL_ABOVE if diagonal == "auto" else diagonal,
            "verbose": -9,
            "verb_log": 0,
            "signals_filename": None,  # else pycma looks for a file of options in the working directory
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that matplotlib is missing; that the seed is not used
            import cma  # slow, and only this strategy needs it

            return cma.CMAEvolutionStrategy(unit, self.config.sigma, options)

    def _mean(self) -> Genotype:
        return self._to_genes(self._es.result.xfavorite)

    def _note_mean(self, genotype: Genotype, fitness: float) -> None:
        if math.isfinite(fitness):
            self._best_mean_of_descent = max(self._best_mean_of_descent, fitness)
            if fitness > self._best_mean[0]:
                self._best_mean = (fitness, genotype.copy())

    def _to_unit(self, genotype: Genotype) -> np.ndarray:
        unit = (genotype - self.space.low) / (self.space.high - self.space.low)
        # pycma wants two dimensions; with one gene the second is a dummy that nothing reads.
        return np.append(unit, 0.5) if self.space.dimension == 1 else unit

    def _to_genes(self, unit: np.ndarray) -> Genotype:
        unit = np.clip(np.asarray(unit, dtype=np.float64)[: self.space.dimension], 0.0, 1.0)
        genes = self.space.low + unit * (self.space.high - self.space.low)
        return np.clip(genes, self.space.low, self.space.high)
