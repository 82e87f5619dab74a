"""Grid search: every combination of a few values per gene."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from typing_extensions import Self

from evomerge.files.messages import counted
from evomerge.strategies.base import Candidate, Genotype, Proposal, Strategy, StrategyConfig
from evomerge.strategies.generation import resolved_number
from evomerge.strategies.registry import register_strategy
from fitness.results import Evaluation
from search_spaces.spaces.genes import Choice, Gene
from search_spaces.spaces.space import SearchSpace


@register_strategy
class GridConfig(StrategyConfig):
    """Grid search: all combinations of a few values per gene; for one to three genes."""

    objectives = "any"
    as_stage = False

    kind: Literal["grid"] = "grid"
    points: Annotated[int, Field(ge=2, le=10_000)] | Literal["auto"] = "auto"
    """Values per gene, evenly spaced from bound to bound; at least 2. A discrete gene takes all its values if there are
    no more than that; a choice gene always takes all its options. `auto`: as many as fit into the budget."""
    population: int = Field(default=16, ge=1, le=10_000)
    """Batch size. It only sets how often failures are checked; a grid does not learn from results."""

    def resolved(self, space: SearchSpace, *, noise: float, evaluations: int) -> Self:
        """Return the settings with `points: auto` replaced by as many values as fit into the budget.

        Raises
        ------
        ValueError
            If the grid has more points than the budget.
        """
        points = points_that_fit(space.genes, self.points, evaluations, least=2)
        return self.model_copy(update={"points": points})

    def build(self, space: SearchSpace, seed: int) -> GridSearch:
        """Build the strategy; the settings must be resolved."""
        return GridSearch(space, seed, self)


class GridSearch(Strategy):
    """Proposes each grid point once, the last gene changing fastest, then finishes. It draws no random numbers."""

    steady_state = True

    def __init__(self, space: SearchSpace, seed: int, config: GridConfig) -> None:
        super().__init__(space, seed)
        self.population = config.population
        points = resolved_number("points", config.points)
        self._axes = grid_axes(space.genes, points)
        self._points: Iterator[Genotype] = (np.array(point) for point in _product(self._axes))
        self._next = next(self._points, None)

    @property
    def finished(self) -> bool:
        """Whether the whole grid has been proposed."""
        return self._next is None

    def _propose(self, n: int) -> list[Proposal]:
        proposals: list[Proposal] = []
        while self._next is not None and len(proposals) < n:
            generation = (self._asked + len(proposals)) // self.population
            proposals.append(Proposal(self._next, "sample", generation))
            self._next = next(self._points, None)
        return proposals

    def _learn(self, candidate: Candidate, evaluation: Evaluation) -> None:
        """Ignore the result."""


def points_that_fit(genes: Sequence[Gene], points: int | Literal["auto"], evaluations: int, *, least: int) -> int:
    """Return a grid's values per gene; for `auto` as many as fit into the budget, at least `least`.

    Raises
    ------
    ValueError
        If the grid has more points than the budget.
    """
    if points == "auto":
        points = least
        while _size(genes, points) < _size(genes, points + 1) <= evaluations:
            points += 1
    if _size(genes, points) > evaluations:
        raise ValueError(
            f"strategy.kind: a grid of {_described(genes, points)} has more points than "
            f"budget.evaluations ({evaluations}); write strategy.kind: random or cma_es, or have fewer genes"
        )
    return points


def grid_axes(genes: Sequence[Gene], points: int) -> list[NDArray[np.float64]]:
    """Return the coordinates of a grid, one float64[n] per gene; `points` of a real gene."""
    return [_axis(gene, points) for gene in genes]


def _described(genes: Sequence[Gene], points: int) -> str:
    choices = sum(isinstance(gene, Choice) for gene in genes)
    numbers = (
        [f"{counted(points, 'value')} for each of {counted(len(genes) - choices, 'gene')}"]
        if choices < len(genes)
        else []
    )
    return " and ".join([*numbers, *(["all options of each choice"] if choices else [])])


def _size(genes: Sequence[Gene], points: int) -> int:
    return math.prod(_count(gene, points) for gene in genes)


def _count(gene: Gene, points: int) -> int:
    """Return how many values of a gene are in the grid."""
    if not gene.discrete:
        return points
    cells = round(gene.high - gene.low)
    return cells if isinstance(gene, Choice) else min(cells, points)


def _axis(gene: Gene, points: int) -> NDArray[np.float64]:
    """Return the coordinates of one gene in the grid, float64[n]."""
    count = _count(gene, points)
    if not gene.discrete:
        return np.linspace(gene.low, gene.high, count)
    last = gene.high - gene.low - 1  # cells have width one; the midpoint of a cell stands for its value
    return np.asarray(gene.low + np.linspace(0, last, count).round() + 0.5, dtype=np.float64)


def _product(axes: list[NDArray[np.float64]]) -> Iterator[tuple[float, ...]]:
    return itertools.product(*(axis.tolist() for axis in axes))
