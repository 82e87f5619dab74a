"""CMA-ME: CMA-ES that looks for new cells and better elites of MAP-Elites' grid, and not for the best score.

"Covariance Matrix Adaptation for the Rapid Illumination of Behavior Space", arXiv 1912.02400 (GECCO 2020), with its
improvement emitter. Several emitters take turns, a generation each. An emitter samples from a normal distribution, its
candidates enter the grid in turn, and it is updated with their ranking: first those that fill an empty cell, by their
quality f; then those that replace an elite, by f − f_elite; then all others, by f − f_elite. When none of a generation
has entered the grid, or its descent has stalled, the emitter begins again around a random elite.

Failed candidates are ranked last. The paper does not say what a stalled descent is; here it is pycma's criteria.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import numpy as np
from pydantic import Field
from typing_extensions import Self

from evomerge.strategies.base import Candidate, Genotype, Proposal, Strategy
from evomerge.strategies.cma_backends import DIAGONAL_ABOVE, DescentStart, PycmaDescent
from evomerge.strategies.generation import Generation, default_population, resolved_number
from evomerge.strategies.initial_population import initial_population
from evomerge.strategies.registry import register_strategy
from evomerge.strategies.score_grid import EliteGrid, ScoreGridConfig
from evomerge.strategies.unit_box import UnitBox
from evomerge.strategies.warm_start import WarmStartPopulation
from fitness.results import Evaluation
from search_spaces.spaces.space import SearchSpace

FILLS, IMPROVES, NEITHER = 2, 1, 0
"""What a candidate does to the grid; the larger number is ranked first."""


@register_strategy
class CmaMeConfig(ScoreGridConfig):
    """CMA-ME: emitters of CMA-ES that search for new cells and better elites in a grid of scores."""

    warm_start_type = WarmStartPopulation

    kind: Literal["cma_me"] = "cma_me"
    emitters: int = Field(default=3, ge=1, le=1000)
    """Distributions that take turns; the paper has 15, for many thousand candidates."""
    population: Annotated[int, Field(ge=4, le=10_000)] | Literal["auto"] = "auto"
    """Candidates per generation of an emitter. `auto`: CMA-ES's default for the number of genes."""
    sigma: float = Field(default=0.2, gt=0, le=1)
    """Initial step size, as a fraction of each gene's range."""
    warm_start: WarmStartPopulation | None = None
    """Earlier run whose best candidates are proposed first. By default there is none."""

    def resolved(self, space: SearchSpace, *, noise: float, evaluations: int) -> Self:
        """Return the settings with `population: auto` replaced."""
        if self.population != "auto":
            return self
        return self.model_copy(update={"population": default_population(space.dimension)})

    def build(self, space: SearchSpace, seed: int) -> CmaMe:
        """Build the strategy; the settings must be resolved."""
        return CmaMe(space, seed, self)


class CmaMe(Strategy):
    """Synchronous: an emitter learns from a generation when all its results are in.

    Attributes
    ----------
    grid
        The elites.
    """

    guess = "archive's best"

    def __init__(self, space: SearchSpace, seed: int, config: CmaMeConfig) -> None:
        super().__init__(space, seed)
        self.config = config
        self.population = resolved_number("population", config.population)
        self.grid = EliteGrid(config)
        self._box = UnitBox(space)
        self._generation = Generation.none()
        self._emitters = [self._emitter(space.start) for _ in range(config.emitters)]

    def recommend(self) -> Genotype | None:
        """Return the elite with the best fitness; None while there is none."""
        return self.grid.best()

    def members(self) -> list[Genotype]:
        """Return the elites, best first."""
        return self.grid.ranked()

    def _emitter(self, around: Genotype) -> PycmaDescent:
        start = self._box.to_unit(around)
        begin = DescentStart(start, self.config.sigma, np.ones(len(start)), self.population)
        return PycmaDescent(begin, self.rng, diagonal=self.space.dimension > DIAGONAL_ABOVE)

    @property
    def _turn(self) -> int:
        """The emitter of the generation; the generation before the first one holds the initial candidates."""
        return (self._generation.number - 1) % self.config.emitters

    def _propose(self, n: int) -> list[Proposal]:
        if self._generation.complete:
            number = self._generation.number + 1
            if number == 0:
                samples = list(initial_population(self.space, self.config.warm_start, self.population))
            else:
                emitter = self._emitters[(number - 1) % self.config.emitters]
                samples = list(self._box.to_genes(emitter.ask()))
            self._generation = Generation(number, self._asked, samples)
        return self._generation.take(n)

    def _learn(self, candidate: Candidate, evaluation: Evaluation) -> None:
        if not self._generation.put(candidate, evaluation):
            return
        pairs = zip(self._generation.samples, self._generation.evaluations, strict=True)
        taken = [self._take(genotype, result) for genotype, result in pairs]
        if self._generation.number == 0:
            return
        emitter = self._emitters[self._turn]
        if all(kind == NEITHER for kind, _ in taken) or emitter.stalled:
            elites = self.grid.genotypes
            around = elites[int(self.rng.integers(len(elites)))] if elites else self.space.start
            self._emitters[self._turn] = self._emitter(around)
            return
        order = sorted(range(len(taken)), key=lambda at: taken[at])
        rank = np.empty(len(taken))
        rank[order] = np.arange(len(taken))
        # Ranks of later generations are higher, because equal best values would look like the end of a descent.
        emitter.tell(rank + self._generation.number * len(taken))

    def _take(self, genotype: Genotype, evaluation: Evaluation) -> tuple[int, float]:
        """Let a candidate enter the grid; return what it does to it, and by how much."""
        if not math.isfinite(evaluation.fitness):
            return NEITHER, -math.inf
        before = self.grid.elite_fitness(evaluation)
        self.grid.take(genotype, evaluation)
        if before is None:
            return FILLS, evaluation.fitness
        gain = evaluation.fitness - before
        return (IMPROVES if gain > 0 else NEITHER), gain
