"""MAP-Elites: a grid of cells over the scores on the tasks, with the best candidate of each cell.

"Illuminating search spaces by mapping elites", arXiv 1504.04909, in the form that M2N2 (arXiv 2508.16204) compares
itself with: an axis per task, cut into equal cells; a candidate belongs to the cell of its scores on the tasks, and its
quality is its fitness. Steady state: two elites, drawn in proportion to quality, have a child, which enters its cell if
the cell is empty or its elite is worse.

Deviations from that program: a score at or beyond the end of an axis belongs to the last cell (there a score of 1 is
lost); a single elite is crossed with itself, so that the search can start. With few items asked, the cell is computed
from the plain means of the answers, and the quality from the estimate of the full score.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from typing_extensions import Self

from evomerge.strategies.base import Candidate, Genotype, Proposal, Strategy, StrategyConfig
from evomerge.strategies.generation import Answered, resolved_number
from evomerge.strategies.initial_population import Child, InitialPopulation, initial_population, warm_up_for
from evomerge.strategies.m2n2 import AGAIN
from evomerge.strategies.registry import register_strategy
from evomerge.strategies.selection import couple, quality
from evomerge.strategies.warm_start import WarmStartPopulation
from fitness.items import task_of
from fitness.results import Evaluation
from search_spaces.spaces.space import SearchSpace


@register_strategy
class MapElitesConfig(StrategyConfig):
    """Quality diversity: keep the best candidate for each combination of task scores; for two tasks or more."""

    warm_start_type = WarmStartPopulation
    archive_compares = "a member's cell follows from the means of its answers"
    as_stage = False

    kind: Literal["map_elites"] = "map_elites"
    cells: int = Field(default=10, ge=2, le=10_000)
    """Cells per axis."""
    low: float = Field(default=0.0, ge=-1_000_000, le=1_000_000, allow_inf_nan=False)
    """Lower end of the axes, in the unit of the tasks' metrics."""
    high: float = Field(default=1.0, ge=-1_000_000, le=1_000_000, allow_inf_nan=False)
    """Upper end of the axes. Higher scores belong to the last cell."""
    axes: tuple[tuple[str, ...], ...] | None = None
    """Groups of tasks, one per axis, such as `[[math_en, math_ja], [chat]]`; a group's score is the mean of its tasks.
    By default each task has its own axis."""
    crossover: float = Field(default=1.0, ge=0, le=1)
    """Probability that a child has two parents."""
    mutation: float = Field(default=0.0, ge=0, le=1)
    """Probability that a child is mutated: 0 for merges, 1 to evolve weights from scratch."""
    warm_up: Annotated[int, Field(ge=0, le=100_000)] | Literal["auto"] = "auto"
    """Random merges proposed after the initial candidates. `auto`: as many as an axis has cells, at most a twentieth of
    the budget."""
    population: int = Field(default=16, ge=1, le=10_000)
    """Batch size. It only sets how often failures are checked and how many candidates a warm start may load."""
    warm_start: WarmStartPopulation | None = None
    """Earlier run whose best candidates are proposed first. By default there is none."""

    @model_validator(mode="after")
    def _ordered(self) -> MapElitesConfig:
        if not self.low < self.high:
            raise ValueError(f"low {self.low} is not below high {self.high}; write low < high")
        if self.axes is not None and not all(self.axes):
            raise ValueError("axes: an axis has no task; name at least one task for each axis")
        return self

    def resolved(self, space: SearchSpace, *, noise: float, evaluations: int) -> Self:
        """Return the settings with `warm_up: auto` replaced."""
        if self.warm_up != "auto":
            return self
        return self.model_copy(update={"warm_up": warm_up_for(self.cells, evaluations, self.warm_start)})

    @property
    def keeps_archive(self) -> bool:
        """True: each child competes with the elite of its cell."""
        return True

    def check_tasks(self, tasks: Sequence[str]) -> None:
        """Check that there are two axes or more, and that their tasks are scored.

        Raises
        ------
        ValueError
            If not.
        """
        if len(self.axes or tasks) < 2:
            raise ValueError(
                "strategy.kind map_elites keeps the best candidate for each combination of scores and there is one "
                "axis; name two tasks or more in fitness.tasks, or write strategy.kind: m2n2"
            )
        unknown = sorted({task for axis in self.axes or () for task in axis} - set(tasks))
        if unknown:
            raise ValueError(
                f"strategy.axes: {', '.join(unknown)} is not in fitness.tasks; name tasks among {', '.join(tasks)}"
            )

    def build(self, space: SearchSpace, seed: int) -> MapElites:
        """Build the strategy; the settings must be resolved."""
        return MapElites(space, seed, self)


class MapElites(Strategy):
    """A grid of elites. It never waits for results, so no worker is idle."""

    guess = "archive's best"

    steady_state = True

    def __init__(self, space: SearchSpace, seed: int, config: MapElitesConfig) -> None:
        super().__init__(space, seed)
        self.config = config
        self.population = config.population
        self.grid = EliteGrid(config)
        first = initial_population(space, config.warm_start, config.population)
        self._answered = Answered()
        self._initial = InitialPopulation(space, first, resolved_number("warm_up", config.warm_up))

    def recommend(self) -> Genotype | None:
        """Return the elite with the best fitness; None while there is none."""
        return self.grid.best()

    def members(self) -> list[Genotype]:
        """Return the elites, best first."""
        return self.grid.ranked()

    def keeps(self, evaluation: Evaluation) -> bool:
        """Return whether a candidate with this evaluation would enter its cell now."""
        return self.grid.would_take(evaluation)

    def _propose(self, n: int) -> list[Proposal]:
        return [self._proposal(identity) for identity in range(self._asked, self._asked + n)]

    def _proposal(self, identity: int) -> Proposal:
        generation = identity // self.population
        if identity % AGAIN == AGAIN - 1 and not self._initial.includes(identity):
            best = self.recommend()
            if best is not None and self._answered.misses_some(best):
                return Proposal(best, "again", generation)
        child, parents = self._next(identity)
        return Proposal(child, "sample", generation, parents)

    def _next(self, identity: int) -> Child:
        elites = self.grid.genotypes
        if self._initial.includes(identity) or not elites:
            return self._initial.proposed(identity, self.rng)
        first, second = couple(quality(np.array(self.grid.fitness)), self.rng)
        parents = [elites[first]]
        child: Genotype = np.array(elites[first])
        if self.rng.random() < self.config.crossover:
            parents.append(elites[second])
            child = self.space.crossover(child, elites[second], self.rng)
        if self.rng.random() < self.config.mutation:
            child = self.space.mutate(child, self.rng)
        return Child(child, parents)

    def _learn(self, candidate: Candidate, evaluation: Evaluation) -> None:
        self._answered.add(candidate, evaluation)
        if not math.isfinite(evaluation.fitness):
            return
        if candidate.kind == "again":
            self.grid.rescore(candidate.genotype, evaluation)
        else:
            self.grid.take(candidate.genotype, evaluation)


class EliteGrid:
    """The best candidate of each cell.

    Attributes
    ----------
    cells
        Maps a cell (one index per axis) to its index in `genotypes` and `fitness`, in the order of filling.
    """

    def __init__(self, config: MapElitesConfig) -> None:
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
