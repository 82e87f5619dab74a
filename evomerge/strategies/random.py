"""Random search: the baseline for every other strategy at the same budget."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from evomerge.strategies.base import Candidate, Genotype, Proposal, Strategy, StrategyConfig
from evomerge.strategies.registry import register_strategy
from evomerge.strategies.warm_start import WarmStartPopulation
from fitness.results import Evaluation
from search_spaces.spaces.space import SearchSpace


@register_strategy
class RandomConfig(StrategyConfig):
    """Random search: the space's start, then independent samples."""

    objectives = "any"
    warm_start_type = WarmStartPopulation

    kind: Literal["random"] = "random"
    population: int = Field(default=16, ge=1, le=10_000)
    """Batch size. It only sets how often failures are checked and how many candidates a warm start may load."""
    warm_start: WarmStartPopulation | None = None
    """Earlier run whose best candidates are proposed first, instead of the space's start. By default there is none."""

    def build(self, space: SearchSpace, seed: int) -> RandomSearch:
        """Build the strategy."""
        return RandomSearch(space, seed, self)


class RandomSearch(Strategy):
    """Samples the space. It never waits for results, so no worker is idle."""

    steady_state = True

    def __init__(self, space: SearchSpace, seed: int, config: RandomConfig) -> None:
        super().__init__(space, seed)
        self.population = config.population
        self._first = [space.start] if config.warm_start is None else config.warm_start.points(space)

    def _propose(self, n: int) -> list[Proposal]:
        identities = range(self._asked, self._asked + n)
        return [Proposal(self._next(identity), "sample", identity // self.population) for identity in identities]

    def _next(self, identity: int) -> Genotype:
        if identity < len(self._first):
            return np.array(self._first[identity])
        return self.space.sample(self.rng)

    def _learn(self, candidate: Candidate, evaluation: Evaluation) -> None:
        """Ignore the result."""
