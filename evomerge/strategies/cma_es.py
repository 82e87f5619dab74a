"""CMA-ES with an ask/tell interface, for noisy fitness and a box of genes.

N. Hansen, "The CMA Evolution Strategy: A Tutorial", arXiv 1604.00772. Implementation: see `cma_backends`.
Deviations from pycma's defaults, all because fitness is noisy:

- The search runs in the unit box (z = (x - low) / (high - low)), so one step size suits every gene.
- Population `auto` is four times pycma's 4 + floor(3 ln G) when the fitness has a standard error above
  `NOISY`, but never so large that the budget holds fewer than `MIN_GENERATIONS` generations.
- Every `score_mean_every` generations the distribution's mean is proposed as a candidate of its own. With noisy
  fitness the best sample is usually the luckiest one; the mean has no such selection bias. The mean is
  scored but not told to pycma.
- When a descent has stalled, a new one starts from a random point: with twice the population (IPOP, Auger and
  Hansen 2005), or alternately with a growing and a small population (BIPOP, see `restarts`).
- A warm start takes mean and standard deviations from an earlier run's best tenth (see `warm_start`).
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import numpy as np
from pydantic import Field
from typing_extensions import Self

from evomerge.strategies.base import Candidate, Genotype, Proposal, Strategy, StrategyConfig
from evomerge.strategies.cma_backends import (
    DIAGONAL_ABOVE,
    AdaptedDescent,
    Descent,
    DescentStart,
    PycmaDescent,
    adapted_package,
)
from evomerge.strategies.generation import Generation, default_population, failures_last, resolved_number
from evomerge.strategies.penalty import Penalty
from evomerge.strategies.registry import register_strategy
from evomerge.strategies.restarts import Bipop, Ipop, Restarts
from evomerge.strategies.unit_box import UnitBox
from evomerge.strategies.warm_start import WarmStartDistribution
from fitness.results import Evaluation
from search_spaces.spaces.space import SearchSpace

NOISY = 0.01
MIN_GENERATIONS = 12
ADAPTED_UP_TO = 64


@register_strategy
class CmaEsConfig(StrategyConfig):
    """Covariance matrix adaptation; the default, for up to a few hundred genes."""

    warm_start_type = WarmStartDistribution

    kind: Literal["cma_es"] = "cma_es"
    population: Annotated[int, Field(ge=4, le=10_000)] | Literal["auto"] = "auto"
    """Candidates per generation, at least 4. `auto`: from the number of genes, the noise and the budget."""
    sigma: float = Field(default=0.2, gt=0, le=1)
    """Initial step size, as a fraction of each gene's range."""
    score_mean_every: int = Field(default=5, ge=1, le=10_000)
    """Score the distribution's mean as a candidate every this many generations."""
    diagonal: bool | Literal["auto"] = "auto"
    """Separable CMA-ES: a diagonal covariance matrix. `auto`: with more than 200 genes."""
    learning_rate: Literal["fixed", "adapted"] = "fixed"
    """`adapted`: adapt the learning rates to the noise (LRA-CMA-ES; up to 64 genes; needs the extra `strategies`).
    Slower at first, more reliable in the end."""
    restarts: bool | Literal["ipop", "bipop"] = True
    """Restart from a random point when the search has stalled. `ipop` or true: with twice the population each time.
    `bipop`: in turn with twice the population, and with a small population and small steps."""
    l1: float | None = Field(default=None, ge=0, le=1000)
    """Penalty: this factor times the mean absolute value of the weight genes is subtracted from the score for
    learning. LoRAHub and Evo-Merging have 0.05. None: by nothing."""
    warm_start: WarmStartDistribution | None = None
    """Earlier run whose best candidates give the initial distribution. By default there is none."""

    def resolved(self, space: SearchSpace, *, noise: float, evaluations: int) -> Self:
        """Return the settings with `population: auto` replaced.

        Raises
        ------
        ValueError
            If there are too many genes for an adapted learning rate, its package is missing, or no gene is for a weight
            that `l1` could keep small.
        """
        genes = space.dimension
        Penalty(space, self.l1 or 0.0)
        if self.learning_rate == "adapted":
            if genes > ADAPTED_UP_TO:
                raise ValueError(
                    f"strategy.learning_rate: adapted is for up to {ADAPTED_UP_TO} genes and the space has {genes}; "
                    "write fixed, or reduce the number of genes (space.layers_per_group, space.modules)"
                )
            adapted_package()
        if self.population != "auto":
            return self
        default = default_population(genes)
        wanted = 4 * default if noise > NOISY else default
        population = max(default, min(wanted, evaluations // MIN_GENERATIONS))
        return self.model_copy(update={"population": population})

    def build(self, space: SearchSpace, seed: int) -> CmaEs:
        """Build the strategy; the settings must be resolved."""
        return CmaEs(space, seed, self)


class CmaEs(Strategy):
    """CMA-ES in the space's box. Synchronous: it learns from a generation when all its results are in."""

    def __init__(self, space: SearchSpace, seed: int, config: CmaEsConfig) -> None:
        super().__init__(space, seed)
        self.config = config
        self.population = resolved_number("population", config.population)
        self._box, self._penalty = UnitBox(space), Penalty(space, config.l1 or 0.0)
        self._restarts: Restarts = (Bipop if config.restarts == "bipop" else Ipop)(self.population, config.sigma)
        self._generation = Generation.none()
        self._best_mean: tuple[float, Genotype] = (-math.inf, space.start.copy())
        self._best_mean_of_descent = -math.inf
        self._descent = self._start(self._first_start())

    def recommend(self) -> Genotype:
        """Return the distribution's mean, or that of an earlier descent if it scored better."""
        if self._best_mean[0] > self._best_mean_of_descent:
            return np.array(self._best_mean[1])
        return self._mean()

    def _propose(self, n: int) -> list[Proposal]:
        if self._generation.complete:
            number = self._generation.number + 1
            samples = self._box.to_genes(self._descent.ask())
            mean = self._mean() if number % self.config.score_mean_every == 0 else None
            self._generation = Generation(number, self._asked, list(samples), mean)
        return self._generation.take(n)

    def _learn(self, candidate: Candidate, evaluation: Evaluation) -> None:
        if self._generation.put(candidate, self._penalty(candidate.genotype, evaluation)):
            self._end_generation()

    def _end_generation(self) -> None:
        generation = self._generation
        if generation.mean is not None and generation.mean_evaluation is not None:
            self._note_mean(generation.mean, generation.mean_evaluation.fitness)
        fitness = failures_last(generation.fitness)
        if fitness is not None:
            self._descent.tell(fitness)
        self._restarts.spent(len(generation.samples))
        if self.config.restarts and self._descent.stalled:
            self._restart()

    def _restart(self) -> None:
        self.population, sigma = self._restarts.next(self.rng)
        self._best_mean_of_descent = -math.inf
        start = self._box.to_unit(self.space.sample(self.rng))
        self._descent = self._start(DescentStart(start, sigma, np.ones(len(start)), self.population))

    def _first_start(self) -> DescentStart:
        warm = self.config.warm_start
        if warm is not None:
            mean, deviations = warm.distribution()
            sigma = math.sqrt(np.mean(deviations**2))
            return DescentStart(mean, sigma, deviations / sigma, self.population)
        start = self._box.to_unit(self.space.start)
        return DescentStart(start, self.config.sigma, np.ones(len(start)), self.population)

    def _start(self, start: DescentStart) -> Descent:
        if self.config.learning_rate == "adapted":
            return AdaptedDescent(start, self.rng)
        diagonal = self.config.diagonal
        return PycmaDescent(
            start, self.rng, diagonal=self.space.dimension > DIAGONAL_ABOVE if diagonal == "auto" else diagonal
        )

    def _mean(self) -> Genotype:
        return self._box.to_genes(self._descent.mean)

    def _note_mean(self, genotype: Genotype, fitness: float) -> None:
        if math.isfinite(fitness):
            self._best_mean_of_descent = max(self._best_mean_of_descent, fitness)
            if fitness > self._best_mean[0]:
                self._best_mean = (fitness, genotype.copy())
