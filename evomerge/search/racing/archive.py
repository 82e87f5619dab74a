"""Racing for strategies that keep an archive: each candidate by itself, against the archive's members.

Such a strategy learns from each result as it comes and has no generation whose members could race. What matters is
whether a candidate gets into the archive. So a candidate is asked in blocks, and after each block its other answers are
drawn from their posterior (`fitness.estimation.bayesian_bootstrap`); if it gets in with a probability below `error`, it
is stopped. Of the stopped candidates a share of at most `error` would have got in, if items not asked are like those
asked; for that the blocks are random, and different for each candidate.

A stopped candidate is told with the answers that it has. A resumed search asks candidates in flight from their first
item again; with one worker they then meet the archive that they met before, and the run continues exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

import numpy as np

from evomerge.search.racing.blocks import RacingCandidate, in_blocks
from evomerge.strategies.base import Archiving
from evomerge.workers.base import Pool, Request
from fitness.config import RacingConfig
from fitness.estimation.bayesian_bootstrap import posterior_draws
from fitness.estimation.evaluation_plan import EvaluationPlan
from fitness.results import Evaluation

ENTRIES_AT_LIMIT = 5
"""Draws are as many as it takes for a candidate at the limit to get in this often, ..."""
FEWEST_DRAWS = 100
"""... and at least these."""


@dataclass
class _Asking:
    """A candidate, all its items, and the blocks that it has not been asked yet."""

    candidate: RacingCandidate
    items: tuple[str, ...]
    blocks: list[tuple[str, ...]]


class ArchiveRacingPool:
    """Asks candidates in blocks on another pool's workers until they cannot get into the strategy's archive.

    Parameters
    ----------
    pool
        The workers.
    rules
        `error` and `block` count here.
    plan
        The search's; judges what a candidate may still answer.
    archive
        The strategy, or what knows its archive.
    seed
        Decides the order of the items and the draws.
    whole
        Tells of a candidate's tag whether no race may stop it; it is asked everything at once.
    """

    def __init__(
        self,
        pool: Pool,
        rules: RacingConfig,
        plan: EvaluationPlan,
        archive: Archiving,
        seed: int,
        whole: Callable[[int], bool] = lambda tag: False,
    ) -> None:
        self.pool, self.rules, self.plan, self.archive, self.seed = pool, rules, plan, archive, seed
        self.whole = whole
        self._working: dict[int, _Asking] = {}
        self._waiting: list[_Asking] = []  # until a worker becomes free

    @property
    def free(self) -> int:
        """How many more candidates may be submitted now."""
        return max(0, self.pool.free - len(self._waiting))

    def submit(self, tag: int, request: Request) -> None:
        """Ask a candidate the first block; a race keeps no answers."""
        races = not self.whole(tag)
        blocks = in_blocks(request.items, self.rules.block, self.seed + tag) if races else [tuple(request.items)]
        self._waiting.append(_Asking(RacingCandidate(tag, request.recipe, races), request.items, blocks))
        self._ask()

    def wait(self) -> list[tuple[int, Evaluation]]:
        """Wait for a block's answers; return the candidates that are stopped or have no block left."""
        results: list[tuple[int, Evaluation]] = []
        for tag, part in self.pool.wait():
            asking = self._working.pop(tag)
            asking.candidate.add(part)
            if asking.candidate.failed is None and asking.blocks:
                asking.candidate.stopped = self._hopeless(asking)
            if asking.candidate.failed is not None or asking.candidate.stopped or not asking.blocks:
                results.append((tag, asking.candidate.result(asking.items)))
            else:
                self._waiting.append(asking)
        self._ask()
        return results

    def close(self) -> None:
        """Close the pool of workers."""
        self.pool.close()

    def _ask(self) -> None:
        while self._waiting and self.pool.free > 0:
            asking = self._waiting.pop(0)
            self._working[asking.candidate.tag] = asking
            assert asking.candidate.recipe is not None
            self.pool.submit(asking.candidate.tag, Request(asking.candidate.recipe, asking.blocks.pop(0)))

    def _hopeless(self, asking: _Asking) -> bool:
        """Return whether the chance to get in is below the limit; stop drawing as soon as too many draws get in."""
        limit = self.rules.error
        draws = max(FEWEST_DRAWS, math.ceil(ENTRIES_AT_LIMIT / limit))
        rng = np.random.default_rng([self.seed, asking.candidate.tag, len(asking.blocks)])
        entered = 0
        for drawn in islice(posterior_draws(asking.candidate.result(asking.items), asking.items, rng), draws):
            entered += self.archive.keeps(self.plan.judge(drawn))
            if entered >= limit * draws:
                return False
        return True
