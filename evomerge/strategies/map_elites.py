"""MAP-Elites: a grid of cells over the scores on the tasks, with the best candidate of each cell.

"Illuminating search spaces by mapping elites", arXiv 1504.04909, in the form that M2N2 (arXiv 2508.16204) compares
itself with: an axis per task, cut into equal cells; a candidate belongs to the cell of its scores on the tasks, and its
quality is its fitness. Steady state: two elites, drawn in proportion to quality, have a child, which enters its cell if
the cell is empty or its elite is worse.

Deviations from that program: a score at or beyond the end of an axis belongs to the last cell (there a score of 1 is
lost); a single elite is crossed with itself, so that the search can start. With few items asked, the cell is computed
from the plain means of the answers, and the quality from the estimate of the full score.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import numpy as np
from pydantic import Field
from typing_extensions import Self

from evomerge.strategies.base import Candidate, Genotype, Proposal, Strategy
from evomerge.strategies.generation import Answered, resolved_number
from evomerge.strategies.initial_population import Child, InitialPopulation, initial_population, warm_up_for
from evomerge.strategies.m2n2 import AGAIN
from evomerge.strategies.registry import register_strategy
from evomerge.strategies.score_grid import EliteGrid, ScoreGridConfig
from evomerge.strategies.selection import couple, quality
from evomerge.strategies.warm_start import WarmStartPopulation
from fitness.results import Evaluation
from search_spaces.spaces.space import SearchSpace


@register_strategy
class MapElitesConfig(ScoreGridConfig):
    """Quality diversity: keep the best candidate for each combination of task scores; for two tasks or more."""

    warm_start_type = WarmStartPopulation
    archive_compares = "a member's cell follows from the means of its answers"

    kind: Literal["map_elites"] = "map_elites"
    crossover: float = Field(default=1.0, ge=0, le=1)
    """Probability that a child has two parents."""
    mutation: float = Field(default=0.0, ge=0, le=1)
    """Probability that a child is mutated: 0 for merges, 1 to evolve weights from scratch."""
    warm_up: Annotated[int, Field(ge=0, le=100_000)] | Literal["auto"] = "auto"
    """Random merges proposed after the initial candidates. `auto`: as many as an axis has cells, at most a twentieth of
    the budget."""
    population: int = Field(default=16, ge=1, le=10_000)
    """Batch size. It only sets how often failures are checked and how many candidates a warm start may load."""
    warm_start: WarmStartPopulation | None = None
    """Earlier run whose best candidates are proposed first. By default there is none."""

    def resolved(self, space: SearchSpace, *, noise: float, evaluations: int) -> Self:
        """Return the settings with `warm_up: auto` replaced."""
        if self.warm_up != "auto":
            return self
        return self.model_copy(update={"warm_up": warm_up_for(self.cells, evaluations, self.warm_start)})

    @property
    def keeps_archive(self) -> bool:
        """True: each child competes with the elite of its cell."""
        return True

    def build(self, space: SearchSpace, seed: int) -> MapElites:
        """Build the strategy; the settings must be resolved."""
        return MapElites(space, seed, self)


class MapElites(Strategy):
    """A grid of elites. It never waits for results, so no worker is idle."""

    guess = "archive's best"

    steady_state = True

    def __init__(self, space: SearchSpace, seed: int, config: MapElitesConfig) -> None:
        super().__init__(space, seed)
        self.config = config
        self.population = config.population
        self.grid = EliteGrid(config)
        first = initial_population(space, config.warm_start, config.population)
        self._answered = Answered()
        self._initial = InitialPopulation(space, first, resolved_number("warm_up", config.warm_up))

    def recommend(self) -> Genotype | None:
        """Return the elite with the best fitness; None while there is none."""
        return self.grid.best()

    def members(self) -> list[Genotype]:
        """Return the elites, best first."""
        return self.grid.ranked()

    def keeps(self, evaluation: Evaluation) -> bool:
        """Return whether a candidate with this evaluation would enter its cell now."""
        return self.grid.would_take(evaluation)

    def _propose(self, n: int) -> list[Proposal]:
        return [self._proposal(identity) for identity in range(self._asked, self._asked + n)]

    def _proposal(self, identity: int) -> Proposal:
        generation = identity // self.population
        if identity % AGAIN == AGAIN - 1 and not self._initial.includes(identity):
            best = self.recommend()
            if best is not None and self._answered.misses_some(self._id_of(best)):
                return Proposal(best, "again", generation)
        child, parents = self._next(identity)
        return Proposal(child, "sample", generation, parents)

    def _next(self, identity: int) -> Child:
        elites = self.grid.genotypes
        if self._initial.includes(identity) or not elites:
            return self._initial.proposed(identity, self.rng)
        first, second = couple(quality(np.array(self.grid.fitness)), self.rng)
        parents = [elites[first]]
        child: Genotype = np.array(elites[first])
        if self.rng.random() < self.config.crossover:
            parents.append(elites[second])
            child = self.space.crossover(child, elites[second], self.rng)
        if self.rng.random() < self.config.mutation:
            child = self.space.mutate(child, self.rng)
        return Child(child, parents)

    def _learn(self, candidate: Candidate, evaluation: Evaluation) -> None:
        self._answered.add(self._first_id(candidate), evaluation)
        if not math.isfinite(evaluation.fitness):
            return
        if candidate.kind == "again":
            self.grid.rescore(candidate.genotype, evaluation)
        else:
            self.grid.take(candidate.genotype, evaluation)
