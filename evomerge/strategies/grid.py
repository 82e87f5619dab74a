"""Full factorial grid: every combination of a few values per gene, coarse and complete."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from evomerge.strategies.base import Candidate, Genotype, Strategy
from evomerge.strategies.generation import Proposal, resolved_number
from fitness.evaluation import Evaluation
from search_spaces.genes import Gene
from search_spaces.space import SearchSpace


class GridConfig(BaseModel):
    """All combinations of a few values per gene, for spaces of one to three genes."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    objectives: ClassVar[Literal["any"]] = "any"

    kind: Literal["grid"] = "grid"
    points: Annotated[int, Field(ge=2)] | Literal["auto"] = "auto"
    """Values per gene, evenly spaced, both bounds among them; at least 2. A discrete gene has all of its values if
    they are no more, and a choice always. `auto`: as many as the budget holds."""
    population: int = Field(default=16, ge=1)
    """Candidates per generation: only the unit in which failures are counted; nothing is learnt."""

    def resolved(self, genes: int, *, noise: float, evaluations: int) -> GridConfig:
        """Return the settings with `auto` replaced by what the budget holds.

        Raises
        ------
        ValueError
            If the budget does not hold the grid.
        """
        points = self.points
        if points == "auto":
            points = 2
            while (points + 1) ** genes <= evaluations:
                points += 1
        if points**genes > evaluations:
            raise ValueError(
                f"strategy.kind: a grid of {points} values for each of {genes} genes has more points than "
                f"budget.evaluations ({evaluations}); write random or cma_es, or have fewer genes"
            )
        return self.model_copy(update={"points": points})

    def build(self, space: SearchSpace, seed: int) -> GridSearch:
        """Build the strategy; the settings must be resolved."""
        return GridSearch(space, seed, self)


class GridSearch(Strategy):
    """Walks the grid once, the last gene fastest, and is finished then; no random number is drawn."""

    steady_state = True

    def __init__(self, space: SearchSpace, seed: int, config: GridConfig) -> None:
        super().__init__(space, seed)
        self.population = config.population
        points = resolved_number("points", config.points)
        self._axes = [_axis(gene, points) for gene in space.genes]
        self._walk: Iterator[Genotype] = (np.array(point) for point in _product(self._axes))
        self._next = next(self._walk, None)

    @property
    def finished(self) -> bool:
        """Whether the whole grid has been proposed."""
        return self._next is None

    def _propose(self, n: int) -> list[Proposal]:
        proposals: list[Proposal] = []
        while self._next is not None and len(proposals) < n:
            generation = (self._asked + len(proposals)) // self.population
            proposals.append((self._next, "sample", generation))
            self._next = next(self._walk, None)
        return proposals

    def _learn(self, candidate: Candidate, evaluation: Evaluation) -> None:
        """Learn nothing."""


def _axis(gene: Gene, points: int) -> NDArray[np.float64]:
    """Return the coordinates that one gene takes."""
    if not gene.discrete:
        return np.linspace(gene.low, gene.high, points)
    cells = np.arange(round(gene.high - gene.low))  # of width one; the middle stands for the value
    few = cells if hasattr(gene, "options") or len(cells) <= points else np.linspace(0, cells[-1], points).round()
    return np.asarray(gene.low + few + 0.5, dtype=np.float64)


def _product(axes: list[NDArray[np.float64]]) -> Iterator[tuple[float, ...]]:
    return itertools.product(*(axis.tolist() for axis in axes))
