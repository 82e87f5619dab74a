"""Least change: the point of a grid whose answers differ least from its neighbours', found without right answers.

AdaMMS (arXiv 2503.23733): candidates are merges along a line of coefficients; the chosen one is

    argmin_a  diff(out_a, out_(a - d)) + diff(out_a, out_(a + d)),

where d is the distance of the line's points and diff counts the items that two merges answer differently. So a point
at an end of the line is not chosen. With several genes the neighbours are the next points along each gene, two each.

The choice is the strategy's own guess (`recommend`). A search compares it with the best candidates by score, and the
final table has a row for each: that of the guess has used no right answer.

Deviations: the published program compares its candidates on some hundred unlabelled items; here it is the items that
candidates are asked. A failed point is not a neighbour, and a point without all its neighbours is not chosen. Of equal
points the one nearer to the middle of the grid is taken.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import numpy as np
from pydantic import Field
from typing_extensions import Self

from evomerge.strategies.base import Candidate, Genotype, Proposal, Strategy, StrategyConfig
from evomerge.strategies.generation import resolved_number
from evomerge.strategies.grid import grid_axes, points_that_fit
from evomerge.strategies.registry import register_strategy
from fitness.results import Evaluation
from search_spaces.spaces.genes import Choice
from search_spaces.spaces.space import SearchSpace

Place = tuple[int, ...]
"""Indices of a point of the grid, one per gene."""


@register_strategy
class LeastChangeConfig(StrategyConfig):
    """AdaMMS: the point of a grid whose answers differ least from its neighbours', without right answers."""

    as_stage = False
    reads_answers = True

    kind: Literal["least_change"] = "least_change"
    points: Annotated[int, Field(ge=3, le=10_000)] | Literal["auto"] = "auto"
    """Values per gene, evenly spaced from bound to bound; at least 3. `auto`: as many as fit into the budget."""
    population: int = Field(default=16, ge=1, le=10_000)
    """Batch size. It only sets how often failures are checked."""

    def resolved(self, space: SearchSpace, *, noise: float, evaluations: int) -> Self:
        """Return the settings with `points: auto` replaced by as many values as fit into the budget.

        Raises
        ------
        ValueError
            If a gene is a choice, which has no neighbours, or the budget is smaller than the grid.
        """
        if any(isinstance(gene, Choice) for gene in space.genes):
            raise ValueError(
                "strategy.kind least_change compares neighbouring coefficients and some genes of this space are "
                "choices; write space.groups: model with one method, or strategy.kind: grid"
            )
        points = points_that_fit(space.genes, self.points, evaluations, least=3)
        return self.model_copy(update={"points": points})

    def build(self, space: SearchSpace, seed: int) -> LeastChange:
        """Build the strategy; the settings must be resolved."""
        return LeastChange(space, seed, self)


class LeastChange(Strategy):
    """Proposes each point of the grid once, then finishes. It draws no random numbers and reads no score.

    Attributes
    ----------
    answers
        By place: the items that a point was asked, and its answers.
    """

    steady_state = True
    guess = "least change of answers"

    def __init__(self, space: SearchSpace, seed: int, config: LeastChangeConfig) -> None:
        super().__init__(space, seed)
        self.population = config.population
        self._axes = grid_axes(space.genes, resolved_number("points", config.points))
        self._sizes = tuple(len(axis) for axis in self._axes)
        self.answers: dict[Place, dict[str, str]] = {}

    @property
    def finished(self) -> bool:
        """Whether the whole grid has been proposed."""
        return self._asked >= math.prod(self._sizes)

    def recommend(self) -> Genotype | None:
        """Return the point with the least change; None while no point has all its neighbours."""
        changes = {place: change for place in self.answers if (change := self.change(place)) is not None}
        if not changes:
            return None
        middle = (np.array(self._sizes) - 1) / 2
        best = min(changes, key=lambda place: (changes[place], float(np.abs(np.array(place) - middle).sum()), place))
        return self._point(best)

    def change(self, place: Place) -> float | None:
        """Return the mean share of items that a point and its neighbours answer differently; None: not known."""
        shares = []
        for gene in range(len(place)):
            for step in (-1, 1):
                neighbour = (*place[:gene], place[gene] + step, *place[gene + 1 :])
                if place not in self.answers or neighbour not in self.answers:
                    return None
                shares.append(different(self.answers[place], self.answers[neighbour]))
        return float(np.mean(shares))

    def _place(self, number: int) -> Place:
        """Return where the candidate with this number is; the last gene changes fastest."""
        place: list[int] = []
        for size in reversed(self._sizes):
            number, at = divmod(number, size)
            place.insert(0, at)
        return tuple(place)

    def _point(self, place: Place) -> Genotype:
        return np.array([axis[at] for axis, at in zip(self._axes, place, strict=True)], dtype=np.float64)

    def _propose(self, n: int) -> list[Proposal]:
        last = min(self._asked + n, math.prod(self._sizes))
        # One generation: all points are asked the same items.
        return [Proposal(self._point(self._place(number)), "sample", 0) for number in range(self._asked, last)]

    def _learn(self, candidate: Candidate, evaluation: Evaluation) -> None:
        if evaluation.answers:
            told = dict(zip(evaluation.items, evaluation.answers, strict=True))
            self.answers[self._place(candidate.id)] = told


def different(one: dict[str, str], other: dict[str, str]) -> float:
    """Return the share of the items which both were asked that have different answers; 1 if there are none."""
    common = [item for item in one if item in other]
    return float(np.mean([one[item] != other[item] for item in common])) if common else 1.0
