"""M2N2: an archive whose members compete for items, and mate with members that complement them.

"Competition and Attraction Improve Model Fusion" (GECCO 2025), arXiv 2508.16204. Steady state: one child at a
time. P members, I items; s_ij is member i's score on item j.

- Competition (eq. 3, 5): each item has a capacity c_j, shared by the members in proportion to their scores,

      f_i = sum_j s_ij c_j / z_j^alpha,   z_j = sum_k s_kj,   c_j = max_i s_ij,

  so an item solved by few members is worth much to each of them. For 0/1 scores c_j = 1.
- The first parent is drawn in proportion to f.
- Attraction (eq. 4): the second parent is drawn in proportion to what it could add where the first one is weak,

      g(a, b) = sum_j max(0, s_bj - s_aj) c_j / z_j^alpha.

- Crossover is the space's: split points, SLERP and chromosome groups are settings of the space. So is mutation,
  which the paper uses only when it evolves from scratch; docs/field/natural-niches.md says what it does for merges.
- The child joins the archive, fitness is computed again for all members, and the least fit member is removed, which
  may be the child. On a tie the member with the lowest index is removed, so the child stays.

Deviations:

- (4) has the exponent alpha, as in the authors' program; the paper's formula leaves it out. For alpha = 1 they agree.
- If no member beats the first parent on any item, the second parent is drawn by f (the program divides zero by zero).
- Empty places are filled before a member is removed. The program represents them as zero vectors with no item right,
  and could remove a member with no item right in favour of an empty place.
- Scores may be negative (log-likelihoods): then each item's scores are counted from its worst member. With `relative`
  they always are, as in the paper's experiment with images.
- An item that a member was not asked gets the mean of the scores that it has.
- Without competition (alpha = 0) capacities are 1, and a member's fitness is the sum of its scores. With
  `attraction: false` this is the paper's genetic algorithm.
- A failed candidate does not enter the archive. A candidate below a minimum score ranks below all that are not.

With several candidates in flight, the order of the tells matters.
"""

from __future__ import annotations

import copy
import math
from functools import cached_property
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from typing_extensions import Self

from evomerge.strategies.base import Candidate, Genotype, Proposal, Strategy, StrategyConfig
from evomerge.strategies.generation import Answered, resolved_number
from evomerge.strategies.initial_population import Child, InitialPopulation, initial_population, warm_up_for
from evomerge.strategies.registry import register_strategy
from evomerge.strategies.selection import roulette
from evomerge.strategies.warm_start import WarmStartPopulation
from fitness.results import Evaluation
from search_spaces.spaces.space import SearchSpace

Scores = NDArray[np.float64]


AGAIN = 10
"""One candidate in so many is the best member, asked these items as well, so that a lucky score does not stay."""


@register_strategy
class M2n2Config(StrategyConfig):
    """Niches: archive members compete for items and mate with members that are strong where they are weak."""

    warm_start_type = WarmStartPopulation
    archive_compares = "if a member was not asked an item, the mean of its scores is used"

    kind: Literal["m2n2"] = "m2n2"
    archive: int = Field(default=20, ge=2, le=10_000)
    """Members of the archive, at least 2. A larger archive keeps diversity longer and converges more slowly."""
    alpha: float = Field(default=1.0, ge=0, le=50)
    """Strength of the competition for items. 0: no competition, members are ranked by their mean score."""
    attraction: bool = True
    """Whether the second parent is chosen to complement the first. Otherwise both are drawn by fitness."""
    crossover: float = Field(default=1.0, ge=0, le=1)
    """Probability that a child has two parents."""
    mutation: float = Field(default=0.0, ge=0, le=1)
    """Probability that a child is mutated: 0 as for the paper's merges, whose children are between their parents; 1 to
    evolve weights from scratch, and worth trying over task vectors."""
    warm_up: Annotated[int, Field(ge=0, le=100_000)] | Literal["auto"] = "auto"
    """Random merges proposed after the initial candidates, to fill the archive. `auto`: up to the archive's size, at
    most a twentieth of the budget."""
    relative: bool = False
    """Whether scores are counted from the archive's worst member on each item. For items with a negative score they
    always are."""
    warm_start: WarmStartPopulation | None = None
    """Earlier run whose best candidates are proposed first. By default there is none."""

    def resolved(self, space: SearchSpace, *, noise: float, evaluations: int) -> Self:
        """Return the settings with `warm_up: auto` replaced."""
        if self.warm_up != "auto":
            return self
        return self.model_copy(update={"warm_up": warm_up_for(self.archive, evaluations, self.warm_start)})

    @property
    def keeps_archive(self) -> bool:
        """True: each child competes with the archive's members for a place."""
        return True

    @property
    def places(self) -> int:
        """The archive's size."""
        return self.archive

    def build(self, space: SearchSpace, seed: int) -> M2n2:
        """Build the strategy; the settings must be resolved."""
        return M2n2(space, seed, self)


