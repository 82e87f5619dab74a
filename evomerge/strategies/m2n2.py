"""M2N2: an archive whose members compete for items, and mate where they complement each other.

"Competition and Attraction Improve Model Fusion" (GECCO 2025), arXiv 2508.16204. Steady state: one child at a
time. P members, I items; s_ij is member i's score on item j.

- Competition (eq. 3, 5): an item has a capacity c_j that the members share in proportion to their scores,

      f_i = sum_j s_ij c_j / z_j^alpha,   z_j = sum_k s_kj,   c_j = max_i s_ij,

  so that an item that few can solve is worth much to them. c_j = 1 for right and wrong answers.
- The first parent is drawn in proportion to f.
- Attraction (eq. 4): the second one in proportion to what it could add where the first is weak,

      g(a, b) = sum_j max(0, s_bj - s_aj) c_j / z_j^alpha.

- The child is crossed by the space: split points, SLERP and chromosome groups are settings of the space. So is
  mutation, which the paper uses from scratch only.
- The archive takes the child in, all compete anew, and the least fit leaves: perhaps the child. Ties: the member
  with the lowest index leaves, so that the child stays.

Deviations:

- (4) as in the authors' program, with the exponent alpha, which the paper's formula leaves out; the same for alpha = 1.
- If nobody beats the first parent anywhere, the second one is drawn by f (the program divides zero by zero).
- Empty places are filled before anyone is dropped. The program holds them as zero vectors with no item right, and
  a member that has nothing right could be dropped for them.
- Scores may be negative (log-likelihoods): then every item is counted from its worst member up. `relative` does so
  always, as in the paper's experiment with images.
- An item that a member was not asked counts as the mean of those that it was asked.
- Without competition (alpha = 0) capacities are 1, so that a member's fitness is the sum of its scores: with
  `attraction: false` that is the paper's genetic algorithm.
- A failed candidate does not enter the archive. One that misses a floor is weaker than all that keep theirs.

With several candidates in flight, the order of the tells decides.
"""

from __future__ import annotations

import copy
import math
from typing import ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from evomerge.strategies.base import Candidate, Genotype, Strategy
from evomerge.strategies.generation import Proposal, resolved_number
from evomerge.strategies.initial_population import Opening, founders_of, warm_up_for
from evomerge.strategies.selection import roulette
from evomerge.strategies.warm_start import Founders
from fitness.results import Evaluation
from search_spaces.spaces.space import SearchSpace

Scores = NDArray[np.float64]


class M2n2Config(BaseModel):
    """Niches: members of an archive compete for items and mate with those that are strong where they are weak."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    objectives: ClassVar[Literal["one"]] = "one"

    kind: Literal["m2n2"] = "m2n2"
    archive: int = Field(default=20, ge=2)
    """Members, at least 2; more keep diversity longer and begin slower."""
    alpha: float = Field(default=1.0, ge=0)
    """How strongly members compete for an item; 0: not at all, the mean score decides."""
    attraction: bool = True
    """Whether the second parent is one that complements the first; else both are drawn alike."""
    crossover: float = Field(default=1.0, ge=0, le=1)
    """Probability that a child has two parents."""
    mutation: float = Field(default=0.0, ge=0, le=1)
    """Probability that a child is mutated: 0 for merges, 1 where weights evolve from scratch."""
    warm_up: int | Literal["auto"] = "auto"
    """Random merges proposed after the founders, to fill the archive; `auto`: up to its size, and at most a twentieth
    of the budget."""
    relative: bool = False
    """Whether scores count from the archive's worst member up, item by item; where one is negative they always do."""
    warm_start: Founders | None = None
    """Begin with the best candidates of a former search; none by default."""

    def resolved(self, genes: int, *, noise: float, evaluations: int) -> M2n2Config:
        """Return the settings with `auto` replaced by what it means for this budget."""
        if self.warm_up != "auto":
            return self
        return self.model_copy(update={"warm_up": warm_up_for(self.archive, evaluations, self.warm_start)})

    def build(self, space: SearchSpace, seed: int) -> M2n2:
        """Build the strategy; the settings must be resolved."""
        return M2n2(space, seed, self)


