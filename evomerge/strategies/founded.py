"""Founders: merges that are known without a search, scored before the first candidate of any strategy.

The sources, the uniform average, task arithmetic and the search's own start are what a search has to beat. They are
proposed first, as far as the space has them. Then the strategy begins:

- with the best of them in place of the space's start, where a strategy starts from one point;
- with all of them in its first population, where it has one.

The space's start is kept unless a founder is better by more than the standard error of their difference: the best of
several noisy scores is biased upward.

A strategy that proposes a founder is told its score at once; nothing is asked twice. Only the first time: a strategy
that proposes nothing else would never come to an end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from evomerge.strategies.base import Candidate, Genotype, Proposal, Strategy, StrategyConfig
from evomerge.strategies.stage import Relay, Stage
from fitness.results import Evaluation
from search_spaces.spaces.space import SearchSpace
from search_spaces.spaces.wrappers import FoundedSpace

SAME = 1e-9
"""Genotypes closer than this, as a fraction of each gene's range, are one point."""


class Founded(Relay):
    """Proposes the founders, then what a strategy proposes that begins with them.

    Parameters
    ----------
    space
        The space to search.
    seed
        Seed of the strategy.
    config
        The strategy's settings, resolved.
    founders
        Points of the space, float64[G] each, distinct; its start among them.

    Raises
    ------
    ValueError
        If its start is not among them.
    """

    def __init__(self, space: SearchSpace, seed: int, config: StrategyConfig, founders: Sequence[Genotype]) -> None:
        super().__init__(space, seed)
        self._config, self._seed = config, seed
        self._founders: NDArray[np.float64] = np.array([space.settled(np.array(point)) for point in founders])
        self._scored: dict[int, Evaluation] = {}  # by position
        self._unused: dict[int, Evaluation] = {}  # those that the strategy has not proposed yet
        first = self._position(space.settled(space.start.copy()))
        if first is None:
            raise ValueError("founders: the space's start is not among them; add it")
        self._start = first
        self._begun = False
        self._enter(Stage(_Founders(space, self._founders)))

    @property
    def finished(self) -> bool:
        """Whether the strategy is."""
        return self._begun and self._stage.strategy.finished

    def recommend(self) -> Genotype | None:
        """Return the strategy's own best guess; None before it has begun."""
        return self._stage.recommend() if self._begun else None

    def _propose(self, n: int) -> list[Proposal]:
        if not self._begun:
            if not self._stage.strategy.finished:
                return self._stage.ask(n, self._asked)
            if self._open:
                return []
            self._begin()
        proposals: list[Proposal] = []
        while len(proposals) < n:
            first = self._asked + len(proposals)
            asked = self._stage.ask(1, first)
            if not asked:
                break
            founder = self._founder(asked[0])
            if founder is None:
                proposals += asked
            else:
                self._stage.is_known_as(first, founder)
                self._stage.tell(Candidate(first, *asked[0][:3]), self._unused.pop(founder))
        return proposals

    def _learn(self, candidate: Candidate, evaluation: Evaluation) -> None:
        if not self._begun:
            self._scored[candidate.id] = evaluation
        self._stage.tell(candidate, evaluation)

    def _begin(self) -> None:
        space = self.space
        best = self._best()
        if best is not None:
            space = space.starting_at(self._founders[best])
        founded = FoundedSpace(space, list(self._founders))
        self._begun, self._unused = True, dict(self._scored)
        self._enter(Stage(self._config.build(founded, self._seed), self._stage.last + 1))

    def _best(self) -> int | None:
        """Return the position of the best founder; None: the space's start, or not clearly better than it."""
        scored = {at: one for at, one in self._scored.items() if math.isfinite(one.fitness)}
        if not scored:
            return None
        best = max(scored, key=lambda at: (scored[at].fitness, -at))
        start = scored.get(self._start)
        if start is None:
            return best
        error = math.hypot(scored[best].standard_error, start.standard_error)
        return best if scored[best].fitness > start.fitness + error else None

    def _founder(self, proposal: Proposal) -> int | None:
        """Return the id of the founder that a proposal is; None: none, one it was before, or derivatives are wanted."""
        at = None if proposal.kind in ("gradient", "again") else self._position(proposal.genotype)
        return at if at in self._unused else None

    def _position(self, genotype: Genotype) -> int | None:
        distance = np.abs(self._founders - genotype) / (self.space.high - self.space.low)
        same = np.flatnonzero((distance <= SAME).all(axis=1))
        return int(same[0]) if same.size else None


class _Founders(Strategy):
    """Proposes each founder once and learns nothing; told in order, since estimators learn from the results."""

    def __init__(self, space: SearchSpace, founders: NDArray[np.float64]) -> None:
        super().__init__(space, 0)
        self._founders = founders
        self.population = len(founders)

    @property
    def finished(self) -> bool:
        """Whether all founders have been proposed."""
        return self._asked >= len(self._founders)

    def _propose(self, n: int) -> list[Proposal]:
        return [Proposal(founder.copy(), "founder", 0) for founder in self._founders[self._asked : self._asked + n]]

    def _learn(self, candidate: Candidate, evaluation: Evaluation) -> None:
        """Ignore the result; `Founded` keeps it."""
