"""A strategy: one mutated copy of the best candidate at a time."""

from typing import Literal

from evomerge.strategies.base import Strategy, StrategyConfig
from evomerge.strategies.registry import register_strategy


@register_strategy
class OnePlusOneConfig(StrategyConfig):
    """Hill climbing, (1+1)."""

    kind: Literal["one_plus_one"] = "one_plus_one"

    def build(self, space, seed):
        return OnePlusOne(space, seed)


class OnePlusOne(Strategy):
    population, best, fitness = 1, None, float("-inf")

    def _propose(self, n):
        if self._open:
            return []
        point = self.space.start.copy() if self.best is None else self.space.mutate(self.best, self.rng)
        return [(point, "sample", self._asked)]

    def _learn(self, candidate, evaluation):
        if evaluation.fitness >= self.fitness:
            self.best, self.fitness = candidate.genotype, evaluation.fitness
