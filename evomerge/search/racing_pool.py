"""Racing in a search: the candidates of a generation are asked in blocks, and who cannot matter is not asked further.

A pool around another one. It takes a whole generation before it works; then all candidates answer the first block of
items, those that still race (`fitness.estimation.racing_rules`) the next one, until the items are used up. A stopped
candidate comes
back with its answers so far, whose estimate gives it about the right rank. A resumed search may have told some of a
generation before it was stopped: their answers, from the log, race along, and so all is decided as it would have been.

Merging is repeated for each block: racing saves time where answering a block takes longer than merging.

Strategies with an archive have no generations to race in: `evomerge.search.archive_racing` is for them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from evomerge.config.search_file import SearchConfig
from evomerge.runs.history import RunHistory
from evomerge.search.archive_racing import ArchiveRacingPool
from evomerge.search.item_blocks import Runner, in_blocks
from evomerge.search.loop import Search
from evomerge.strategies.base import Archiving, Strategy
from evomerge.workers.base import Pool, Request
from fitness.config import RacingConfig
from fitness.estimation.evaluation_plan import EvaluationPlan
from fitness.estimation.racing_rules import Race, common_correlation
from fitness.items import task_of
from fitness.results import Estimate, Evaluation


class RacingPool:
    """Lets the candidates of a generation race on another pool's workers.

    Parameters
    ----------
    pool
        The workers.
    rules
        When a candidate is stopped.
    plan
        Of the search; estimates what the answers so far say.
    history
        Of the search; says what is in flight, and what a generation was told before the search was stopped.
    strategy
        Of the search; says how large a generation is.
    seed
        Decides the order of the items.
    """

    def __init__(
        self, pool: Pool, rules: RacingConfig, plan: EvaluationPlan, history: RunHistory, strategy: Strategy, seed: int
    ) -> None:
        self.pool, self.rules, self.plan, self.history = pool, rules, plan, history
        self.strategy, self.seed = strategy, seed
        self._heats: dict[int, tuple[tuple[str, ...], list[Runner]]] = {}  # by generation

    @property
    def free(self) -> int:
        """How many more candidates the next race takes: a generation, and the distribution's mean."""
        return max(0, self.strategy.population + 1 - sum(len(runners) for _, runners in self._heats.values()))

    def submit(self, tag: int, request: Request) -> None:
        """Enter a candidate of the history for its generation's race; a race keeps no answers."""
        candidate = self.history.asked[tag].candidate
        _, runners = self._heats.setdefault(candidate.generation, (request.items, []))
        runners.append(Runner(tag, request.recipe, candidate.kind == "sample"))

    def wait(self) -> list[tuple[int, Evaluation]]:
        """Hold the races of all that were submitted."""
        heats, self._heats = self._heats, {}
        results: list[tuple[int, Evaluation]] = []
        for generation, (items, entered) in heats.items():
            self._race(generation, items, [*self._told(generation, items), *entered])
            results += [(runner.tag, runner.result(items)) for runner in entered]
        return results

    def close(self) -> None:
        """Let the workers go."""
        self.pool.close()

    def _told(self, generation: int, items: Sequence[str]) -> list[Runner]:
        """Candidates of this generation that were told before the search was stopped."""
        return [
            Runner(told.candidate, None, True, dict(zip(evaluation.items, evaluation.scores.tolist(), strict=True)))
            for told in self.history.results(generation)
            if (evaluation := told.evaluation).status != "failed"
            and not told.cached
            and self.history.asked[told.candidate].candidate.kind == "sample"
            and set(evaluation.items) <= set(items)
        ]

    def _race(self, generation: int, items: Sequence[str], runners: list[Runner]) -> None:
        runners = sorted(runners, key=lambda runner: runner.tag)
        blocks = in_blocks(items, self.rules.block, self.seed + generation)
        for look, block in enumerate(blocks, 1):
            self._ask([runner for runner in runners if not runner.stopped and runner.failed is None], block)
            samples = [runner for runner in runners if runner.sample and runner.failed is None]
            if look == len(blocks) or not samples:
                continue
            seen = {item for block in blocks[:look] for item in block}
            for runner, out in zip(samples, self._stopped(samples, items, seen, len(blocks) - 1), strict=True):
                runner.stopped |= bool(out)

    def _ask(self, runners: Sequence[Runner], block: tuple[str, ...]) -> None:
        """Have them all answer a block, those whose answers the log does not have."""
        waiting = [runner for runner in runners if runner.recipe is not None]
        working: dict[int, Runner] = {}
        while waiting or working:
            while waiting and self.pool.free > 0:
                runner = waiting.pop(0)
                assert runner.recipe is not None
                working[runner.tag] = runner
                self.pool.submit(runner.tag, Request(runner.recipe, block))
            for tag, part in self.pool.wait():
                working.pop(tag).take(part)

    def _stopped(self, samples: Sequence[Runner], items: Sequence[str], seen: set[str], looks: int) -> Sequence[bool]:
        """Look at what is known of the items seen so far: who is to be stopped now."""
        answers = [runner.result([item for item in items if item in seen]) for runner in samples]
        keep = max(1, math.floor(self.rules.keep * len(samples)))  # as pycma: λ/2 rounded down
        test = "auto" if self.rules.test == "posterior" else self.rules.test
        race = Race(len(samples), keep, self.rules.error, looks, test)
        race.active = np.array([not runner.stopped for runner in samples])
        if self.rules.test == "posterior":
            judged = [self.plan.judge(found) for found in answers]
            estimates = [Estimate(found.value, found.standard_error) for found in judged]
            return list(race.update_estimates(estimates, common_correlation(_matrix(answers, {}))))
        return list(race.update(_matrix(answers, self.plan.objectives.weights)))


def _matrix(answers: Sequence[Evaluation], weights: Mapping[str, float]) -> np.ndarray:
    """float64[C, I]: scores, NaN where not asked; with several tasks, each weighs as it does in the objective."""
    items = tuple(dict.fromkeys(item for evaluation in answers for item in evaluation.items))
    column = {item: at for at, item in enumerate(items)}
    score_CI = np.full((len(answers), len(items)), np.nan)
    for row, evaluation in enumerate(answers):
        score_CI[row, [column[item] for item in evaluation.items]] = evaluation.scores
    if len(set(weights.values())) > 1:
        mean = sum(weights.values()) / len(weights)
        score_CI *= [weights[task_of(item)] / mean for item in items]
    return score_CI


def racing(pool: Pool, config: SearchConfig, search: Search) -> Pool:
    """Return the pool that a search uses: the workers themselves, or a race on them."""
    rules = config.fitness.racing
    if rules is None:
        return pool
    if isinstance(search.strategy, Archiving):
        return ArchiveRacingPool(pool, rules, search.plan, search.strategy, config.seed)
    return RacingPool(pool, rules, search.plan, search.history, search.strategy, config.seed)
