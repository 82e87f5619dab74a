"""NSGA-II: several objectives at once; the result is a front of trade-offs.

K. Deb et al., "A Fast and Elitist Multiobjective Genetic Algorithm: NSGA-II", IEEE Trans. Evol. Comp. 6(2), 2002.
Parents are selected by binary tournament on front, then crowding distance. Children come from the space's own crossover
and mutation, which handle conditional and discrete genes. Survivors are the best fronts of parents and children, the
last front reduced by crowding distance. A score below its minimum is a violated constraint.

pymoo's NSGA-II can be replayed as well (0.6.2 draws from its own generator, 0.6.1 from numpy's global one), but its
operators are for boxes of real numbers only. The tests compare fronts and crowding distances with pymoo's.

Deviations: crowding is divided by the number of objectives, as in pymoo (the order is the same); failed candidates
never become parents.
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import Field
from typing_extensions import Self

from evomerge.strategies.base import Candidate, Genotype, Proposal, Strategy, StrategyConfig
from evomerge.strategies.generation import Generation, resolved_number
from evomerge.strategies.initial_population import Child, initial_population
from evomerge.strategies.registry import register_strategy
from evomerge.strategies.warm_start import WarmStartPopulation
from fitness.pareto import crowding_by_front, ranks
from fitness.results import Evaluation
from search_spaces.spaces.space import SearchSpace


@register_strategy
class Nsga2Config(StrategyConfig):
    """For several objectives (`fitness.objectives: per_task`): a front of trade-offs instead of one best recipe."""

    objectives = "several"
    warm_start_type = WarmStartPopulation
    as_stage = False

    kind: Literal["nsga2"] = "nsga2"
    population: Annotated[int, Field(ge=4, le=10_000)] | Literal["auto"] = "auto"
    """Candidates per generation, at least 4. `auto`: from the budget."""
    crossover: float = Field(default=0.9, ge=0, le=1)
    """Fraction of children with two parents; the others are mutated copies of one parent."""
    warm_start: WarmStartPopulation | None = None
    """Earlier run whose best candidates are proposed first. By default there is none."""

    def resolved(self, space: SearchSpace, *, noise: float, evaluations: int) -> Self:
        """Return the settings with `population: auto` replaced."""
        if self.population != "auto":
            return self
        return self.model_copy(update={"population": int(np.clip(evaluations // 15, 12, 100))})

    def build(self, space: SearchSpace, seed: int) -> Nsga2:
        """Build the strategy; the settings must be resolved."""
        return Nsga2(space, seed, self)


class Nsga2(Strategy):
    """Synchronous: it learns from a generation when all its results are in."""

    def __init__(self, space: SearchSpace, seed: int, config: Nsga2Config) -> None:
        super().__init__(space, seed)
        self.config = config
        self.population = resolved_number("population", config.population)
        self._generation = Generation.none()
        self._parents: list[Genotype] = []
        self._results: list[Evaluation] = []  # of the parents
        self._rank = np.zeros(0, np.int64)
        self._crowding = np.zeros(0)

    def members(self) -> list[Genotype]:
        """Return the parents, best front first."""
        return [parent.copy() for parent in self._parents]

    def _propose(self, n: int) -> list[Proposal]:
        if self._generation.complete:
            children = self._first() if not self._parents else [self._child() for _ in range(self.population)]
            samples, parents = [one.genotype for one in children], [one.parents for one in children]
            self._generation = Generation(self._generation.number + 1, self._asked, samples, parents=parents)
        return self._generation.take(n)

    def _learn(self, candidate: Candidate, evaluation: Evaluation) -> None:
        if self._generation.put(candidate, evaluation):
            self._survive()

    def _first(self) -> list[Child]:
        """Return the first generation: initial candidates, then samples of the space."""
        initial = initial_population(self.space, self.config.warm_start, self.population)
        samples = (self.space.sample(self.rng) for _ in range(self.population - len(initial)))
        return [Child(genotype) for genotype in (*initial, *samples)]

    def _child(self) -> Child:
        child = first = self._parents[self._tournament()]
        parents = [first]
        if self.rng.random() < self.config.crossover:
            second = self._parents[self._tournament()]
            child = self.space.crossover(first, second, self.rng)
            parents.append(second)
        return Child(self.space.mutate(child, self.rng), parents)

    def _tournament(self) -> int:
        """Return the index of the better one of two random parents: lower front, then less crowded."""
        first, second = (int(self.rng.integers(len(self._parents))) for _ in range(2))
        keys = [(-self._rank[at], self._crowding[at]) for at in (first, second)]
        return first if keys[0] >= keys[1] else second

    def _survive(self) -> None:
        """Keep the best fronts of parents and children."""
        parents, results = list(self._parents), list(self._results)
        for child, result in zip(self._generation.samples, self._generation.evaluations, strict=True):
            if result.status != "failed" and np.isfinite(result.objectives).all():
                parents.append(child)
                results.append(result)
        if not parents:
            return
        points = np.array([result.objectives for result in results])
        rank = ranks(points, [result.violation for result in results])
        distance = crowding_by_front(points, rank)
        kept = np.lexsort((-distance, rank))[: self.population]  # lower front first, then less crowded
        self._parents = [parents[at] for at in kept]
        self._results = [results[at] for at in kept]
        self._rank, self._crowding = rank[kept], distance[kept]
