"""CycleQD: an archive for each task, which take turns at being the one that is improved.

"Agent Skill Acquisition for Large Language Models via CycleQD", arXiv 2410.14735 (ICLR 2025), as in its program. With
K tasks, or groups of tasks (`axes`), archive k is a grid over the scores on the others; the quality of a candidate in
it is its score on task k. In each generation one archive is active, and the next one in the next generation. Its elites
are drawn as parents with a probability proportional to

    Π_v  0.5 + 0.8 · (v − min v) / (max v − min v),     v: the quality, and the cell's index on each axis,

two different ones; the child is their mean with weights w_i ~ N(1, crossover²),

    child = (w_1 a + w_2 b) / (w_1 + w_2),

which of task vectors' coefficients is the published sum of task vectors. Every child is offered to all archives: it
enters a cell that is empty or whose elite is worse.

Deviations: the program mutates weights along the singular vectors of an expert's task vector; here mutation is the
space's. At the end it averages elites with softmax weights; here the result is one recipe, and `table: {ensemble: N,
voters: last_population}` lets elites vote.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from evomerge.strategies.base import Candidate, Genotype, Proposal, Strategy
from evomerge.strategies.initial_population import Child, InitialPopulation, initial_population
from evomerge.strategies.registry import register_strategy
from evomerge.strategies.score_grid import Axes, Cells, ScoreGridConfig, cell_of
from evomerge.strategies.warm_start import WarmStartPopulation
from fitness.results import Evaluation
from search_spaces.spaces.space import SearchSpace

LEAST, SLOPE = 0.5, 0.8
"""Of the probability with which an elite is drawn as a parent, for each of its values."""


@register_strategy
class CycleqdConfig(ScoreGridConfig):
    """CycleQD: a grid for each task over the scores on the others; the tasks are improved in turn."""

    warm_start_type = WarmStartPopulation
    archive_compares = "a member's cell and quality follow from the means of its answers"

    kind: Literal["cycleqd"] = "cycleqd"
    cells: Cells = 15
    """Cells per axis."""
    crossover: float = Field(default=0.01, ge=0, le=10)
    """Standard deviation of the parents' weights in a child around 1."""
    mutation: float = Field(default=0.5, ge=0, le=1)
    """Probability that a child is mutated."""
    warm_up: int = Field(default=10, ge=0, le=100_000)
    """Random merges proposed after the initial candidates."""
    population: int = Field(default=8, ge=1, le=10_000)
    """Children before the next task's turn."""
    warm_start: WarmStartPopulation | None = None
    """Earlier run whose best candidates are proposed first. By default there is none."""

    @property
    def keeps_archive(self) -> bool:
        """True: each child competes with the elites of its cells."""
        return True

    def build(self, space: SearchSpace, seed: int) -> Cycleqd:
        """Build the strategy."""
        return Cycleqd(space, seed, self)


@dataclass(frozen=True, eq=False)
class Elite:
    """A candidate in an archive, with its scores on all tasks, float64[K]; one that violates a constraint is worse."""

    genotype: Genotype
    scores: NDArray[np.float64]
    fitness: float
    violation: float

    def is_beaten(self, task: int, scores: NDArray[np.float64], violation: float) -> bool:
        """Return whether a candidate with these scores takes its place in a task's archive."""
        return (-violation, scores[task]) > (-self.violation, self.scores[task])


class Cycleqd(Strategy):
    """K grids of elites. It never waits for results, so no worker is idle.

    Attributes
    ----------
    archives
        For each task, the elites by their cell (one index for each of the other tasks); empty before the first result.
    """

    guess = "archives' best"

    steady_state = True

    def __init__(self, space: SearchSpace, seed: int, config: CycleqdConfig) -> None:
        super().__init__(space, seed)
        self.config = config
        self.population = config.population
        self.archives: list[dict[tuple[int, ...], Elite]] = []
        self._axes = Axes(config.axes)
        first = initial_population(space, config.warm_start, config.population)
        self._initial = InitialPopulation(space, first, config.warm_up)

    def recommend(self) -> Genotype | None:
        """Return the elite with the best fitness; None while there is none."""
        members = self.members()
        return members[0] if members else None

    def members(self) -> list[Genotype]:
        """Return the elites of all archives, each once, best fitness first."""
        elites = {elite.genotype.tobytes(): elite for archive in self.archives for elite in archive.values()}
        ranked = sorted(elites.values(), key=lambda elite: -elite.fitness)
        return [elite.genotype.copy() for elite in ranked]

    def keeps(self, evaluation: Evaluation) -> bool:
        """Return whether a candidate with this evaluation would enter one of the archives now."""
        if not math.isfinite(evaluation.fitness):
            return False
        return not self.archives or any(self._entered(self._axes.scores(evaluation), evaluation.violation))

    def _propose(self, n: int) -> list[Proposal]:
        proposals = []
        for identity in range(self._asked, self._asked + n):
            child, parents = self._next(identity)
            proposals.append(Proposal(child, "sample", identity // self.population, parents))
        return proposals

    def _next(self, identity: int) -> Child:
        if self._initial.includes(identity) or not self.archives:
            return self._initial.proposed(identity, self.rng)
        active = (identity // self.population) % len(self.archives)
        parents = self._parents(active)
        child = self._crossed(*parents) if len(parents) > 1 else parents[0].copy()
        if len(parents) == 1 or self.rng.random() < self.config.mutation:
            child = self.space.mutate(child, self.rng)
        return Child(child, parents)

    def _parents(self, active: int) -> list[Genotype]:
        """Draw two elites of an archive; its only one if there is one."""
        cells, elites = zip(*self.archives[active].items(), strict=True)
        values = np.column_stack((np.array(cells, np.float64), [elite.scores[active] for elite in elites]))
        spread = np.ptp(values, axis=0)
        shares = (values - values.min(axis=0)) / np.where(spread > 0, spread, 1.0)
        weights = np.prod(LEAST + SLOPE * shares, axis=1)
        drawn = self.rng.choice(len(elites), min(2, len(elites)), replace=False, p=weights / weights.sum())
        return [elites[int(at)].genotype for at in drawn]

    def _crossed(self, a: Genotype, b: Genotype) -> Genotype:
        weights = np.abs(self.rng.normal(1.0, self.config.crossover, 2))
        shares = weights / weights.sum() if weights.sum() > 0 else np.full(2, 0.5)
        mean = shares[0] * a + shares[1] * b
        return self.space.recombine(mean, (a, b), tuple(shares.tolist()), self.rng)

    def _learn(self, candidate: Candidate, evaluation: Evaluation) -> None:
        if not math.isfinite(evaluation.fitness):
            return
        scores = self._axes.scores(evaluation)
        if not self.archives:
            self.archives = [{} for _ in scores]
        elite = Elite(candidate.genotype, scores, evaluation.fitness, evaluation.violation)
        for task, enters in enumerate(self._entered(scores, evaluation.violation)):
            if enters:
                self.archives[task][self._cell(task, scores)] = elite

    def _entered(self, scores: NDArray[np.float64], violation: float) -> list[bool]:
        """Return for each archive whether a candidate with these scores enters it."""
        present = [archive.get(self._cell(task, scores)) for task, archive in enumerate(self.archives)]
        return [elite is None or elite.is_beaten(task, scores, violation) for task, elite in enumerate(present)]

    def _cell(self, task: int, scores: NDArray[np.float64]) -> tuple[int, ...]:
        """Return the cell in a task's archive: an index for the score on each other task."""
        config = self.config
        return cell_of(np.delete(scores, task), low=config.low, high=config.high, cells=config.cells)
