"""One search after the other over a stacked space: parameters first, then the path through their best merge.

Akiba et al. 2024, arXiv:2403.13187. The first strategy searches the parameter space with all layers in place. After its
evaluations one merge is kept, and the second strategy searches the flow around it: the first strategy's own guess (a
distribution's mean), since with noisy fitness the best sample is mostly the luckiest one; the best sample where a
strategy has no guess. Candidates of both stages are points of the whole space, so one run holds both and is resumed by
replay as any other.
"""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from evomerge.strategies.base import Candidate, Evaluated, Genotype, Strategy
from evomerge.strategies.catcma import CatCmaConfig
from evomerge.strategies.cma_es import CmaEsConfig
from evomerge.strategies.eda import EdaConfig
from evomerge.strategies.genetic import GeneticConfig
from evomerge.strategies.m2n2 import M2n2Config
from evomerge.strategies.random import RandomConfig
from evomerge.strategies.unit_box import UnitBox
from evomerge.strategies.warm_start import Founders, WarmStart
from fitness.results import Evaluation
from search_spaces.spaces.space import SearchSpace
from search_spaces.spaces.two_stage import TwoStageSpace
from search_spaces.spaces.wrappers import RecipeSettingsSpace

StageConfig = Annotated[
    CmaEsConfig | EdaConfig | CatCmaConfig | M2n2Config | GeneticConfig | RandomConfig, Field(discriminator="kind")
]


class StagedConfig(BaseModel):
    """Two searches in a row, for ``space.kind: two_stage``."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    objectives: ClassVar[Literal["one"]] = "one"

    kind: Literal["staged"] = "staged"
    evaluations: int = Field(default=150, ge=1)
    """Candidates of the first stage, fewer than `budget.evaluations`; all further ones belong to the second."""
    first: StageConfig = CmaEsConfig()
    """Strategy for the parameter space, with its settings: cma_es, eda, catcma, m2n2, genetic or random."""
    second: StageConfig = EdaConfig()
    """Strategy for the flow: the same choice."""
    warm_start: Founders | None = None
    """Begin both stages with what a former search has found; none by default."""

    @model_validator(mode="after")
    def _warmed_as_a_whole(self) -> StagedConfig:
        for name, stage in (("first", self.first), ("second", self.second)):
            if stage.warm_start is not None:
                raise ValueError(f"{name}.warm_start: both stages begin with one run; write strategy.warm_start")
        return self

    def resolved_for(self, space: SearchSpace, *, noise: float, evaluations: int) -> StagedConfig:
        """Return the settings with every `auto` of the stages replaced, each by its part of the space and the budget.

        Raises
        ------
        ValueError
            If the space is not stacked, the budget leaves the second stage nothing, or a stage's settings do not fit.
        """
        stacked = _stacked(space)
        rest = evaluations - self.evaluations
        if rest < 1:
            raise ValueError(
                f"strategy.evaluations: the first stage takes {self.evaluations} candidates, and budget.evaluations is "
                f"{evaluations}; write strategy.evaluations below {evaluations}, or raise budget.evaluations"
            )
        first = self.first.resolved(stacked.parameters.dimension, noise=noise, evaluations=self.evaluations)
        second = self.second.resolved(stacked.flow.dimension, noise=noise, evaluations=rest)
        return self.model_copy(update={"first": first, "second": second})

    def build(self, space: SearchSpace, seed: int) -> Staged:
        """Build the strategy; the settings must be resolved.

        Raises
        ------
        ValueError
            If the space is not stacked.
        """
        return Staged(_stacked(space), seed, self)


class Staged(Strategy):
    """Leads one strategy through the parameter space, then another through the flow."""

    def __init__(self, space: TwoStageSpace, seed: int, config: StagedConfig) -> None:
        super().__init__(space, seed)
        self.config = config
        self.stacked = space
        former = [] if config.warm_start is None else config.warm_start.points(space)
        self._former = [space.split(point) for point in former]
        first = _warmed(config.first, space.parameters, [parameters for parameters, _ in self._former])
        self._stage = first.build(space.parameters, seed)
        self.population = self._stage.population
        self._kept: Genotype | None = None  # the first stage's merge, once it is over
        self._best: tuple[float, Genotype] = (-math.inf, np.array(space.parameters.start))
        self._offset = 0  # of the second stage's generations
        self._last = 0
        self._ids: dict[int, int] = {}  # the stage's id by ours

    def recommend(self) -> Genotype | None:
        """Return the stage's own best guess, as a point of the whole space."""
        guess = self._stage.recommend()
        return None if guess is None else self._whole(guess)

    def _propose(self, n: int) -> list[tuple[Genotype, Literal["sample", "mean"], int]]:
        if self._kept is None and self._asked >= self.config.evaluations:
            if self._open:
                return []  # the best of the first stage is not known before all of it is in
            self._begin_second()
        if self._kept is None:
            n = min(n, self.config.evaluations - self._asked)
        candidates = self._stage.ask(n)
        for index, candidate in enumerate(candidates):
            self._ids[self._asked + index] = candidate.id
            self._last = max(self._last, candidate.generation + self._offset)
        return [(self._whole(c.genotype), c.kind, c.generation + self._offset) for c in candidates]

    def _learn(self, candidate: Candidate, evaluation: Evaluation) -> None:
        self._stage.tell([Evaluated(self._ids.pop(candidate.id), evaluation)])
        if self._kept is None and evaluation.status != "failed" and evaluation.fitness > self._best[0]:
            self._best = evaluation.fitness, self.stacked.split(candidate.genotype)[0]

    def _begin_second(self) -> None:
        guess = self._stage.recommend()
        self._kept = self._best[1] if guess is None else guess
        self._offset = self._last + 1
        seed = int(self.rng.integers(2**31))
        second = _warmed(self.config.second, self.stacked.flow, [flow for _, flow in self._former])
        self._stage = second.build(self.stacked.flow, seed)
        self.population = self._stage.population

    def _whole(self, genotype: Genotype) -> Genotype:
        if self._kept is None:
            return self.stacked.join(genotype, self.stacked.flow.start)
        return self.stacked.join(self._kept, genotype)


def _stacked(space: SearchSpace) -> TwoStageSpace:
    """Return the stacked space that a search is over; raises as `StagedConfig.build` does."""
    if isinstance(space, RecipeSettingsSpace):
        space = space.inner  # the same points
    if not isinstance(space, TwoStageSpace):
        raise ValueError("strategy.kind staged is for space.kind two_stage; write strategy.kind: cma_es, or stack")
    return space


def _warmed(config: StageConfig, space: SearchSpace, points: list[Genotype]) -> StageConfig:
    """Return a stage's settings with its part of what a former run has found, each point once."""
    if not points:
        return config
    distinct = list({point.tobytes(): point for point in points}.values())
    if isinstance(config, CmaEsConfig):
        return config.model_copy(update={"warm_start": WarmStart().around(UnitBox(space).to_unit(distinct))})
    return config.model_copy(update={"warm_start": Founders().of(distinct)})
