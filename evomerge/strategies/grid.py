"""Full factorial grid: every combination of a few values per gene, coarse and complete."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from evomerge.strategies.base import Candidate, Genotype, Strategy
from evomerge.strategies.generation import Proposal, resolved_number
from fitness.results import Evaluation
from search_spaces.spaces.genes import Choice, Gene
from search_spaces.spaces.space import SearchSpace


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

    def resolved_for(self, space: SearchSpace, *, noise: float, evaluations: int) -> GridConfig:
        """Return the settings with `auto` replaced by what the budget holds of a grid in this space.

        Raises
        ------
        ValueError
            If the budget does not hold the grid.
        """
        genes, points = space.genes, self.points
        if points == "auto":
            points = 2
            while _size(genes, points) < _size(genes, points + 1) <= evaluations:
                points += 1
        if _size(genes, points) > evaluations:
            raise ValueError(
                f"strategy.kind: a grid of {_described(genes, points)} has more points than "
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


def _described(genes: Sequence[Gene], points: int) -> str:
    choices = sum(isinstance(gene, Choice) for gene in genes)
    numbers = [f"{points} values for each of {len(genes) - choices} genes"] if choices < len(genes) else []
    return " and ".join([*numbers, *(["all options of each choice"] if choices else [])])


def _size(genes: Sequence[Gene], points: int) -> int:
    return math.prod(_count(gene, points) for gene in genes)


def _count(gene: Gene, points: int) -> int:
    """Return how many values of a gene the grid has."""
    if not gene.discrete:
        return points
    cells = round(gene.high - gene.low)
    return cells if isinstance(gene, Choice) else min(cells, points)


def _axis(gene: Gene, points: int) -> NDArray[np.float64]:
    """Return the coordinates that one gene takes."""
    count = _count(gene, points)
    if not gene.discrete:
        return np.linspace(gene.low, gene.high, count)
    last = gene.high - gene.low - 1  # of the cells of width one; the middle of a cell stands for the value
    return np.asarray(gene.low + np.linspace(0, last, count).round() + 0.5, dtype=np.float64)


def _product(axes: list[NDArray[np.float64]]) -> Iterator[tuple[float, ...]]:
    return itertools.product(*(axis.tolist() for axis in axes))
