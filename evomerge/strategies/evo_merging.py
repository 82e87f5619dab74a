"""Evo-Merging: how much of each model is kept first, signed weights second, both with an L1 penalty.

"Black-box Model Merging for Language-Model-as-a-Service", arXiv 2509.12951, as in its program. The first stage searches
the densities, with all weights where the space starts; the second the weights, which may be negative, with the
densities that the first one found. Both are CMA-ES by default, with 20 candidates a generation and steps of 0.05, and
learn from

    score − l1 · mean |coefficient|

of the coefficients that the stage searches. Such spaces are `layer_coefficients` over `breadcrumbs` with `gamma: 0`
(the largest entries stay, nothing is rescaled), `groups: model`, and a range of `weight` that includes negative ones;
models with adapters are merged as their products.

Deviations: the program sparsifies the matrices A of adapters alone. Densities are kept at the first stage's own guess,
as in `staged`; there at its best sample.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from pydantic import Field, model_validator
from typing_extensions import Self

from evomerge.strategies.base import Candidate, Genotype, Proposal, StrategyConfig
from evomerge.strategies.cma_es import CmaEsConfig
from evomerge.strategies.penalty import Penalty, genes_of
from evomerge.strategies.registry import StageStrategy, register_strategy
from evomerge.strategies.stage import Relay, RelayConfig, Stage, rest_of_budget
from fitness.results import Evaluation
from search_spaces.spaces.space import SearchSpace
from search_spaces.spaces.wrappers import FixedGenesSpace

STAGES = ("density", "weight")
"""What the stages search, in order."""


@register_strategy
class EvoMergingConfig(RelayConfig):
    """Evo-Merging: densities first, signed weights second, both with an L1 penalty."""

    kind: Literal["evo_merging"] = "evo_merging"
    evaluations: int = Field(default=100, ge=1, le=10_000_000)
    """Candidates of the first stage, fewer than `budget.evaluations`; the second stage gets the rest. The paper's
    program has 400, and 800 in the second stage."""
    l1: float = Field(default=0.05, ge=0, le=1000)
    """Penalty: this factor times the mean absolute value of the searched coefficients is subtracted from a stage's
    score."""
    first: StageStrategy = CmaEsConfig(population=20, sigma=0.05)
    """Strategy for the densities, with its settings."""
    second: StageStrategy = CmaEsConfig(population=20, sigma=0.05)
    """Strategy for the weights, with its settings."""

    @model_validator(mode="after")
    def _no_warm_start(self) -> Self:
        for name, stage in (("first", self.first), ("second", self.second)):
            if stage.earlier_run is not None:
                raise ValueError(f"{name}.warm_start: the stages begin at the space's start; remove it")
        return self

    @property
    def stages(self) -> tuple[StrategyConfig, ...]:
        """Both stages' settings."""
        return self.first, self.second

    def resolved(self, space: SearchSpace, *, noise: float, evaluations: int) -> Self:
        """Return the settings with both stages resolved, each for its genes and its part of the budget.

        Raises
        ------
        ValueError
            If the space lacks a density or a weight, the budget leaves nothing for the second stage, or a stage's
            settings do not suit its genes.
        """
        rest = rest_of_budget(self.evaluations, evaluations)
        densities, weights = (only(space, parameter, space.start) for parameter in STAGES)
        first = self.first.resolved(densities, noise=noise, evaluations=self.evaluations)
        second = self.second.resolved(weights, noise=noise, evaluations=rest)
        return self.model_copy(update={"first": first, "second": second})

    def build(self, space: SearchSpace, seed: int) -> EvoMerging:
        """Build the strategy; the settings must be resolved.

        Raises
        ------
        ValueError
            If the space lacks a density or a weight.
        """
        return EvoMerging(space, seed, self)


def only(space: SearchSpace, parameter: str, point: Genotype) -> FixedGenesSpace:
    """Return the space of a parameter's genes, all others as in a point float64[G].

    Raises
    ------
    ValueError
        If there is no such gene, or no other.
    """
    free = set(genes_of(space, parameter))
    if not free or len(free) == space.dimension:
        raise ValueError(
            "strategy.kind evo_merging searches densities, then weights, and this space does not have both; write "
            "space.method: breadcrumbs with space.fixed: {gamma: 0}, or strategy.kind: cma_es"
        )
    rest = [at for at in range(space.dimension) if at not in free]
    return FixedGenesSpace(space, {space.genes[at].name: space.genes[at].value(float(point[at])) for at in rest})


class EvoMerging(Relay):
    """Runs one strategy on the densities, then another on the weights."""

    def __init__(self, space: SearchSpace, seed: int, config: EvoMergingConfig) -> None:
        super().__init__(space, seed)
        self.config = config
        self._found = np.array(space.start)  # the first stage's densities, once they are known
        self._second = False
        self._best = -math.inf
        self._begin(STAGES[0], config.first, seed)

    def _begin(self, parameter: str, config: StrategyConfig, seed: int) -> None:
        genes = genes_of(self.space, parameter)
        inner = only(self.space, parameter, self._found).starting_at(self._found[genes])
        base: Genotype = np.array(self._found)
        offset = self._stage.last + 1 if self._second else 0
        self._penalty = Penalty(self.space, self.config.l1, parameter)

        def whole(part: Genotype) -> Genotype:
            point: Genotype = base.copy()
            point[genes] = part
            return point

        self._enter(Stage(config.build(inner, seed), offset, whole))

    def _propose(self, n: int) -> list[Proposal]:
        if not self._second and self._asked >= self.config.evaluations:
            if self._open:
                return []  # the densities to keep are known when all results of the first stage are in
            guess = self._stage.recommend()
            self._found = self._found if guess is None else guess
            self._second = True
            self._begin(STAGES[1], self.config.second, int(self.rng.integers(2**31)))
        if not self._second:
            n = min(n, self.config.evaluations - self._asked)
        return self._stage.ask(n, self._asked)

    def _learn(self, candidate: Candidate, evaluation: Evaluation) -> None:
        penalised = self._penalty(candidate.genotype, evaluation)
        self._stage.tell(candidate, penalised)
        if not self._second and penalised.fitness > self._best and self._stage.recommend() is None:
            self._best, self._found = penalised.fitness, np.array(candidate.genotype)
