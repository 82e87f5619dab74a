"""MAP-Elites: the best candidate of every kind, on a grid of kinds.

"Illuminating search spaces by mapping elites", arXiv 1504.04909, in the form that M2N2 (arXiv 2508.16204) compares
itself with: an axis per task, cut into equal cells; a candidate's kind is the cell of its scores on the tasks, and its
quality its fitness. Steady-state: two elites, drawn in proportion to quality, have a child, which takes its cell where
that is empty or held by a lesser one.

Deviations from that program: a score on or beyond the end of an axis counts to the last cell (there a score of 1
is lost); one elite alone has a child with itself, so that the search begins. Where few items are asked, a kind follows
from the plain means of the answers, and quality from the estimate of the full score.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from evomerge.strategies.base import Candidate, Genotype, Strategy
from evomerge.strategies.generation import Proposal, resolved_number
from evomerge.strategies.initial_population import Opening, founders_of, warm_up_for
from evomerge.strategies.selection import couple, quality
from evomerge.strategies.warm_start import Founders
from fitness.items import task_of
from fitness.results import Evaluation
from search_spaces.spaces.space import SearchSpace


class MapElitesConfig(BaseModel):
    """Quality diversity: the best candidate for each combination of scores on the tasks; for two tasks or more."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    objectives: ClassVar[Literal["one"]] = "one"

    kind: Literal["map_elites"] = "map_elites"
    cells: int = Field(default=10, ge=2)
    """Cells of each axis."""
    low: float = Field(default=0.0, allow_inf_nan=False)
    """Where the axes begin, in the unit of the tasks' metrics."""
    high: float = Field(default=1.0, allow_inf_nan=False)
    """Where they end; scores beyond count to the last cell."""
    axes: tuple[tuple[str, ...], ...] | None = None
    """Groups of tasks, one per axis, each scored by the mean of its tasks: `[[math_en, math_ja], [chat]]`; by default
    every task has an axis of its own."""
    crossover: float = Field(default=1.0, ge=0, le=1)
    """Probability that a child has two parents."""
    mutation: float = Field(default=0.0, ge=0, le=1)
    """Probability that a child is mutated: 0 for merges, 1 where weights evolve from scratch."""
    warm_up: int | Literal["auto"] = "auto"
    """Random merges proposed after the founders; `auto`: as many as an axis has cells, and at most a twentieth of the
    budget."""
    population: int = Field(default=16, ge=1)
    """Candidates per generation: only the unit in which failures are counted, and the most that a warm start takes."""
    warm_start: Founders | None = None
    """Begin with the best candidates of a former search; none by default."""

    @model_validator(mode="after")
    def _ordered(self) -> MapElitesConfig:
        if not self.low < self.high:
            raise ValueError(f"low {self.low} is not below high {self.high}; write low < high")
        if self.axes is not None and not all(self.axes):
            raise ValueError("axes: an axis has no task; name at least one task in each")
        return self

    def resolved(self, genes: int, *, noise: float, evaluations: int) -> MapElitesConfig:
        """Return the settings with `auto` replaced by what it means for this budget."""
        if self.warm_up != "auto":
            return self
        return self.model_copy(update={"warm_up": warm_up_for(self.cells, evaluations, self.warm_start)})

    def build(self, space: SearchSpace, seed: int) -> MapElites:
        """Build the strategy; the settings must be resolved."""
        return MapElites(space, seed, self)


class MapElites(Strategy):
    """A grid of elites; never waits, so no worker idles.

    Attributes
    ----------
    cells
        Cell (one index per axis) to its place in `genotypes` and `fitness`, in the order in which cells were filled.
    """

    steady_state = True

    def __init__(self, space: SearchSpace, seed: int, config: MapElitesConfig) -> None:
        super().__init__(space, seed)
        self.config = config
        self.population = config.population
        self.cells: dict[tuple[int, ...], int] = {}
        self.genotypes: list[Genotype] = []
        self.fitness: list[float] = []
        self._axes = _Axes(config.axes)
        founders = founders_of(space, config.warm_start, config.population)
        self._opening = Opening(space, founders, resolved_number("warm_up", config.warm_up))

    def recommend(self) -> Genotype | None:
        """Return the elite with the best fitness; None while there is none."""
        return self.genotypes[int(np.argmax(self.fitness))].copy() if self.genotypes else None

    def keeps(self, evaluation: Evaluation) -> bool:
        """Tell whether a candidate with this evaluation would get into its cell now."""
        if not math.isfinite(evaluation.fitness):
            return False
        place = self.cells.get(self._cell(evaluation))
        return place is None or evaluation.fitness > self.fitness[place]

    def _propose(self, n: int) -> list[Proposal]:
        identities = range(self._asked, self._asked + n)
        return [(self._next(identity), "sample", identity // self.population) for identity in identities]

    def _next(self, identity: int) -> Genotype:
        if not self._opening.over(identity) or not self.genotypes:
            return self._opening.genotype(identity, self.rng)
        first, second = couple(quality(np.array(self.fitness)), self.rng)
        child = self.genotypes[first].copy()
        if self.rng.random() < self.config.crossover:
            child = self.space.crossover(child, self.genotypes[second], self.rng)
        if self.rng.random() < self.config.mutation:
            child = self.space.mutate(child, self.rng)
        return child

    def _learn(self, candidate: Candidate, evaluation: Evaluation) -> None:
        if not math.isfinite(evaluation.fitness):
            return
        cell = self._cell(evaluation)
        place = self.cells.setdefault(cell, len(self.genotypes))
        if place == len(self.genotypes):
            self.genotypes.append(candidate.genotype)
            self.fitness.append(evaluation.fitness)
        elif evaluation.fitness > self.fitness[place]:
            self.genotypes[place], self.fitness[place] = candidate.genotype, evaluation.fitness

    def _cell(self, evaluation: Evaluation) -> tuple[int, ...]:
        config = self.config
        scores = self._axes.scores(evaluation)
        position = np.nan_to_num((scores - config.low) / (config.high - config.low)) * config.cells
        return tuple(np.clip(np.floor(position), 0, config.cells - 1).astype(int).tolist())


class _Axes:
    """Where a candidate lies on each axis; what only depends on the items is kept from one candidate to the next."""

    def __init__(self, groups: tuple[tuple[str, ...], ...] | None) -> None:
        self._groups = groups
        self._items: tuple[str, ...] | None = None
        self._weights: NDArray[np.float64] = np.zeros((0, 0))

    def scores(self, evaluation: Evaluation) -> NDArray[np.float64]:
        """Return a score per axis, float64[A]: the mean of its tasks' mean scores.

        Raises
        ------
        ValueError
            If a task of an axis was not asked.
        """
        items = evaluation.items
        if not items:  # scored as a whole: one axis
            return np.array([evaluation.fitness])
        if items is not self._items and items != self._items:
            self._weights, self._items = self._weigh(items), items
        return self._weights @ np.asarray(evaluation.scores, dtype=np.float64)

    def _weigh(self, items: tuple[str, ...]) -> NDArray[np.float64]:
        """Return what each item counts on each axis, float64[A, I]."""
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
