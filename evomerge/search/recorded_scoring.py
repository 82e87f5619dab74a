"""Scoring recipes beside the search: each once, recorded at once."""

from __future__ import annotations

from collections.abc import Sequence
from shlex import quote

import numpy as np

from evomerge.runs.history import Ledger
from evomerge.runs.result import Entry
from evomerge.runs.run import Final, Run, Stage
from evomerge.search.loop import SearchError
from evomerge.workers.base import Pool, Request
from fitness.results import Evaluation


class Bench:
    """Scores experts, finalists and baselines on fixed items, or takes the scores that the run has of them."""

    def __init__(self, run: Run, ledger: Ledger, pool: Pool) -> None:
        self.run = run
        self.ledger = ledger
        self.pool = pool

    def score(self, stage: Stage, entry: Entry, items: Sequence[str]) -> Evaluation:
        """Return the recipe's mean score on `items`, with its per-item scores; finalists have `confirm`.

        Raises
        ------
        SearchError
            If it cannot be built or scored.
        """
        asked = tuple(items)
        for known in (
            self.ledger.finals.get((stage, entry.recipe.hash)),
            self.ledger.finals.get(("vote", entry.recipe.hash)),
            self.ledger.by_recipe.get(entry.recipe.hash),  # the search itself, where it asked the very same items
        ):
            if known is not None and known.items == asked:
                return known
        return self._new(stage, entry, asked)

    def confirm(self, entry: Entry, items: Sequence[str]) -> Evaluation:
        """Return the recipe's answers to search items, not judged; only those that it never gave are asked for.

        Raises
        ------
        SearchError
            If it cannot be built or scored.
        """
        asked = tuple(items)
        known = self.ledger.answers(entry.recipe.hash)
        missing = tuple(item for item in asked if item not in known)
        if missing:
            new = self._new("confirm", entry, missing)
            known |= zip(new.items, new.scores.tolist(), strict=True)
        return Evaluation("ok", items=asked, scores=np.array([known[item] for item in asked], np.float32))

    def vote(self, entry: Entry, items: Sequence[str]) -> Evaluation:
        """Return a voter's scores on held-out items with what it answered; raises as `score` does."""
        asked = tuple(items)
        known = self.ledger.finals.get(("vote", entry.recipe.hash))
        return known if known is not None and known.items == asked else self._new("vote", entry, asked)

    def _new(self, stage: Stage, entry: Entry, items: tuple[str, ...]) -> Evaluation:
        self.pool.submit(0, Request(entry.recipe, items, want_answers=stage == "vote"))
        while not (scored := self.pool.wait()):
            pass  # a worker became free
        ((_, evaluation),) = scored
        if evaluation.status != "ok":
            raise SearchError(
                f"scoring {entry.name} failed: {evaluation.reason}; mend the cause, "
                f"then `evomerge resume {quote(str(self.run.path))}`"
            )
        event = Final(stage, entry.recipe.hash, evaluation)
        self.run.record(event)
        self.ledger.add(event)
        return evaluation
