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

from collections.abc import Callable
from typing import Annotated, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
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

Array = NDArray[np.float64]
Survival: TypeAlias = Callable[[Array, Array, int, np.random.Generator], tuple[NDArray[np.int64], Array]]
"""Objectives float64[N, M], violations of constraints float64[N] and P to the indices of who survives, int[P], best
front first, and what tournaments among them compare, column after column, larger first: float64[P, J]."""


def by_crowding(
    points: Array, violation: Array, size: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], Array]:
    """Keep the best fronts, the last one reduced by crowding distance; a `Survival`."""
    rank = ranks(points, violation)
    distance = crowding_by_front(points, rank)
    kept: NDArray[np.int64] = np.lexsort((-distance, rank))[:size]  # lower front first, then less crowded
    return kept, np.column_stack((-rank.astype(np.float64), distance))[kept]


class FrontConfig(StrategyConfig):
    """Settings of a genetic algorithm for a front."""

    objectives = "several"
    warm_start_type = WarmStartPopulation
    as_stage = False

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


@register_strategy
class Nsga2Config(FrontConfig):
    """For several objectives (`fitness.objectives: per_task`): a front of trade-offs instead of one best recipe."""

    kind: Literal["nsga2"] = "nsga2"

    def build(self, space: SearchSpace, seed: int) -> FrontSearch:
        """Build the strategy; the settings must be resolved."""
        return FrontSearch(space, seed, self, by_crowding)


class FrontSearch(Strategy):
    """Parents and children compete for the front. Synchronous: it learns from a generation when all results are in.

    Parameters
    ----------
    space, seed, config
        As for every strategy.
    survive
        Who of parents and children becomes a parent, and who wins tournaments.
    """

    def __init__(self, space: SearchSpace, seed: int, config: FrontConfig, survive: Survival) -> None:
        super().__init__(space, seed)
        self.config = config
        self.population = resolved_number("population", config.population)
        self._survive = survive
        self._generation = Generation.none()
        self._parents: list[Genotype] = []
        self._results: list[Evaluation] = []  # of the parents
        self._merits = np.zeros((0, 0))

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
            self._compete()

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
        """Return the index of the better one of two random parents, the first one if they are equal."""
        first, second = (int(self.rng.integers(len(self._parents))) for _ in range(2))
        merits = [self._merits[at].tolist() for at in (first, second)]
        return first if merits[0] >= merits[1] else second

    def _compete(self) -> None:
        """Choose the next parents among parents and children."""
        parents, results = list(self._parents), list(self._results)
        for child, result in zip(self._generation.samples, self._generation.evaluations, strict=True):
            if result.status != "failed" and np.isfinite(result.objectives).all():
                parents.append(child)
                results.append(result)
        if not parents:
            return
        points = np.array([result.objectives for result in results])
        violation = np.array([result.violation for result in results])
        kept, self._merits = self._survive(points, violation, self.population, self.rng)
        self._parents = [parents[at] for at in kept]
        self._results = [results[at] for at in kept]
