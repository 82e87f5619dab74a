"""The search loop: asks the strategy, has recipes scored, tells the results, and records every event.

Resuming is replay: the strategy is built again and is led through the recorded asks and tells; what it proposes must
equal what is recorded. From there on the run continues exactly as an uninterrupted one.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from operator import attrgetter
from shlex import quote

import numpy as np

from evomerge.config.search_file import BudgetConfig
from evomerge.files.messages import counted
from evomerge.runs.history import RunHistory
from evomerge.runs.run import Asked, EventLog, Told
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

Notify = Callable[[RunHistory, Told], None]
"""Takes the history and what was told last, after every evaluation."""


class SearchError(RuntimeError):
    """A search that cannot continue; the message says why and what to do."""


class Search:
    """One search over one run's event log.

    Parameters
    ----------
    run
        Open for writing; its events are replayed first.
    space
        Decodes genotypes.
    strategy
        Newly built; it is led through the recorded events.
    budget
        When the search ends.
    plan
        Which items candidates are asked, and what their answers say; newly built, it is led through the events.
    step_items
        Which items a step of a gradient search is asked, by its generation; None: there are no steps.
    notify
        Called after every evaluation that is told, not for replayed ones.
    spellings
        Hashes of recipes that give the same model: that of an alternative to that of a founder.
    founder_items
        Which items the founders are asked, by their generation; None: as other candidates.
    recipe_hash
        Hash of a recipe; equal ones are scored once.
    want_answers
        Whether candidates give their answers as well as their scores.

    Attributes
    ----------
    history
        What the run's events add up to.

    Raises
    ------
    SearchError
        If the strategy does not propose what is recorded.
    """

    def __init__(
        self,
        run: EventLog,
        space: SearchSpace,
        strategy: Strategy,
        budget: BudgetConfig,
        plan: EvaluationPlan,
        notify: Notify | None = None,
        step_items: Callable[[int], tuple[str, ...]] | None = None,
        spellings: Mapping[str, str] | None = None,
        founder_items: Callable[[int], tuple[str, ...]] | None = None,
        recipe_hash: Callable[[Recipe], str] = attrgetter("hash"),
        want_answers: bool = False,
    ) -> None:
        self.run = run
        self.space = space
        self.strategy = strategy
        self.budget = budget
        self.plan = plan
        self.history = RunHistory()
        self.history.spelt_alike(spellings or {})
        self._notify = notify
        self._step_items, self._founder_items = step_items, founder_items
        self._recipe_hash, self._want_answers = recipe_hash, want_answers
        self._recipes: dict[int, Recipe] = {}  # decoded recipes of candidates in flight
        self._duplicates_in_flight: dict[str, list[int]] = {}  # recipe being scored -> other candidates with it
        self._held: dict[int, Told] = {}  # recorded, and told to a synchronous strategy when its turn comes
        self._turn = 0
        self._replay()
        self._started: float | None = None  # when this session's search began; None before
        self._elapsed_before = self.history.elapsed
        # The first generation to be judged: one that failed whole in an earlier session has been reported.
        self._generation = self._first_unjudged()

    def search(self, pool: Pool) -> None:
        """Search until the budget is spent.

        Raises
        ------
        SearchError
            If every candidate of a generation failed, or every candidate of all.
        LogError
            If the log cannot be written.
        """
        self._started = time.perf_counter()
        if self.history.best is not None and not self.spent:  # an earlier session may have been killed before it could
            self._write_best(self.space.decode(self.history.asked[self.history.best].candidate.genotype))
        for asked in self.history.open:  # in flight when an earlier session ended
            self._submit(pool, asked.candidate, self.space.decode(asked.candidate.genotype), asked.recipe)
        while True:
            self._fill(pool)
            if not self._recipes:
                self._stop_if_nothing_succeeded()
                return
            for identity, evaluation in pool.wait():
                self._tell(identity, self.plan.judge(self._with_earlier(identity, evaluation)), cached=False)
                self._submit_duplicates(pool, self.history.asked[identity].recipe)

    @property
    def spent(self) -> bool:
        """Whether the budget allows no further candidate."""
        asked = len(self.history.asked) - self.history.extra
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
            asked = Asked(candidate, self._recipe_hash(recipe))
            self.run.record(asked)
            self.history.add(asked)
            self._submit(pool, candidate, recipe, asked.recipe)

    def _submit(self, pool: Pool, candidate: Candidate, recipe: Recipe, recipe_hash: str) -> None:
        """Have a candidate scored, unless an equal recipe has been, or is being."""
        self._recipes[candidate.id] = recipe
        is_step = candidate.kind == "gradient"  # its derivatives are wanted, which a score does not give
        known = None if is_step else self._known(candidate, recipe_hash)
        items = self._items(candidate)
        if known is not None and candidate.kind == "again":
            items = tuple(item for item in items if item not in set(known.items))
            known = None if items else known
        if known is not None:
            self._tell(candidate.id, replace(known, seconds=no_seconds()), cached=True)
        elif recipe_hash in self._duplicates_in_flight:
            self._duplicates_in_flight[recipe_hash].append(candidate.id)
        else:
            self._duplicates_in_flight[recipe_hash] = []
            genotype = tuple(candidate.genotype.tolist()) if is_step else None
            wanted = self._want_answers and not is_step
            pool.submit(candidate.id, Request(recipe, items, want_answers=wanted, gradient_at=genotype))

    def _known(self, candidate: Candidate, recipe_hash: str) -> Evaluation | None:
        """Return the score of an equal recipe, or what a founder's answers as a source say; None: there is none."""
        if candidate.kind != "founder" or recipe_hash in self.history.by_recipe or self._want_answers:
            return self.history.by_recipe.get(recipe_hash)
        answers, items = self.history.answers(recipe_hash), self._items(candidate)
        if not all(item in answers for item in items):
            return None
        scores = np.array([answers[item] for item in items], np.float32)
        return self.plan.judge(Evaluation("ok", items=items, scores=scores))

    def _with_earlier(self, identity: int, evaluation: Evaluation) -> Evaluation:
        """Return a candidate's evaluation, together with what it has answered before if it was asked again."""
        asked = self.history.asked[identity]
        earlier = self.history.by_recipe.get(asked.recipe) if asked.candidate.kind == "again" else None
        if earlier is None or evaluation.status != "ok":
            return evaluation
        return replace(earlier.with_more(evaluation), seconds=evaluation.seconds)

    def _items(self, candidate: Candidate) -> tuple[str, ...]:
        chosen = {"gradient": self._step_items, "founder": self._founder_items}.get(candidate.kind)
        choose = chosen or self.plan.items
        return tuple(choose(candidate.generation))

    def _submit_duplicates(self, pool: Pool, recipe_hash: str) -> None:
        """Continue with the candidates whose recipe was in flight when they were asked; it has been scored now."""
        for identity in self._duplicates_in_flight.pop(recipe_hash):
            self._submit(pool, self.history.asked[identity].candidate, self._recipes[identity], recipe_hash)

    def _tell(self, identity: int, evaluation: Evaluation, cached: bool) -> None:
        told = Told(identity, evaluation, cached, self._elapsed())
        self.run.record(told)
        self._take(told)
        recipe = self._recipes.pop(identity)
        if evaluation.status == "failed":
            log.warning("candidate %d failed: %s", identity, evaluation.reason)
        if self.history.best == identity:
            self._write_best(recipe)
        if self._notify is not None:
            self._notify(self.history, told)

    def _write_best(self, recipe: Recipe) -> None:
        identity = self.history.best
        assert identity is not None
        evaluation = self.history.evaluation(identity)
        score = f"{evaluation.value:.4f} +- {evaluation.standard_error:.4f}"
        log.info("candidate %d is the best so far: %s", identity, score)
        header = f"best of {counted(len(self.history.told), 'candidate')}: {score}\n{self.run.origin}"
        self.run.write("best.yaml", mergekit_yaml.dump(recipe, header))

    def _first_unjudged(self) -> int:
        last = max((asked.candidate.generation for asked in self.history.asked.values()), default=0)
        return last + 1 if _all_failed(self.history.results(last)) else last

    def _stop_if_a_generation_failed(self, new: int) -> None:
        """Judge the generations before `new` that this session has worked on, if they are complete."""
        while self._generation < new and not self.history.in_flight(self._generation):
            results = self.history.results(self._generation)
            if _all_failed(results) and not self._are_steps(results):
                raise self._failed(f"all {len(results)} candidates of generation {self._generation}", results[-1])
            self._generation += 1

    def _are_steps(self, results: Sequence[Told]) -> bool:
        """Return whether these are steps of a gradient search: the strategy decides what follows failed ones."""
        return all(self.history.asked[told.candidate].candidate.kind == "gradient" for told in results)

    def _stop_if_nothing_succeeded(self) -> None:
        if self.history.told and self.history.failed == len(self.history.told):
            last = self.history.told[max(self.history.told)]
            raise self._failed(f"all {len(self.history.told)} candidates", last)

    def _failed(self, which: str, last: Told) -> SearchError:
        return SearchError(
            f"{which} failed, the last with: {last.evaluation.reason}; "
            f"fix the cause, then `evomerge resume {quote(str(self.run.path))}`"
        )

    def _elapsed(self) -> float:
        """Return the seconds of searching, summed over all sessions."""
        session = 0.0 if self._started is None else time.perf_counter() - self._started
        return self._elapsed_before + session

    def _take(self, told: Told) -> None:
        """Give a result to everything that learns, in the same way whether it is new or replayed.

        A synchronous strategy is told in the order of ids: what it learns does not depend on which worker was faster.
        """
        self.history.add(told)
        if self.strategy.steady_state:
            self._turn = max(self._turn, told.candidate + 1)  # for a stage after it that is told in order
            self._learn(told)
            return
        self._held[told.candidate] = told
        while self._turn in self._held:
            self._learn(self._held.pop(self._turn))
            self._turn += 1

    def _learn(self, told: Told) -> None:
        self.strategy.tell([Evaluated(told.candidate, told.evaluation)])
        if not told.cached and self.history.asked[told.candidate].candidate.kind != "again":
            self.plan.learn(told.evaluation)

    def _replay(self) -> None:
        for event in self.run.events():
            if isinstance(event, Told):
                self._take(event)
                continue
            if isinstance(event, Asked):
                self._check_replayed(event)
                self._items(event.candidate)
            self.history.add(event)

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
                "cannot continue exactly; install the package versions that environment.json names, or start a new run "
                f"with --warm-start {quote(str(self.run.path))}"
            )


def _all_failed(results: Sequence[Told]) -> bool:
    return bool(results) and all(told.evaluation.status == "failed" for told in results)
