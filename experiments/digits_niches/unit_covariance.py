"""CMA-ES on raw weights with the covariance left at the unit matrix: what the full method is with so many weights.

The paper's CMA-ES is pycma 4.0 with its defaults, on 19,210 weights. There a generation of 20 changes the covariance
by rank-one and rank-mu updates of 5e-9 and 2e-8, and pycma computes the matrix's root after every 189 generations:
until then the two methods are one, and after 2,500 generations the matrix has kept all but 7e-5 of its unit part. What
adapts is the mean and the step size. So the matrix, 3 GB, can be left out. The step size adapts as in pycma 4.0, by the
length of the evolution path; without a matrix, and in later versions from 300 weights on, pycma compares two points
instead, and then a run stands still after some 4,000 evaluations.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from evomerge.strategies.base import Candidate, Genotype, Proposal, Strategy, StrategyConfig
from evomerge.strategies.generation import Generation
from fitness.results import Evaluation
from search_spaces.spaces.space import SearchSpace

SIGMA = 0.01
POPULATION = 20


class UnitCovarianceConfig(StrategyConfig):
    """The authors' settings: a population of 20, a first step of 0.01."""

    kind: Literal["unit_covariance"] = "unit_covariance"

    def build(self, space: SearchSpace, seed: int) -> UnitCovariance:
        """Build the strategy."""
        return UnitCovariance(space, seed)


class UnitCovariance(Strategy):
    """pycma without its covariance matrix; synchronous, from the space's start."""

    def __init__(self, space: SearchSpace, seed: int) -> None:
        super().__init__(space, seed)
        self.population = POPULATION
        options = {
            "popsize": POPULATION,
            "CMA_on": 0,
            "CMA_diagonal": True,  # with the line above: no matrix at all
            "randn": lambda rows, columns: self.rng.standard_normal((rows, columns)),
            "seed": math.nan,
            "verbose": -9,
            "verb_log": 0,
            "signals_filename": None,
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import cma
            from cma.sigma_adaptation import CMAAdaptSigmaCSA

            options["AdaptSigma"] = CMAAdaptSigmaCSA
            self._es: Any = cma.CMAEvolutionStrategy(space.start, SIGMA, options)
        self._samples: list[Genotype] = []
        self._generation = Generation.none()

    def _propose(self, n: int) -> Sequence[Proposal]:
        if self._generation.complete:
            self._samples = self._es.ask()
            self._generation = Generation(self._generation.number + 1, self._asked, self._samples)
        return self._generation.take(n)

    def _learn(self, candidate: Candidate, evaluation: Evaluation) -> None:
        if self._generation.put(candidate, evaluation):
            self._es.tell(self._samples, list(-np.asarray(self._generation.fitness)))