class M2n2(Strategy):
    """Competition and attraction in an archive. It never waits for results, so no worker is idle."""

    guess = "archive's best"

    steady_state = True

    def __init__(self, space: SearchSpace, seed: int, config: M2n2Config) -> None:
        super().__init__(space, seed)
        self.config = config
        self.population = config.archive
        self.archive = Archive(config.archive, space.dimension, config.alpha, config.relative)
        first = initial_population(space, config.warm_start, config.archive)
        self._answered = Answered()
        self._initial = InitialPopulation(space, first, resolved_number("warm_up", config.warm_up))

    def recommend(self) -> Genotype | None:
        """Return the member with the best search score (not the shared fitness); None while there is none."""
        return self.archive.best()

    def members(self) -> list[Genotype]:
        """Return the archive, best score first."""
        return [member.copy() for member in self.archive.ranked()]

    def keeps(self, evaluation: Evaluation) -> bool:
        """Return whether a candidate with this evaluation would enter the archive now."""
        return _scored(evaluation) and self.archive.would_take(evaluation)

    def _propose(self, n: int) -> list[Proposal]:
        return [self._proposal(identity) for identity in range(self._asked, self._asked + n)]

    def _proposal(self, identity: int) -> Proposal:
        generation = identity // self.population
        if identity % AGAIN == AGAIN - 1 and not self._initial.includes(identity):
            best = self.archive.best_place()
            if best is not None and self._answered.misses_some(self.archive.ids[best]):
                return Proposal(self.archive.genotypes[best].copy(), "again", generation)
        child, parents = self._next(identity)
        return Proposal(child, "sample", generation, parents)

    def _next(self, identity: int) -> Child:
        if self._initial.includes(identity) or self.archive.size < 2:
            return self._initial.proposed(identity, self.rng)
        return self._child()

    def _child(self) -> Child:
        competition = self.archive.competition()
        weights = self._weights(competition)
        first = roulette(weights, self.rng)
        members, ids = self.archive.genotypes, self.archive.ids
        parents = [ids[first]]
        if self.rng.random() < self.config.crossover:
            second = self._partner(competition, weights, first)
            parents.append(ids[second])
            child = self.space.crossover(members[first], members[second], self.rng)
        else:
            child = members[first].copy()
        if self.rng.random() < self.config.mutation:
            child = self.space.mutate(child, self.rng)
        return Child(child, parents)

    def _partner(self, competition: Competition, weights: Scores, first: int) -> int:
        """Draw the second parent: by attraction, or like the first one if attraction is off or zero for all members."""
        if self.config.attraction:
            attraction = competition.attraction(first)
            if attraction.any():
                return roulette(attraction, self.rng)
        return roulette(weights, self.rng)

    def _weights(self, competition: Competition) -> Scores:
        """Return the weights for drawing first parents, float64[P]: the fitness, 0 below a minimum score."""
        return np.where(self.archive.violations > 0.0, 0.0, competition.fitness)

    def _learn(self, candidate: Candidate, evaluation: Evaluation) -> None:
        self._answered.add(self._first_id(candidate), evaluation)
        if not _scored(evaluation):
            return
        if candidate.kind == "again":
            self.archive.rescore(candidate.genotype, evaluation)
        else:
            self.archive.take(candidate.genotype, evaluation, self._first_id(candidate))


def _scored(evaluation: Evaluation) -> bool:
    return math.isfinite(evaluation.fitness) and bool(np.isfinite(evaluation.scores).all())


