"""The search driver: asks the strategy, has recipes scored, tells the results, and forgets nothing.

Resuming is replay: the strategy is built anew and led through the recorded asks and tells; what it proposes
must equal what is recorded. From there on the run continues exactly as an uninterrupted one.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from shlex import quote

import numpy as np

from evomerge.config.search_file import BudgetConfig
from evomerge.runs.history import Ledger
from evomerge.runs.run import Asked, Run, Told
from evomerge.strategies.base import Candidate, Evaluated, Strategy
from evomerge.workers.base import Pool, Request
from fitness.estimation.evaluation_plan import EvaluationPlan
from fitness.results import Evaluation, no_seconds
from search_spaces.recipes import mergekit_yaml
from search_spaces.recipes.recipe import Recipe
from search_spaces.spaces.space import SearchSpace

log = logging.getLogger("evomerge")

# A library upgrade that only reorders float operations stays below this; another algorithm does not.
REPLAY_TOLERANCE = 1e-9


class SearchError(RuntimeError):
    """A search that cannot go on; the message says why and what to do."""


class Search:
    """One search over one run's event log.

    Parameters
    ----------
    run
        Open for writing; its events are replayed first.
    strategy
        Freshly built; it is led through the recorded events.
    plan
        Which items candidates are asked, and what their answers say; freshly built, it is led through the events.
    """

    def __init__(
        self,
        run: Run,
        space: SearchSpace,
        strategy: Strategy,
        budget: BudgetConfig,
        plan: EvaluationPlan,
    ) -> None:
        self.run = run
        self.space = space
        self.strategy = strategy
        self.budget = budget
        self.plan = plan
        self._notify: Callable[[Ledger], None] = lambda ledger: None
        self.ledger = Ledger()
        self._recipes: dict[int, Recipe] = {}  # decoded recipes of candidates in flight
        self._twins: dict[str, list[int]] = {}  # by hash of a recipe being scored: other candidates with it
        self._held: dict[int, Told] = {}  # recorded, and told to a synchronous strategy when its turn comes
        self._turn = 0
        self._clock = 0.0
        self._replay()
        # The first generation to be judged: one that failed whole in an earlier session has been reported.
        self._generation = self._first_unjudged()

    def search(self, pool: Pool, notify: Callable[[Ledger], None] = lambda ledger: None) -> None:
        """Search until the budget is spent; `notify` is called with the ledger after every tell.

        Raises
        ------
        SearchError
            If every candidate of a generation failed, or every candidate of all.
        LogError
            If the log cannot be written.
        """
        self._notify = notify
        self._clock = time.perf_counter() - self.ledger.elapsed
        if self.ledger.best is not None and not self.spent:  # an earlier session may have been killed before it could
            self._write_best(self.space.decode(self.ledger.asked[self.ledger.best].candidate.genotype))
        for asked in self.ledger.open:  # in flight when an earlier session ended
            self._submit(pool, asked.candidate, self.space.decode(asked.candidate.genotype), asked.recipe)
        while True:
            self._fill(pool)
            if not self._recipes:
                self._stop_if_nothing_succeeded()
                return
            for identity, evaluation in pool.wait():
                self._tell(identity, self.plan.judge(evaluation), cached=False)
                self._settle_twins(pool, self.ledger.asked[identity].recipe)

    @property
    def spent(self) -> bool:
        """Whether the budget allows no further candidate."""
        asked = len(self.ledger.asked)
        hours = self.budget.hours
        return asked >= self.budget.evaluations or (hours is not None and self._elapsed() >= hours * 3600)

    def _fill(self, pool: Pool) -> None:
        """Propose candidates until the workers are busy, the strategy waits, or the budget is spent."""
        while pool.free > 0 and not self.spent:
            candidates = self.strategy.ask(1)
            if not candidates:
                return
            (candidate,) = candidates
            self._stop_if_a_generation_failed(candidate.generation)
            recipe = self.space.decode(candidate.genotype)
            asked = Asked(candidate, recipe.hash)
            self.run.record(asked)
            self.ledger.add(asked)
            self._submit(pool, candidate, recipe, asked.recipe)

    def _submit(self, pool: Pool, candidate: Candidate, recipe: Recipe, recipe_hash: str) -> None:
        """Have a candidate scored, unless an equal recipe has been, or is being."""
        self._recipes[candidate.id] = recipe
        known = self.ledger.by_recipe.get(recipe_hash)
        if known is not None:
            self._tell(candidate.id, replace(known, seconds=no_seconds()), cached=True)
        elif recipe_hash in self._twins:
            self._twins[recipe_hash].append(candidate.id)
        else:
            self._twins[recipe_hash] = []
            pool.submit(candidate.id, Request(recipe, tuple(self.plan.items(candidate.generation))))

    def _settle_twins(self, pool: Pool, recipe_hash: str) -> None:
        """Go on with the candidates whose recipe another one had when they were asked: now it has been scored."""
        for identity in self._twins.pop(recipe_hash):
            self._submit(pool, self.ledger.asked[identity].candidate, self._recipes[identity], recipe_hash)

    def _tell(self, identity: int, evaluation: Evaluation, cached: bool) -> None:
        told = Told(identity, evaluation, cached, self._elapsed())
        self.run.record(told)
        self._take(told)
        recipe = self._recipes.pop(identity)
        if evaluation.status == "failed":
            log.warning("candidate %d failed: %s", identity, evaluation.reason)
        if self.ledger.best == identity:
            self._write_best(recipe)
        self._notify(self.ledger)

    def _write_best(self, recipe: Recipe) -> None:
        identity = self.ledger.best
        assert identity is not None
        evaluation = self.ledger.evaluation(identity)
        score = f"{evaluation.value:.4f} +- {evaluation.standard_error:.4f}"
        log.info("candidate %d is the best so far: %s", identity, score)
        self.run.write("best.yaml", mergekit_yaml.dump(recipe, f"best of {len(self.ledger.told)} candidates: {score}"))

    def _first_unjudged(self) -> int:
        last = max((asked.candidate.generation for asked in self.ledger.asked.values()), default=0)
        results = self.ledger.results(last)
        failed = bool(results) and all(told.evaluation.status == "failed" for told in results)
        return last + 1 if failed else last

    def _stop_if_a_generation_failed(self, new: int) -> None:
        """Look at the generations before `new` that this session has worked on, as far as they are complete."""
        while self._generation < new and not self.ledger.in_flight(self._generation):
            results = self.ledger.results(self._generation)
            if results and all(told.evaluation.status == "failed" for told in results):
                raise self._failed(f"all {len(results)} candidates of generation {self._generation}", results[-1])
            self._generation += 1

    def _stop_if_nothing_succeeded(self) -> None:
        if self.ledger.best is None and self.ledger.told:
            last = self.ledger.told[max(self.ledger.told)]
            raise self._failed(f"all {len(self.ledger.told)} candidates", last)

    def _failed(self, which: str, last: Told) -> SearchError:
        return SearchError(
            f"{which} failed, the last with: {last.evaluation.reason}; "
            f"mend the cause, then `evomerge resume {quote(str(self.run.path))}`"
        )

    def _elapsed(self) -> float:
        return time.perf_counter() - self._clock if self._clock else self.ledger.elapsed

    def _take(self, told: Told) -> None:
        """Let everything that learns know a result, the same whether it is new or replayed.

        A synchronous strategy is told in the order of ids: what it learns does not depend on which worker was quicker.
        """
        self.ledger.add(told)
        if self.strategy.steady_state:
            self._learn(told)
            return
        self._held[told.candidate] = told
        while self._turn in self._held:
            self._learn(self._held.pop(self._turn))
            self._turn += 1

    def _learn(self, told: Told) -> None:
        self.strategy.tell([Evaluated(told.candidate, told.evaluation)])
        if not told.cached:
            self.plan.learn(told.evaluation)

    def _replay(self) -> None:
        for event in self.run.events():
            if isinstance(event, Told):
                self._take(event)
                continue
            if isinstance(event, Asked):
                self._check_replayed(event)
                self.plan.items(event.candidate.generation)
            self.ledger.add(event)

    def _check_replayed(self, event: Asked) -> None:
        recorded = event.candidate
        proposed = next(iter(self.strategy.ask(1)), None)
        if (
            proposed is None
            or (proposed.id, proposed.kind, proposed.generation) != (recorded.id, recorded.kind, recorded.generation)
            or proposed.genotype.shape != recorded.genotype.shape
            or not np.allclose(proposed.genotype, recorded.genotype, rtol=0, atol=REPLAY_TOLERANCE)
        ):
            raise SearchError(
                f"{self.run.path}: the strategy no longer proposes candidate {recorded.id} as recorded, so this run "
                "cannot go on exactly; install the package versions that environment.json names, or start a new run "
                f"with --warm-start {quote(str(self.run.path))}"
            )
