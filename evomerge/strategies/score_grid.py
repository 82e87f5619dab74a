"""Grids of elites over the scores: a candidate's cell follows from its scores on some axes, each a group of tasks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from typing_extensions import Self

from evomerge.strategies.base import Genotype, StrategyConfig
from fitness.items import task_of
from fitness.results import Evaluation

Cells = Annotated[int, Field(ge=2, le=10_000)]
End = Annotated[float, Field(ge=-1_000_000, le=1_000_000, allow_inf_nan=False)]


class ScoreGridConfig(StrategyConfig):
    """Settings that all strategies with a grid share."""

    as_stage = False

    cells: Cells = 10
    """Cells per axis."""
    low: End = 0.0
    """Lower end of the axes, in the unit of the tasks' metrics."""
    high: End = 1.0
    """Upper end of the axes. Higher scores belong to the last cell."""
    axes: tuple[tuple[str, ...], ...] | None = None
    """Groups of tasks, one per axis, such as `[[math_en, math_ja], [chat]]`; a group's score is the mean of its tasks.
    By default each task has its own axis."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"low {self.low} is not below high {self.high}; write low < high")
        if self.axes is not None and not all(self.axes):
            raise ValueError("axes: an axis has no task; name at least one task for each axis")
        return self

    def check_tasks(self, tasks: Sequence[str]) -> None:
        """Check that there are two axes or more, and that their tasks are scored.

        Raises
        ------
        ValueError
            If not.
        """
        if len(self.axes or tasks) < 2:
            raise ValueError(
                f"strategy.kind {self.kind} compares scores on several axes and there is one axis; name two tasks or "
                "more in fitness.tasks, or write strategy.kind: m2n2"
            )
        unknown = sorted({task for axis in self.axes or () for task in axis} - set(tasks))
        if unknown:
            raise ValueError(
                f"strategy.axes: {', '.join(unknown)} is not in fitness.tasks; name tasks among {', '.join(tasks)}"
            )


class EliteGrid:
    """The best candidate of each cell.

    Attributes
    ----------
    cells
        Maps a cell (one index per axis) to its index in `genotypes` and `fitness`, in the order of filling.
    """

    def __init__(self, config: ScoreGridConfig) -> None:
        self.config = config
        self.cells: dict[tuple[int, ...], int] = {}
        self.genotypes: list[Genotype] = []
        self.fitness: list[float] = []
        self._axes = Axes(config.axes)

    def best(self) -> Genotype | None:
        """Return a copy of the elite with the best fitness; None while there is none."""
        return self.genotypes[int(np.argmax(self.fitness))].copy() if self.genotypes else None

    def ranked(self) -> list[Genotype]:
        """Return copies of the elites, best first."""
        order = np.argsort(-np.array(self.fitness), kind="stable").tolist()
        return [self.genotypes[place].copy() for place in order]

    def elite_fitness(self, evaluation: Evaluation) -> float | None:
        """Return the fitness of the elite in the cell of a candidate with finite fitness; None: the cell is empty."""
        place = self.cells.get(self._cell(evaluation))
        return None if place is None else self.fitness[place]

    def would_take(self, evaluation: Evaluation) -> bool:
        """Return whether a candidate with this evaluation would enter its cell; the grid does not change."""
        if not math.isfinite(evaluation.fitness):
            return False
        elite = self.elite_fitness(evaluation)
        return elite is None or evaluation.fitness > elite

    def take(self, genotype: Genotype, evaluation: Evaluation) -> None:
        """Let a scored candidate enter its cell, if that is empty or its elite is worse."""
        place = self.cells.setdefault(self._cell(evaluation), len(self.genotypes))
        if place == len(self.genotypes):
            self.genotypes.append(genotype)
            self.fitness.append(evaluation.fitness)
        elif evaluation.fitness > self.fitness[place]:
            self.genotypes[place], self.fitness[place] = genotype, evaluation.fitness

    def rescore(self, genotype: Genotype, evaluation: Evaluation) -> None:
        """Take the fitness of an elite that was asked again; it keeps its cell."""
        for place, own in enumerate(self.genotypes):
            if np.array_equal(own, genotype):
                self.fitness[place] = evaluation.fitness

    def scores(self, evaluation: Evaluation) -> list[float]:
        """Return a candidate's score on each axis, which decide its cell."""
        return [float(score) for score in self._axes.scores(evaluation)]

    def _cell(self, evaluation: Evaluation) -> tuple[int, ...]:
        config = self.config
        return cell_of(self._axes.scores(evaluation), low=config.low, high=config.high, cells=config.cells)


def cell_of(scores: NDArray[np.float64], *, low: float, high: float, cells: int) -> tuple[int, ...]:
    """Return the cell of scores float64[A]: an index on each axis; scores beyond an end belong to the cell there."""
    position = np.nan_to_num((scores - low) / (high - low)) * cells
    return tuple(np.clip(np.floor(position), 0, cells - 1).astype(int).tolist())


class Axes:
    """A candidate's score on each axis. Weights that depend only on the items are kept between candidates."""

    def __init__(self, groups: tuple[tuple[str, ...], ...] | None) -> None:
        self._groups = groups
        self._items: tuple[str, ...] | None = None
        self._weights: NDArray[np.float64] = np.zeros((0, 0))

    def scores(self, evaluation: Evaluation) -> NDArray[np.float64]:
        """Return a score per axis, float64[A]: the mean of its tasks' mean scores.

        Raises
        ------
        ValueError
            If no items of a task of an axis were asked.
        """
        items = evaluation.items
        if not items:  # no scores per item: one axis, the fitness
            return np.array([evaluation.fitness])
        if items is not self._items and items != self._items:
            self._weights, self._items = self._weigh(items), items
        return self._weights @ np.asarray(evaluation.scores, dtype=np.float64)

    def _weigh(self, items: tuple[str, ...]) -> NDArray[np.float64]:
        """Return the weight of each item on each axis, float64[A, I]."""
        task_of_item = np.array([task_of(item) for item in items])
        tasks = list(dict.fromkeys(task_of_item.tolist()))
        groups = self._groups or tuple((task,) for task in tasks)
        unknown = sorted({task for group in groups for task in group} - set(tasks))
        if unknown:
            raise ValueError(f"strategy.axes: no items of {', '.join(unknown)}; name tasks among {', '.join(tasks)}")
        weights = np.zeros((len(groups), len(items)))
        for axis, group in enumerate(groups):
            for task in group:
                here = task_of_item == task
                weights[axis, here] += 1.0 / (len(group) * here.sum())
        return weights