class Archive:
    """Up to `places` members, with their scores on each item.

    Attributes
    ----------
    size
        Members so far.
    ids
        Of each member's candidate.
    """

    def __init__(self, places: int, genes: int, alpha: float, relative: bool) -> None:
        self.places = places
        self.alpha = alpha
        self.relative = relative
        self.size = 0
        self.ids = [-1] * places
        self._genotypes = np.zeros((places, genes))
        self._fitness = np.zeros(places)
        self._violations = np.zeros(places + 1)
        self._scores = np.zeros((places + 1, 0))  # the last row holds the child while it competes
        self._items: tuple[str, ...] = ()
        self._column: dict[str, int] = {}
        self._competition: Competition | None = None  # until members or items change

    @property
    def genotypes(self) -> Genotype:
        """Genotypes of the members, float64[P, G]; a view."""
        return self._genotypes[: self.size]

    @property
    def scores(self) -> Scores:
        """Scores of the members, float64[P, I]; a view."""
        return self._scores[: self.size]

    @property
    def violations(self) -> Scores:
        """By how much the members are below their minimum scores, float64[P]; a view."""
        return self._violations[: self.size]

    def best(self) -> Genotype | None:
        """Return a copy of the member with the highest fitness, the first on ties; None without members."""
        place = self.best_place()
        return None if place is None else self.genotypes[place].copy()

    def best_place(self) -> int | None:
        """Return the index of the member with the highest fitness, the first on ties; None without members."""
        return int(np.argmax(self._fitness[: self.size])) if self.size else None

    def ranked(self) -> Genotype:
        """Return the members, float64[P, G], best score first."""
        ranked: Genotype = self.genotypes[np.argsort(-self._fitness[: self.size], kind="stable")]
        return ranked

    def competition(self) -> Competition:
        """Return the competition among the present members."""
        if self._competition is None:
            self._competition = compete(self.scores, self.alpha, self.relative)
        return self._competition

    def take(self, genotype: Genotype, evaluation: Evaluation, identity: int = -1) -> None:
        """Let a child, the candidate with this id, compete with the members for a place."""
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
        self.ids[place] = identity
        self._competition = None

    def rescore(self, genotype: Genotype, evaluation: Evaluation) -> None:
        """Take further answers of a member; nothing happens if it has left."""
        row = self._row(evaluation)
        for place in np.flatnonzero((self.genotypes == genotype).all(axis=1)):
            self._scores[place], self._violations[place] = row, evaluation.violation
            self._fitness[place] = evaluation.fitness
        self._competition = None

    def would_take(self, evaluation: Evaluation) -> bool:
        """Return whether a child would stay; the archive does not change."""
        if self.size < self.places:
            return True
        trial = copy.copy(self)
        trial._column = dict(self._column)
        trial._scores, trial._violations = self._scores.copy(), self._violations.copy()
        row = trial._row(evaluation)
        trial._scores[self.places], trial._violations[self.places] = row, evaluation.violation
        return trial._weakest() != self.places

    def _weakest(self) -> int:
        """Return the index of the least fit among the members and the child, the first one on ties."""
        fitness = compete(self._scores, self.alpha, self.relative).fitness
        return int(np.argmin(np.where(self._violations > 0.0, -self._violations, fitness)))

    def _row(self, evaluation: Evaluation) -> Scores:
        """Return a child's scores, float64[I], in the order of the archive's items; adds items that are new."""
        items, scores = evaluation.items, np.asarray(evaluation.scores, dtype=np.float64)
        if not items:  # no scores per item: treat the fitness as one item
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


class Competition:
    """P members that compete for I items. Sums are kept: an archive stays the same for many proposals.

    Attributes
    ----------
    scores
        Shifted so that none is negative, float64[P, I].
    worth
        Fitness that a score of 1 on an item gives, c_j / z_j^alpha, float64[I].
    """

    def __init__(self, scores: Scores, worth: Scores) -> None:
        self.scores = scores
        self.worth = worth
        self._attraction: dict[int, Scores] = {}

    @cached_property
    def fitness(self) -> Scores:
        """Each member's fitness, float64[P] (eq. 3 and 5)."""
        return self._summed(self.scores)

    def attraction(self, first: int) -> Scores:
        """Return what each member could add to the member at index `first`, float64[P] (eq. 4)."""
        if first not in self._attraction:
            gain = self.scores - self.scores[first]
            self._attraction[first] = self._summed(np.maximum(gain, 0.0, out=gain))
        return self._attraction[first]

    def _summed(self, table: Scores) -> Scores:
        # Not a matrix product: equal members must get equal fitness to the last bit, whatever their row.
        fitness: Scores = np.einsum("pi,i->p", table, self.worth)
        return fitness


def compete(scores: Scores, alpha: float, relative: bool = False) -> Competition:
    """Return the competition of members for items.

    Parameters
    ----------
    scores
        float64[P, I].
    alpha
        Strength of competition.
    relative
        Whether scores are counted from the worst member. On items with a negative score they always are.
    """
    if relative or scores.min(initial=0.0) < 0.0:
        worst = scores.min(axis=0)
        scores = scores - (worst if relative else np.minimum(worst, 0.0))
    if alpha == 0.0:
        return Competition(scores, np.ones(scores.shape[1]))
    capacity = scores.max(axis=0)  # c_j
    taken = scores.sum(axis=0)  # z_j
    divisor = taken**alpha
    return Competition(scores, capacity / np.where(divisor > 0.0, divisor, 1.0))  # 0 for an item solved by no member
