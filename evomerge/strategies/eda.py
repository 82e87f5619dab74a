"""EDA: a categorical distribution per discrete gene, and a normal distribution per real gene.

Estimation of distribution, univariate: PBIL (S. Baluja, CMU-CS-94-163) for discrete genes; for real genes the
rank-weighted variance update of separable CMA-ES, computed around the old mean, so that the spread follows the step.
In data-flow spaces most real genes are conditional: a scale has an effect only where its slot is switched on. A real
gene therefore learns only from those of the better candidates in which it was active (`SearchSpace.active`), in
proportion to their weight; selection carries no information about an inactive gene.

Per generation, with weights w for the better half (log-ranks, as in CMA-ES) and a learning rate η:

    p ← (1 - η) p + η Σ w 1[value]              every discrete gene; then p is raised to its margin
    m' = Σ w x / Σ w,  s² ← (1 - ηa) s² + ηa Σ w (x - m)² / Σ w,  m ← (1 - a) m + a m'     sums over active ones

with a = the active candidates' share of the weight. The margin is 1/(2 D (n - 1)) for a gene with n values, D discrete
genes in all: half a changed gene per candidate once all distributions have converged.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from typing_extensions import Self

from evomerge.strategies.base import Candidate, Genotype, Proposal, Strategy, StrategyConfig
from evomerge.strategies.discrete import countable, first_probabilities, seen_probabilities
from evomerge.strategies.generation import Sampling, default_population, resolved_number
from evomerge.strategies.registry import register_strategy
from evomerge.strategies.unit_box import UnitBox
from evomerge.strategies.warm_start import WarmStartPopulation, normal_around
from fitness.results import Evaluation
from search_spaces.spaces.space import SearchSpace

Array = NDArray[np.float64]

NOISY = 0.01  # generations are larger when the standard error of the fitness is above this
MIN_GENERATIONS = 20
SMALLEST_DEVIATION = 1e-4  # of a gene's range


@register_strategy
class EdaConfig(StrategyConfig):
    """Univariate distributions; for switches and choices, and for scales that matter only where a switch is on."""

    warm_start_type = WarmStartPopulation

    kind: Literal["eda"] = "eda"
    population: Annotated[int, Field(ge=4, le=10_000)] | Literal["auto"] = "auto"
    """Candidates per generation, at least 4. `auto`: from the number of genes, the noise and the budget."""
    sigma: float = Field(default=0.2, gt=0, le=1)
    """Initial standard deviation of real genes, as a fraction of each gene's range."""
    learning_rate: float = Field(default=0.5, gt=0, le=1)
    """How far probabilities and variances move towards those of the better half in each generation."""
    start_probability: float = Field(default=0.5, ge=0, lt=1)
    """Initial probability of a discrete gene's start value. The rest is shared among all its values, the start
    included. A prior replaces this."""
    score_mean_every: int = Field(default=5, ge=1, le=10_000)
    """Score the distribution's mode as a candidate every this many generations."""
    warm_start: WarmStartPopulation | None = None
    """Earlier run whose best candidates give the initial distribution. By default there is none."""

    def resolved(self, space: SearchSpace, *, noise: float, evaluations: int) -> Self:
        """Return the settings with `population: auto` replaced."""
        if self.population != "auto":
            return self
        default = default_population(space.dimension)
        wanted = 4 * default if noise > NOISY else 2 * default
        return self.model_copy(update={"population": max(8, min(wanted, evaluations // MIN_GENERATIONS))})

    def build(self, space: SearchSpace, seed: int) -> Eda:
        """Build the strategy; the settings must be resolved."""
        return Eda(space, seed, self)


class Eda(Strategy):
    """Synchronous: it learns from a generation when all its results are in."""

    guess = "distribution mode"

    def __init__(self, space: SearchSpace, seed: int, config: EdaConfig) -> None:
        super().__init__(space, seed)
        self.config = config
        self.population = resolved_number("population", config.population)
        self._box = UnitBox(space)
        self._discrete = countable(space)
        self._mean = self._box.to_unit(space.start)
        self._deviation = np.full(space.dimension, config.sigma)
        self._probabilities = {
            int(gene): first_probabilities(space.genes[gene], config.start_probability)
            for gene in np.flatnonzero(self._discrete)
        }
        if config.warm_start is not None:
            self._start_around(np.array(config.warm_start.points(space)))
        self._sampling = Sampling(self._samples, self.recommend, config.score_mean_every, self._update)

    def recommend(self) -> Genotype:
        """Return the mode: the means of real genes, the most probable values of discrete genes."""
        point = self._box.to_genes(self._mean)
        for gene, probability in self._probabilities.items():
            point[gene] = self.space.low[gene] + np.argmax(probability) + 0.5
        return self.space.settled(point)

    def _propose(self, n: int) -> list[Proposal]:
        return self._sampling.take(n, self._asked)

    def _learn(self, candidate: Candidate, evaluation: Evaluation) -> None:
        self._sampling.put(candidate, evaluation)

    def _start_around(self, points: Array) -> None:
        """Start with the distribution of points float64[N, G]."""
        mean, self._deviation = normal_around(self._box.to_unit(points))
        self._mean = np.where(self._discrete, self._mean, mean)
        for gene, first in self._probabilities.items():
            self._probabilities[gene] = seen_probabilities(self.space.genes[gene], points[:, gene], first)

    def _samples(self) -> list[Genotype]:
        return [self._sample() for _ in range(self.population)]

    def _sample(self) -> Genotype:
        point = self._box.to_genes(self.rng.normal(self._mean, self._deviation))  # ~ N(m, s²)
        for gene, probability in self._probabilities.items():
            point[gene] = self.space.low[gene] + self.rng.choice(len(probability), p=probability) + 0.5
        return self.space.settled(point)

    def _update(self, samples: Array, fitness: Array) -> None:
        """Learn from P samples, float64[P, G], with their fitness, float64[P]."""
        kept = len(samples) // 2
        best = samples[np.argsort(-fitness, kind="stable")[:kept]]
        weights = math.log(kept + 0.5) - np.log(np.arange(1, kept + 1))
        weights /= weights.sum()
        self._update_discrete(best, weights)
        self._update_real(best, weights)

    def _update_discrete(self, best: Array, weights: Array) -> None:
        rate, count = self.config.learning_rate, len(self._probabilities)
        for gene, probability in self._probabilities.items():
            cells = (best[:, gene] - self.space.low[gene]).astype(int)
            seen = np.bincount(cells, weights, len(probability))
            moved = (1 - rate) * probability + rate * seen
            margin = 1 / (2 * count * (len(probability) - 1))
            moved = np.maximum(moved, min(margin, 0.5 / len(probability)))
            self._probabilities[gene] = moved / moved.sum()

    def _update_real(self, best: Array, weights: Array) -> None:
        unit = self._box.to_unit(best)
        active = np.array([self.space.active(genotype) for genotype in best])
        weight = active * weights[:, None]
        share = weight.sum(axis=0)  # a, float64[G]
        total = np.where(share > 0, share, 1.0)
        mean = (weight * unit).sum(axis=0) / total
        variance = (weight * (unit - self._mean) ** 2).sum(axis=0) / total
        rate = self.config.learning_rate * share
        self._deviation = np.sqrt((1 - rate) * self._deviation**2 + rate * variance)
        self._deviation = np.maximum(self._deviation, SMALLEST_DEVIATION)
        self._mean = np.where(self._discrete, self._mean, (1 - share) * self._mean + share * mean)