class M2n2(Strategy):
    """Competition and attraction over an archive; never waits, so no worker idles."""

    steady_state = True

    def __init__(self, space: SearchSpace, seed: int, config: M2n2Config) -> None:
        super().__init__(space, seed)
        self.config = config
        self.population = config.archive
        self.archive = Archive(config.archive, space.dimension, config.alpha, config.relative)
        founders = founders_of(space, config.warm_start, config.archive)
        self._opening = Opening(space, founders, resolved_number("warm_up", config.warm_up))

    def recommend(self) -> Genotype | None:
        """Return the member with the best search score (not shared fitness); None while there is no member."""
        return self.archive.best()

    def keeps(self, evaluation: Evaluation) -> bool:
        """Tell whether a candidate with this evaluation would get into the archive now."""
        return _scored(evaluation) and self.archive.would_take(evaluation)

    def _propose(self, n: int) -> list[Proposal]:
        identities = range(self._asked, self._asked + n)
        return [(self._next(identity), "sample", identity // self.population) for identity in identities]

    def _next(self, identity: int) -> Genotype:
        if not self._opening.over(identity) or self.archive.size < 2:
            return self._opening.genotype(identity, self.rng)
        return self._child()

    def _child(self) -> Genotype:
        competition = self.archive.competition()
        weights = self._weights(competition)
        first = roulette(weights, self.rng)
        members = self.archive.genotypes
        if self.rng.random() < self.config.crossover:
            second = self._partner(competition, weights, first)
            child = self.space.crossover(members[first], members[second], self.rng)
        else:
            child = members[first].copy()
        if self.rng.random() < self.config.mutation:
            child = self.space.mutate(child, self.rng)
        return child

    def _partner(self, competition: Competition, weights: Scores, first: int) -> int:
        """Draw the second parent; by the weights of first parents where attraction is off or draws to nobody."""
        if self.config.attraction:
            attraction = competition.attraction(first)
            if attraction.any():
                return roulette(attraction, self.rng)
        return roulette(weights, self.rng)

    def _weights(self, competition: Competition) -> Scores:
        """Return what the members are drawn by as first parents, float64[P]: fitness, 0 below a floor."""
        return np.where(self.archive.violations > 0.0, 0.0, competition.fitness())

    def _learn(self, candidate: Candidate, evaluation: Evaluation) -> None:
        if _scored(evaluation):
            self.archive.take(candidate.genotype, evaluation)


def _scored(evaluation: Evaluation) -> bool:
    return math.isfinite(evaluation.fitness) and bool(np.isfinite(evaluation.scores).all())


class Archive:
    """Up to `places` members with their scores item by item.

    Attributes
    ----------
    size
        Members so far.
    """

    def __init__(self, places: int, genes: int, alpha: float, relative: bool) -> None:
        self.places = places
        self.alpha = alpha
        self.relative = relative
        self.size = 0
        self._genotypes = np.zeros((places, genes))
        self._fitness = np.zeros(places)
        self._violations = np.zeros(places + 1)
        self._scores = np.zeros((places + 1, 0))  # the last place is the child's while it competes
        self._items: tuple[str, ...] = ()
        self._column: dict[str, int] = {}
        self._competition: Competition | None = None  # until members or items change

    @property
    def genotypes(self) -> Genotype:
        """Members, float64[P, G]; a view."""
        return self._genotypes[: self.size]

    @property
    def scores(self) -> Scores:
        """Their scores, float64[P, I]; a view."""
        return self._scores[: self.size]

    @property
    def violations(self) -> Scores:
        """By how much they miss the floors, float64[P]; a view."""
        return self._violations[: self.size]

    def best(self) -> Genotype | None:
        """Return a copy of the member with the highest fitness, the first on ties; None without members."""
        return self.genotypes[np.argmax(self._fitness[: self.size])].copy() if self.size else None

    def competition(self) -> Competition:
        """Return how the members stand against each other now."""
        if self._competition is None:
            self._competition = compete(self.scores, self.alpha, self.relative)
        return self._competition

    def take(self, genotype: Genotype, evaluation: Evaluation) -> None:
        """Let a child compete with the members for its place."""
        row = self._row(evaluation)
        place = self.size
        self._scores[place], self._violations[place] = row, evaluation.violation
        if self.size < self.places:
            self.size += 1
        else:
            place = self._weakest()
            if place == self.places:
                return
            self._scores[place], self._violations[place] = row, evaluation.violation
        self._genotypes[place] = genotype
        self._fitness[place] = evaluation.fitness
        self._competition = None

    def would_take(self, evaluation: Evaluation) -> bool:
        """Tell whether a child would stay; the archive stays as it is."""
        if self.size < self.places:
            return True
        trial = copy.copy(self)
        trial._column = dict(self._column)
        trial._scores, trial._violations = self._scores.copy(), self._violations.copy()
        row = trial._row(evaluation)
        trial._scores[self.places], trial._violations[self.places] = row, evaluation.violation
        return trial._weakest() != self.places

    def _weakest(self) -> int:
        """Return the place of the least fit among the members and the child, the first on ties."""
        fitness = compete(self._scores, self.alpha, self.relative).fitness()
        return int(np.argmin(np.where(self._violations > 0.0, -self._violations, fitness)))

    def _row(self, evaluation: Evaluation) -> Scores:
        """Return a child's scores, float64[I], in the order of the archive's items, which may become more."""
        items, scores = evaluation.items, np.asarray(evaluation.scores, dtype=np.float64)
        if not items:  # scored as a whole: one item
            items, scores = ("",), np.array([evaluation.fitness])
        if items is self._items or items == self._items:
            return scores
        self._add_columns(items)
        row = np.full(len(self._items), scores.mean())
        row[[self._column[item] for item in items]] = scores
        return row

    def _add_columns(self, items: tuple[str, ...]) -> None:
        new = tuple(item for item in items if item not in self._column)
        if not new:
            return
        first = len(self._items)
        means = self._scores.mean(axis=1, keepdims=True) if first else np.zeros((self.places + 1, 1))
        self._scores = np.hstack([self._scores, np.repeat(means, len(new), axis=1)])
        self._competition = None
        self._column.update((item, first + offset) for offset, item in enumerate(new))
        self._items += new


class Competition(NamedTuple):
    """How P members stand against each other on I items.

    Attributes
    ----------
    scores
        As they count, none negative: float64[P, I].
    worth
        What a score of 1 gets of each item, c_j / z_j^alpha: float64[I].
    """

    scores: Scores
    worth: Scores

    def fitness(self) -> Scores:
        """Return each member's fitness, float64[P] (eq. 3 and 5)."""
        return self._summed(self.scores)

    def attraction(self, first: int) -> Scores:
        """Return what each member could add to the one at `first`, float64[P] (eq. 4)."""
        gain = self.scores - self.scores[first]
        return self._summed(np.maximum(gain, 0.0, out=gain))

    def _summed(self, table: Scores) -> Scores:
        # Not a matrix product: equal members must be equally fit to the last bit, whatever their place.
        return np.einsum("pi,i->p", table, self.worth)


def compete(scores: Scores, alpha: float, relative: bool = False) -> Competition:
    """Let members compete for items.

    Parameters
    ----------
    scores
        float64[P, I].
    alpha
        Strength of competition.
    relative
        Whether scores are counted from the worst member up; those of items with a negative score always are.
    """
    if relative or scores.min(initial=0.0) < 0.0:
        worst = scores.min(axis=0)
        scores = scores - (worst if relative else np.minimum(worst, 0.0))
    if alpha == 0.0:
        return Competition(scores, np.ones(scores.shape[1]))
    capacity = scores.max(axis=0)  # c_j
    taken = scores.sum(axis=0)  # z_j
    divisor = taken**alpha
    return Competition(scores, capacity / np.where(divisor > 0.0, divisor, 1.0))  # an item that nobody solves: 0
