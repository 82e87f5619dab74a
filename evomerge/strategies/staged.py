"""Two searches in a row over a two-stage space: first the parameters of the merge, then the path through its layers.

Akiba et al. 2024, arXiv:2403.13187. The first strategy searches the parameter space with all layers in place. After its
evaluations one merge is fixed, and the second strategy searches paths through it. The merge is the first strategy's own
best guess (a distribution's mean), because with noisy fitness the best sample is usually the luckiest one; it is the
best sample if the strategy has no guess. Candidates of both stages are points of the whole space, so one run records
both and is resumed by replay like any other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import Field, model_validator
from typing_extensions import Self

from evomerge.strategies.base import Candidate, Genotype, Proposal, StrategyConfig
from evomerge.strategies.cma_es import CmaEsConfig
from evomerge.strategies.eda import EdaConfig
from evomerge.strategies.registry import StageStrategy, register_strategy
from evomerge.strategies.stage import Relay, RelayConfig, Stage, rest_of_budget
from evomerge.strategies.warm_start import WarmStartPopulation
from fitness.results import Evaluation
from search_spaces.spaces.space import SearchSpace
from search_spaces.spaces.two_stage import TwoStageSpace
from search_spaces.spaces.wrappers import FoundedSpace, RecipeSettingsSpace


@register_strategy
class StagedConfig(RelayConfig):
    """Two searches in a row, for ``space.kind: two_stage``."""

    warm_start_type = WarmStartPopulation

    kind: Literal["staged"] = "staged"
    evaluations: int = Field(default=150, ge=1, le=10_000_000)
    """Candidates of the first stage, fewer than `budget.evaluations`; the second stage gets the rest."""
    first: StageStrategy = CmaEsConfig()
    """Strategy for the parameter space, with its settings."""
    second: StageStrategy = EdaConfig()
    """Strategy for the paths, with its settings."""
    warm_start: WarmStartPopulation | None = None
    """Earlier run whose best candidates start both stages. By default there is none."""

    @model_validator(mode="after")
    def _one_warm_start(self) -> Self:
        for name, stage in (("first", self.first), ("second", self.second)):
            if stage.earlier_run is not None:
                raise ValueError(f"{name}.warm_start: both stages start from one run; write strategy.warm_start")
        return self

    @property
    def stages(self) -> tuple[StrategyConfig, ...]:
        """Both stages' settings."""
        return self.first, self.second

    def resolved(self, space: SearchSpace, *, noise: float, evaluations: int) -> Self:
        """Return the settings with both stages resolved, each for its part of the space and of the budget.

        Raises
        ------
        ValueError
            If the space does not have two stages, the budget leaves nothing for the second stage, or a stage's settings
            do not suit its part.
        """
        two_stage = _two_stage(space)
        rest = rest_of_budget(self.evaluations, evaluations)
        first = self.first.resolved(two_stage.parameters, noise=noise, evaluations=self.evaluations)
        second = self.second.resolved(two_stage.flow, noise=noise, evaluations=rest)
        return self.model_copy(update={"first": first, "second": second})

    def build(self, space: SearchSpace, seed: int) -> Staged:
        """Build the strategy; the settings must be resolved.

        Raises
        ------
        ValueError
            If the space does not have two stages.
        """
        founders = space.initial_population() if isinstance(space, FoundedSpace) else ()
        return Staged(_two_stage(space), seed, self, founders)


class Staged(Relay):
    """Runs one strategy on the parameter space, then another on the paths.

    Parameters
    ----------
    space, seed, config
        As for every strategy.
    founders
        Points, float64[G] each, whose merges are in the first population of the first strategy if it has one.
    """

    def __init__(
        self, space: TwoStageSpace, seed: int, config: StagedConfig, founders: Sequence[Genotype] = ()
    ) -> None:
        super().__init__(space, seed)
        self.config = config
        self.two_stage = space
        earlier = [] if config.warm_start is None else config.warm_start.points(space)
        self._earlier = [space.split(point) for point in earlier]
        first = _warm_started(config.first, space.parameters, [parameters for parameters, _ in self._earlier])
        self._kept: Genotype | None = None  # the first stage's merge, after that stage
        merges = [space.split(founder)[0] for founder in founders]
        parameters = FoundedSpace(space.parameters, merges) if merges else space.parameters
        self._enter(Stage(first.build(parameters, seed), whole=self._whole))
        self._best: tuple[float, Genotype] = (-math.inf, np.array(space.parameters.start))

    def _propose(self, n: int) -> list[Proposal]:
        if self._kept is None and self._asked >= self.config.evaluations:
            if self._open:
                return []  # the merge to keep is known when all results of the first stage are in
            self._begin_second()
        if self._kept is None:
            n = min(n, self.config.evaluations - self._asked)
        return self._stage.ask(n, self._asked)

    def _learn(self, candidate: Candidate, evaluation: Evaluation) -> None:
        self._stage.tell(candidate, evaluation)
        if self._kept is None and evaluation.status != "failed" and evaluation.fitness > self._best[0]:
            self._best = evaluation.fitness, self.two_stage.split(candidate.genotype)[0]

    def _begin_second(self) -> None:
        guess = self._stage.strategy.recommend()
        self._kept = self._best[1] if guess is None else guess
        seed = int(self.rng.integers(2**31))
        second = _warm_started(self.config.second, self.two_stage.flow, [flow for _, flow in self._earlier])
        self._enter(Stage(second.build(self.two_stage.flow, seed), self._stage.last + 1, self._whole))

    def _whole(self, genotype: Genotype) -> Genotype:
        if self._kept is None:
            return self.two_stage.join(genotype, self.two_stage.flow.start)
        return self.two_stage.join(self._kept, genotype)


def _two_stage(space: SearchSpace) -> TwoStageSpace:
    """Return the two-stage space inside `space`; raises as `StagedConfig.build` does."""
    while isinstance(space, RecipeSettingsSpace | FoundedSpace):
        space = space.inner  # the same points
    if not isinstance(space, TwoStageSpace):
        raise ValueError(
            "strategy.kind staged is for space.kind two_stage; write strategy.kind: cma_es, or space.kind: two_stage"
        )
    return space


def _warm_started(config: StrategyConfig, space: SearchSpace, points: list[Genotype]) -> StrategyConfig:
    """Return a stage's settings with its part of the earlier run's points, each distinct one once."""
    if not points or config.warm_start_type is None:
        return config
    return config.warm_started(space, list({point.tobytes(): point for point in points}.values()))
