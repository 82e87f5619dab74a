"""Random search: the baseline that every strategy has to beat at the same budget."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from evomerge.strategies.base import Candidate, Genotype, Strategy
from evomerge.strategies.generation import Proposal
from evomerge.strategies.warm_start import Founders
from fitness.results import Evaluation
from search_spaces.spaces.space import SearchSpace


class RandomConfig(BaseModel):
    """Independent samples of the space, after its start point."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    objectives: ClassVar[Literal["any"]] = "any"

    kind: Literal["random"] = "random"
    population: int = Field(default=16, ge=1)
    """Candidates per generation: only the unit in which failures are counted; nothing is learnt."""
    warm_start: Founders | None = None
    """Begin with the best candidates of a former search; by default with the space's start."""

    def resolved(self, genes: int, *, noise: float, evaluations: int) -> RandomConfig:
        """Return the settings as they are: nothing here is `auto`."""
        return self

    def build(self, space: SearchSpace, seed: int) -> RandomSearch:
        """Build the strategy."""
        return RandomSearch(space, seed, self)


class RandomSearch(Strategy):
    """Samples the space; never waits, so no worker idles."""

    steady_state = True

    def __init__(self, space: SearchSpace, seed: int, config: RandomConfig) -> None:
        super().__init__(space, seed)
        self.population = config.population
        self._founders = [space.start] if config.warm_start is None else config.warm_start.points(space)

    def _propose(self, n: int) -> list[Proposal]:
        identities = range(self._asked, self._asked + n)
        return [(self._next(identity), "sample", identity // self.population) for identity in identities]

    def _next(self, identity: int) -> Genotype:
        if identity < len(self._founders):
            return self._founders[identity].copy()
        return self.space.sample(self.rng)

    def _learn(self, candidate: Candidate, evaluation: Evaluation) -> None:
        """Learn nothing."""
