"""Racing in a search: a generation answers the items in blocks, and a candidate that cannot matter is stopped.

A pool around another one. It takes a whole generation before it works. Then all candidates answer the first block of
items, those that are still in the race (`fitness.estimation.racing_rules`) the next one, until the items are used up.
With `halving` and `hyperband` the decision is not a test: after each rung of items the best fraction continues
(K. Jamieson and A. Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter Optimization", AISTATS 2016;
L. Li et al., "Hyperband", JMLR 18, 2018). The fidelity is the number of items; Hyperband's brackets, which begin with
fewer or more of them, are successive generations.

A stopped candidate comes back with its answers so far, whose estimate gives it about the right rank. A resumed search
may have told part of a generation before it was stopped; the answers of that part, from the log, take part in the race,
so that all decisions are the same as without the interruption.

Steps of a gradient search and founders are asked all their items at once: no race may stop them.

Merging is repeated for each block: racing saves time if answering a block takes longer than merging.

Strategies with an archive have no generations; `evomerge.search.racing.archive` is for them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np
import numpy.typing as npt

from evomerge.config.search_file import SearchConfig
from evomerge.runs.history import RunHistory
from evomerge.search.loop import Search
from evomerge.search.racing.archive import ArchiveRacingPool
from evomerge.search.racing.blocks import Blocks, RacingCandidate, in_blocks, in_rungs
from evomerge.strategies.base import Strategy
from evomerge.workers.base import Pool, Request
from fitness.config import RacingConfig
from fitness.estimation.evaluation_plan import EvaluationPlan
from fitness.estimation.racing_rules import Race, Test, common_correlation
from fitness.items import task_of
from fitness.results import Estimate, Evaluation

WHOLE = ("gradient", "founder", "again")
"""Kinds of candidates that no race may stop."""


class RacingPool:
    """Lets the candidates of a generation race on another pool's workers.

    Parameters
    ----------
    pool
        The workers.
    rules
        When a candidate is stopped.
    plan
        The search's; estimates a score from the answers so far.
    history
        The search's; holds the candidates in flight, and what a generation was told before the search was stopped.
    strategy
        The search's; says how large a generation is.
    seed
        Decides the order of the items.
    """

    def __init__(
        self,
        pool: Pool,
        rules: RacingConfig,
        plan: EvaluationPlan,
        history: RunHistory,
        strategy: Strategy,
        seed: int,
    ) -> None:
        self.pool, self.rules, self.plan, self.history = pool, rules, plan, history
        self.strategy, self.seed = strategy, seed
        self._entered: dict[int, tuple[tuple[str, ...], list[RacingCandidate]]] = {}  # by generation
        self._whole: list[tuple[int, Request]] = []  # what no race may stop

    @property
    def free(self) -> int:
        """How many more candidates the next race takes: a generation, and the distribution's mean."""
        entered = sum(len(entered) for _, entered in self._entered.values())
        return max(0, self.strategy.population + 1 - entered - len(self._whole))

    def submit(self, tag: int, request: Request) -> None:
        """Enter a candidate of the history for its generation's race; a race keeps no answers."""
        candidate = self.history.asked[tag].candidate
        if candidate.kind in WHOLE:
            self._whole.append((tag, request))
            return
        _, entered = self._entered.setdefault(candidate.generation, (request.items, []))
        entered.append(RacingCandidate(tag, request.recipe, candidate.kind == "sample"))

    def wait(self) -> list[tuple[int, Evaluation]]:
        """Ask the steps and founders that were submitted, or else run all races."""
        if self._whole:
            return self._take_whole()
        races, self._entered = self._entered, {}
        results: list[tuple[int, Evaluation]] = []
        for generation, (items, entered) in races.items():
            self._race(generation, items, [*self._told(generation, items), *entered])
            results += [(candidate.tag, candidate.result(items)) for candidate in entered]
        return results

    def close(self) -> None:
        """Close the pool of workers."""
        self.pool.close()

    def _take_whole(self) -> list[tuple[int, Evaluation]]:
        waiting, self._whole = self._whole, []
        count, results = len(waiting), list[tuple[int, Evaluation]]()
        while len(results) < count:
            while waiting and self.pool.free > 0:
                self.pool.submit(*waiting.pop(0))
            results += self.pool.wait()
        return results

    def _told(self, generation: int, items: Sequence[str]) -> list[RacingCandidate]:
        """Return the candidates of this generation that were told before the search was stopped."""
        return [
            RacingCandidate(
                told.candidate, None, True, dict(zip(evaluation.items, evaluation.scores.tolist(), strict=True))
            )
            for told in self.history.results(generation)
            if (evaluation := told.evaluation).status != "failed"
            and not told.cached
            and self.history.asked[told.candidate].candidate.kind == "sample"
            and set(evaluation.items) <= set(items)
        ]

    def _race(self, generation: int, items: Sequence[str], candidates: list[RacingCandidate]) -> None:
        candidates = sorted(candidates, key=lambda candidate: candidate.tag)
        blocks = self._blocks(generation, items)
        for look, block in enumerate(blocks, 1):
            self._ask([each for each in candidates if not each.stopped and each.failed is None], block)
            samples = [each for each in candidates if each.sample and each.failed is None]
            if look == len(blocks) or not samples:
                continue
            seen = {item for block in blocks[:look] for item in block}
            for candidate, out in zip(samples, self._stopped(samples, items, seen, len(blocks) - 1), strict=True):
                candidate.stopped |= bool(out)

    def _blocks(self, generation: int, items: Sequence[str]) -> Blocks:
        """Return the blocks of a generation: equal ones, or such that the number of items asked grows by a factor."""
        block, growth, seed = self.rules.block, 1 / self.rules.keep, self.seed + generation
        if not self.rules.halves:
            return in_blocks(items, block, seed)
        rungs = in_rungs(items, block, growth, seed)
        skipped = generation % len(rungs) if self.rules.test == "hyperband" else 0
        return in_rungs(items, block, growth, seed, skipped)

    def _ask(self, candidates: Sequence[RacingCandidate], block: tuple[str, ...]) -> None:
        """Have the candidates answer a block, except those whose answers are in the log."""
        waiting = [candidate for candidate in candidates if candidate.recipe is not None]
        working: dict[int, RacingCandidate] = {}
        while waiting or working:
            while waiting and self.pool.free > 0:
                candidate = waiting.pop(0)
                assert candidate.recipe is not None
                working[candidate.tag] = candidate
                self.pool.submit(candidate.tag, Request(candidate.recipe, block))
            for tag, part in self.pool.wait():
                working.pop(tag).add(part)

    def _stopped(
        self, samples: Sequence[RacingCandidate], items: Sequence[str], seen: set[str], looks: int
    ) -> Sequence[bool]:
        """Return which candidates the answers to the items seen so far stop now.

        Scores do not show minimum scores. So a candidate that keeps these continues unless those that keep them, too,
        stop it: the others rank behind it.
        """
        answers = [candidate.result([item for item in items if item in seen]) for candidate in samples]
        if self.rules.halves:
            return self._halved(samples, answers)
        judged = [self.plan.judge(found) for found in answers]
        keep = max(1, math.floor(self.rules.keep * len(samples)))  # as pycma: λ/2 rounded down
        share = len(seen) / len(items)

        def beaten(members: Sequence[int]) -> list[bool]:
            if len(members) <= keep:
                return [False] * len(members)
            before = [samples[at].stopped for at in members]
            return self._beaten([judged[at] for at in members], before, keep, looks, share)

        stopped = beaten(range(len(samples)))
        allowed = [at for at, found in enumerate(judged) if found.violation == 0]
        if len(allowed) < len(samples):
            for at, out in zip(allowed, beaten(allowed), strict=True):
                stopped[at] &= out
        return stopped

    def _beaten(
        self, judged: Sequence[Evaluation], before: Sequence[bool], keep: int, looks: int, share: float
    ) -> list[bool]:
        """Return which of some candidates are not among the best `keep` of them, by their scores alone."""
        rules = self.rules
        test = "auto" if rules.test == "posterior" else cast("Test", rules.test)
        race = Race(len(judged), keep, rules.error, looks, test, rules.indifference, before)
        if rules.test == "posterior":
            estimates = [Estimate(found.value, found.standard_error) for found in judged]
            return list(race.update_estimates(estimates, common_correlation(_matrix(judged, {})), share))
        return list(race.update(_matrix(judged, self.plan.objectives.weights)))

    def _halved(self, samples: Sequence[RacingCandidate], answers: Sequence[Evaluation]) -> list[bool]:
        """Return which candidates are not among the best of those that are still asked; the earlier one wins a tie."""
        racing = [at for at, candidate in enumerate(samples) if not candidate.stopped]
        ranked = sorted(racing, key=lambda at: -self.plan.judge(answers[at]).fitness)  # stable
        kept = set(ranked[: max(1, math.ceil(self.rules.keep * len(racing)))])
        return [at not in kept for at in range(len(samples))]


