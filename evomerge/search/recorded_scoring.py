"""Scoring recipes beside the candidates: each recipe once, recorded at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter
from shlex import quote

import numpy as np

from evomerge.runs.history import RunHistory
from evomerge.runs.result import Entry
from evomerge.runs.run import OF_HELD_OUT_ITEMS, EventLog, Purpose, ReferenceScore
from evomerge.search.loop import SearchError
from evomerge.workers.base import Pool, Request
from fitness.results import Evaluation
from search_spaces.recipes.recipe import Recipe


class RecordedScorer:
    """Scores sources, finalists and baselines on fixed items, or takes the scores that the run has recorded.

    Parameters
    ----------
    run
        Open for writing.
    history
        What the run's events add up to.
    pool
        Scores the recipes, one at a time.
    recipe_hash
        Hash of a recipe, as in the run's events.
    notify
        Called after every score that is new.
    """

    def __init__(
        self,
        run: EventLog,
        history: RunHistory,
        pool: Pool,
        recipe_hash: Callable[[Recipe], str] = attrgetter("hash"),
        notify: Callable[[], None] = lambda: None,
    ) -> None:
        self.run = run
        self.history = history
        self.pool = pool
        self._hash = recipe_hash
        self._notify = notify

    def score(self, purpose: Purpose, entry: Entry, items: Sequence[str]) -> Evaluation:
        """Return the recipe's mean score on `items`, with its per-item scores; for finalists there is `confirm`.

        Raises
        ------
        SearchError
            If it cannot be built or scored.
        """
        asked, recipe = tuple(items), self._hash(entry.recipe)
        recorded = [self.history.reference_scores.get((each, recipe)) for each in (purpose, "vote")]
        if purpose not in OF_HELD_OUT_ITEMS:
            recorded.append(self.history.by_recipe.get(recipe))  # a candidate that was asked the very same items
        for known in recorded:
            if known is not None and known.items == asked:
                return known
        return self._new(purpose, entry, asked)

    def confirm(self, entry: Entry, items: Sequence[str]) -> Evaluation:
        """Return the recipe's answers to search items, not judged; asks only for those that it has not given.

        Raises
        ------
        SearchError
            If it cannot be built or scored.
        """
        asked = tuple(items)
        known = self.history.answers(self._hash(entry.recipe))
        missing = tuple(item for item in asked if item not in known)
        if missing:
            new = self._new("confirm", entry, missing)
            known |= zip(new.items, new.scores.tolist(), strict=True)
        return Evaluation("ok", items=asked, scores=np.array([known[item] for item in asked], np.float32))

    def vote(self, entry: Entry, items: Sequence[str]) -> Evaluation:
        """Return an ensemble member's scores on held-out items with its answers; raises as `score` does."""
        asked = tuple(items)
        known = self.history.reference_scores.get(("vote", self._hash(entry.recipe)))
        return known if known is not None and known.items == asked else self._new("vote", entry, asked)

    def _new(self, purpose: Purpose, entry: Entry, items: tuple[str, ...]) -> Evaluation:
        final = purpose in OF_HELD_OUT_ITEMS  # asked of unquantised models, and for the answers' texts
        self.pool.submit(0, Request(entry.recipe, items, want_answers=final, unquantized=final))
        while not (scored := self.pool.wait()):
            pass  # a worker became free
        ((_, evaluation),) = scored
        if evaluation.status != "ok":
            raise SearchError(
                f"scoring {entry.name} failed: {evaluation.reason}; fix the cause, "
                f"then `evomerge resume {quote(str(self.run.path))}`"
            )
        event = ReferenceScore(purpose, self._hash(entry.recipe), evaluation)
        self.run.record(event)
        self.history.add(event)
        self._notify()
        return evaluation
