"""The end of a search: which recipe is the result, and how good it is on items that the search has not used.

The best score of a search is biased upward by the selection. So the few best candidates and the strategy's
recommendation first answer the other search items, the worse ones not all of them (confirm; see
`evomerge.search.sequential_halving`). The best of these is the result (found). It is scored on the held-out items
beside every source, the standard baselines and the start of the search, with intervals and paired tests. The verdict
says which of them to take (see `evomerge.runs.verdict`), and that recipe is `best.yaml`: a search never hands over a
loss. Alternatives that miss a minimum share of the best source's score are not compared.

With several objectives the result is the finalist with the best weighted sum. Beside it the table has members of the
front, spread over it, that are not dominated on all search items either.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from evomerge.runs.result import Contender, Entry, Result, table, verdict_on
from evomerge.runs.run import Run
from evomerge.search import ensemble, sequential_halving
from evomerge.search.loop import Search, SearchError
from evomerge.search.problem import Problem
from evomerge.search.recorded_scoring import RecordedScorer
from evomerge.workers.base import Pool
from fitness.estimation.subset import generator
from fitness.objectives import Objectives, means
from fitness.pareto import crowding, ranks
from fitness.results import Evaluation
from search_spaces.recipes import mergekit_yaml

FRONT = 8
"""Members of the front of several objectives that are scored on all search items."""


class FinalEvaluation:
    """Scores the finalists of a finished search; each score is recorded at once and never repeated.

    Parameters
    ----------
    run
        Open for writing.
    problem
        What was searched.
    search
        Finished.
    pool
        Scores the recipes.
    """

    def __init__(self, run: Run, problem: Problem, search: Search, pool: Pool) -> None:
        self.run = run
        self.problem = problem
        self.history = search.history
        self.objectives = search.plan.objectives
        self.strategy = search.strategy
        self.scorer = RecordedScorer(run, search.history, pool, problem.recipe_hash)

    def evaluate(self) -> Result:
        """Confirm the finalists, choose one, score it on the held-out items; write `best.yaml` and `result.json`.

        Raises
        ------
        SearchError
            If no candidate was scored, or a finalist cannot be scored.
        """
        found, mean, search_score = self._choose()
        voted = self._ensemble()
        searched = [found, *([mean] if mean else []), *self._front()]
        alternatives = self.problem.alternatives()
        scored = [*self._held_out(searched), *voted, *self._held_out(alternatives)]
        weights = self.problem.suite.weights
        held_out = scored[0][1].fitness
        verdict = verdict_on([one for one in scored if one is scored[0] or self._keeps_minimums(one[1])], weights)
        taken = next((entry for entry in alternatives if entry.name == verdict.recommended), found)
        result = Result(
            held_out=table(scored, weights),
            best=self.problem.recipe_hash(taken.recipe),
            evaluations=len(self.history.told),
            item_evaluations=self.history.item_evaluations,
            seconds=self.history.seconds,
            search_score=search_score,
            selection_bias=search_score - held_out,
            search_items=self.history.search_items,
            verdict=verdict,
            look=self.history.earlier_looks + 1,
        )
        evaluation = next(evaluation for entry, evaluation in scored if entry.name == taken.name)
        score = f"held-out score {evaluation.fitness:.4f} +- {evaluation.standard_error:.4f}"
        origin = "found by evomerge" if taken is found else f"{taken.name}, better than what evomerge found"
        self.run.write("best.yaml", mergekit_yaml.dump(taken.recipe, f"{origin}, {score}\n{self.run.origin}"))
        self.run.write("result.json", result.to_json())
        return result

    def _keeps_minimums(self, evaluation: Evaluation) -> bool:
        """Return whether held-out scores keep each task's minimum share of the best source's score."""
        return self.objectives.judge(evaluation, means(evaluation)).violation == 0

    def _held_out(self, entries: Sequence[Entry]) -> list[tuple[Contender, Evaluation]]:
        return [(entry, self.scorer.score("held_out", entry, self.problem.held_out_items)) for entry in entries]

    def _ensemble(self) -> list[tuple[Contender, Evaluation]]:
        """Return the majority vote of the best candidates, where one is asked for and there are two or more."""
        best = self.history.ranking()[: self.problem.config.strategy.ensemble_size]
        if len(best) < 2:
            return []
        recipes = [self.problem.space.decode(self.history.asked[identity].candidate.genotype) for identity in best]
        members = [
            self.scorer.vote(Entry(f"candidate {identity}", "ensemble", recipe), self.problem.held_out_items)
            for identity, recipe in zip(best, recipes, strict=True)
        ]
        return [(Contender(f"ensemble of {len(members)} models", "ensemble"), ensemble.vote(members))]

    def _choose(self) -> tuple[Entry, Entry | None, float]:
        """Return the found recipe, the strategy's own guess if it has one, and the found one's search score."""
        space, history = self.problem.space, self.history
        candidates = history.ranking()[: self.problem.config.fitness.finalists]
        guess = self.strategy.recommend()
        if not candidates and guess is None:
            raise SearchError(f"{self.run.path}: no candidate was scored; see log.txt for the reasons")
        recipes = [space.decode(history.asked[identity].candidate.genotype) for identity in candidates]
        mean = Entry(self.strategy.guess, "mean", space.decode(guess)) if guess is not None else None
        if mean is not None:
            recipes.append(mean.recipe)
        entries = [Entry("found", "found", recipe) for recipe in {each.hash: each for each in recipes}.values()]
        asked = {item for identity in candidates for item in history.evaluation(identity).items}
        rng = generator(self.problem.config.seed, len(history.asked))
        order = sequential_halving.in_order(self.problem.search_items, asked, rng)
        halve = self.problem.asks_few  # else their scores on all items are known
        found, scored = sequential_halving.best(entries, order, self._confirm, halve=halve)
        return found, mean, Objectives(self.problem.suite.weights).judge(scored, means(scored)).value

    def _confirm(self, entry: Entry, items: Sequence[str]) -> Evaluation:
        answers = self.scorer.confirm(entry, items)
        return self.objectives.judge(answers, means(answers))

    def _front(self) -> list[Entry]:
        """Return members of the front on the search items, by their first objective; none for one objective."""
        if not self.objectives.apart:
            return []
        history = self.history
        seen = history.front()
        spread = crowding([history.evaluation(identity).objectives for identity in seen])
        chosen = [seen[at] for at in sorted(np.argsort(-spread, kind="stable")[:FRONT].tolist())]
        recipes = [self.problem.space.decode(history.asked[identity].candidate.genotype) for identity in chosen]
        scored = [
            self._confirm(Entry(f"candidate {identity}", "front", recipe), self.problem.search_items)
            for identity, recipe in zip(chosen, recipes, strict=True)
        ]
        rank = ranks([one.objectives for one in scored], [one.violation for one in scored])
        left = [(one.objectives, recipe) for one, recipe, on in zip(scored, recipes, rank == 0, strict=True) if on]
        left.sort(key=lambda pair: pair[0], reverse=True)
        return [Entry(f"front {number}", "front", recipe) for number, (_, recipe) in enumerate(left, start=1)]
