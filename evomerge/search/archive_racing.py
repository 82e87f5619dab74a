"""Racing for strategies that keep an archive: each candidate by itself, against the members.

Such a strategy learns from each result as it comes and has no generation whose members could race. What matters to it
is whether a candidate gets into the archive. So a candidate is asked in blocks, and after each its other answers are
drawn from what it may still give (`fitness.estimation.bayesian_bootstrap`); if it gets in with a probability below
`error`, it is
stopped. So of the candidates that are stopped, a share of at most `error` would have got in, as far as items not asked
are like those asked: blocks are random for that, and others for each candidate.

A stopped candidate is told with the answers that it has. A search that was stopped asks candidates in flight from their
first item again; with one worker they then meet the archive that they met before, and all goes on exactly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import islice

import numpy as np

from evomerge.search.item_blocks import Runner, in_blocks
from evomerge.strategies.base import Archiving
from evomerge.workers.base import Pool, Request
from fitness.config import RacingConfig
from fitness.estimation.bayesian_bootstrap import posterior_draws
from fitness.estimation.evaluation_plan import EvaluationPlan
from fitness.results import Evaluation

ENTRIES_AT_LIMIT = 5  # so many draws that a candidate at the limit enters in this many of them, ...
FEWEST_DRAWS = 100  # ... and at least these


@dataclass
class _Heat:
    """A candidate, all its items, and the blocks of these that it has not been asked."""

    runner: Runner
    items: tuple[str, ...]
    blocks: list[tuple[str, ...]]


class ArchiveRacingPool:
    """Asks candidates in blocks on another pool's workers until they cannot get into the strategy's archive.

    Parameters
    ----------
    pool
        The workers.
    rules
        Its `error` and `block`.
    plan
        Of the search; judges what a candidate may still answer.
    archive
        The strategy.
    seed
        Decides the order of the items and the draws.
    """

    def __init__(self, pool: Pool, rules: RacingConfig, plan: EvaluationPlan, archive: Archiving, seed: int) -> None:
        self.pool, self.rules, self.plan, self.archive, self.seed = pool, rules, plan, archive, seed
        self._working: dict[int, _Heat] = {}
        self._waiting: list[_Heat] = []  # for a worker to become free

    @property
    def free(self) -> int:
        """How many more candidates may be submitted now."""
        return max(0, self.pool.free - len(self._waiting))

    def submit(self, tag: int, request: Request) -> None:
        """Ask a candidate the first block; a race keeps no answers."""
        blocks = in_blocks(request.items, self.rules.block, self.seed + tag)
        self._waiting.append(_Heat(Runner(tag, request.recipe, True), request.items, blocks))
        self._ask()

    def wait(self) -> list[tuple[int, Evaluation]]:
        """Wait for a block's answers; return the candidates that are stopped or have no block left."""
        results: list[tuple[int, Evaluation]] = []
        for tag, part in self.pool.wait():
            heat = self._working.pop(tag)
            heat.runner.take(part)
            if heat.runner.failed is None and heat.blocks:
                heat.runner.stopped = self._hopeless(heat)
            if heat.runner.failed is not None or heat.runner.stopped or not heat.blocks:
                results.append((tag, heat.runner.result(heat.items)))
            else:
                self._waiting.append(heat)
        self._ask()
        return results

    def close(self) -> None:
        """Let the workers go."""
        self.pool.close()

    def _ask(self) -> None:
        while self._waiting and self.pool.free > 0:
            heat = self._waiting.pop(0)
            self._working[heat.runner.tag] = heat
            assert heat.runner.recipe is not None
            self.pool.submit(heat.runner.tag, Request(heat.runner.recipe, heat.blocks.pop(0)))

    def _hopeless(self, heat: _Heat) -> bool:
        """Tell whether the chance to get in is below the limit; draws end as soon as too many of them do."""
        limit = self.rules.error
        draws = max(FEWEST_DRAWS, math.ceil(ENTRIES_AT_LIMIT / limit))
        rng = np.random.default_rng([self.seed, heat.runner.tag, len(heat.blocks)])
        entered = 0
        for drawn in islice(posterior_draws(heat.runner.result(heat.items), heat.items, rng), draws):
            entered += self.archive.keeps(self.plan.judge(drawn))
            if entered >= limit * draws:
                return False
        return True