def _matrix(answers: Sequence[Evaluation], weights: Mapping[str, float]) -> npt.NDArray[np.float64]:
    """Return float64[C, I]: scores, NaN where not asked; several tasks have the weights of the objective."""
    items = tuple(dict.fromkeys(item for evaluation in answers for item in evaluation.items))
    column = {item: at for at, item in enumerate(items)}
    score_CI = np.full((len(answers), len(items)), np.nan)
    for row, evaluation in enumerate(answers):
        score_CI[row, [column[item] for item in evaluation.items]] = evaluation.scores
    if len(set(weights.values())) > 1:
        mean = sum(weights.values()) / len(weights)
        score_CI *= [weights[task_of(item)] / mean for item in items]
    return score_CI


class StageRacing:
    """Races by generations or against an archive, as the stage of the strategy that runs now has it.

    Parameters
    ----------
    generations, archive
        The two kinds of races, on the same workers.
    strategy
        The search's; a new stage of it begins when all candidates of the one before have been told.
    """

    def __init__(self, generations: RacingPool, archive: ArchiveRacingPool, strategy: Strategy) -> None:
        self.generations, self.archive, self.strategy = generations, archive, strategy
        self._races: RacingPool | ArchiveRacingPool = generations

    @property
    def free(self) -> int:
        """How many more candidates the races of this stage take."""
        return self._now.free

    def submit(self, tag: int, request: Request) -> None:
        """Enter a candidate of the history for a race of its stage."""
        self._races = self._now
        self._races.submit(tag, request)

    def wait(self) -> list[tuple[int, Evaluation]]:
        """Wait for the races that were entered last."""
        return self._races.wait()

    def close(self) -> None:
        """Close the pool of workers."""
        self.generations.close()

    @property
    def _now(self) -> RacingPool | ArchiveRacingPool:
        return self.generations if self.strategy.racing_archive is None else self.archive


def racing(pool: Pool, config: SearchConfig, search: Search) -> Pool:
    """Return the pool that a search uses: the workers themselves, or races on them."""
    rules, strategy, seed = config.fitness.racing, search.strategy, config.seed
    if rules is None:
        return pool
    generations = RacingPool(pool, rules, search.plan, search.history, strategy, seed)

    def is_whole(tag: int) -> bool:
        return search.history.asked[tag].candidate.kind != "sample"

    archive = ArchiveRacingPool(pool, rules, search.plan, _PresentArchive(strategy), seed, is_whole)
    return StageRacing(generations, archive, strategy)


class _PresentArchive:
    """The archive of the stage that a strategy is in."""

    def __init__(self, strategy: Strategy) -> None:
        self._strategy = strategy

    def keeps(self, evaluation: Evaluation) -> bool:
        """Return whether a candidate with this evaluation would enter it now; there must be one."""
        assert self._strategy.racing_archive is not None
        return self._strategy.racing_archive.keeps(evaluation)
