"""The end of a search: which recipe is the result, and how good it is on items that the search has not used.

The best score of a search is biased upward by the selection. So the few best candidates, the strategy's recommendation
and the alternatives (sources, baselines, the search's start) first answer the other search items, the worse ones not
all of them (confirm; see `evomerge.search.sequential_halving`). The best of these is the result (found). It is scored
on the held-out items beside every source, the standard baselines and the start of the search, with intervals and
paired tests. The verdict says which of them to take (see `evomerge.runs.verdict`), and that recipe is `best.yaml`: a
search never returns a loss. Rows that miss a minimum share of the best source's held-out score are not recommended,
nor compared.

With several objectives the result is the finalist with the best weighted sum. Beside it the table has as many members
of the front as there are objectives: of twice as many, spread over it, those that are dominated least on all search
items. Where the front has fewer, those that it alone dominates join it. The number is fixed so that the cost of the
table is known before the search.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from evomerge.runs import held_out
from evomerge.runs.bill import Bill, settled
from evomerge.runs.result import FOUND, ROWS, Contender, Entry, Result, paired_p_value, rows_text, table, verdict_on
from evomerge.runs.run import EventLog
from evomerge.search import rows_on_request, sequential_halving
from evomerge.search.loop import Search, SearchError
from evomerge.search.problem import Problem
from evomerge.search.recorded_scoring import RecordedScorer
from evomerge.strategies.base import Genotype
from evomerge.workers.base import Pool
from fitness.estimation.subset import generator
from fitness.items import is_whole_model
from fitness.objectives import Objectives, means
from fitness.pareto import crowding, crowding_by_front, front, ranks
from fitness.results import Evaluation
from search_spaces.recipes import mergekit_yaml
from search_spaces.recipes.recipe import Recipe

HOPELESS = 1e-3
"""A finalist that is worse than the leader with a p-value below this is asked no further items."""
PairedTest = Callable[[Evaluation, Evaluation, Mapping[str, float]], float]
"""Two evaluations on the same items, and the tasks' weights, to a p-value."""
SPREAD = 2
"""Members of the front that answer all search items, for each one that answers the held-out items."""


class Asked(NamedTuple):
    """The rows of the final table with their scores, the found recipe first, and its score on the search items."""

    rows: list[tuple[Contender, Evaluation]]
    search_score: float


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
    bill
        What the search was expected to ask, for the result; None: not known.
    p_value
        The paired test by which hopeless finalists leave; a rehearsal has a quicker one.
    notify
        Called after every score that is new.
    """

    def __init__(
        self,
        run: EventLog,
        problem: Problem,
        search: Search,
        pool: Pool,
        bill: Bill | None = None,
        p_value: PairedTest = paired_p_value,
        notify: Callable[[], None] = lambda: None,
    ) -> None:
        self.run, self.bill, self._p_value = run, bill, p_value
        self.problem = problem
        self.history = search.history
        self.history.spelt_alike(problem.other_spellings())
        self.plan = search.plan
        self.objectives = search.plan.objectives
        self.strategy = search.strategy
        self.scorer = RecordedScorer(run, search.history, pool, problem.recipe_hash, notify)

    def evaluate(self) -> Result:
        """Confirm the finalists, choose one, score it on the held-out items; write `best.yaml` and `result.json`.

        Raises
        ------
        SearchError
            If no candidate was scored, or a finalist cannot be scored.
        """
        asked = self.ask()
        rows, (found, _), search_score = asked.rows, asked.rows[0], asked.search_score
        verdict = verdict_on(rows, self.problem.suite.weights, self._missed(rows))
        recipes = {entry.name: entry.recipe for entry, _ in rows if isinstance(entry, Entry)}
        taken = recipes[verdict.recommended]
        result = Result(
            held_out=table(rows, self.problem.suite.weights),
            best=self.problem.recipe_hash(taken),
            evaluations=self.history.evaluations,
            item_evaluations=self.history.item_evaluations,
            seconds=self.history.seconds,
            search_score=search_score,
            selection_bias=search_score - self._plain(rows[0][1]).value,
            search_items=self.history.search_items,
            verdict=verdict,
            look=self.history.earlier_looks + 1,
            stages=settled(self.bill, self.history.stages),
        )
        one = self._plain(next(evaluation for entry, evaluation in rows if entry.name == verdict.recommended))
        score = f"held-out score {one.value:.4f} +- {one.standard_error:.4f}"
        if self._scores_whole_models:
            score = f"score {one.value:.4f}"
        origin = "found by evomerge" if verdict.recommended == found.name else verdict.recommended
        self.run.write("best.yaml", mergekit_yaml.dump(taken, f"{origin}, {score}\n{self.run.origin}"))
        self.run.write(ROWS, rows_text(recipes, self.run.origin))
        if not self._scores_whole_models:
            self._write_answers(recipes, [entry for entry, _ in rows if not isinstance(entry, Entry)])
        self.run.write("result.json", result.to_json())
        return result

    @property
    def _scores_whole_models(self) -> bool:
        """Whether a function scores models as wholes: then nothing is held out, and no item has an answer."""
        return is_whole_model(self.problem.held_out_items[0])

    def _write_answers(self, recipes: Mapping[str, Recipe], voted: Sequence[Contender]) -> None:
        """Write the texts of the held-out items, and whose answers the log has."""
        hashes = {name: [self.problem.recipe_hash(recipe)] for name, recipe in recipes.items()}
        hashes |= {entry.name: [self.problem.recipe_hash(one) for one in self._voters()] for entry in voted}
        texts = self.problem.suite.texts(self.problem.held_out_items)
        self.run.write(held_out.FILE, held_out.HeldOut(hashes, texts).to_json())

    def ask(self) -> Asked:
        """Confirm the finalists, choose one, and score the table's rows; raises as `evaluate` does."""
        found, mean, search_score = self._choose()
        voted = self._ensemble()
        searched = [found, *([mean] if mean else []), *self._front(found)]
        others = [*self.problem.alternatives(), *self._soup()]
        return Asked([*self._held_out(searched), *voted, *self._held_out(others)], search_score)

    def _missed(self, rows: Sequence[tuple[Contender, Evaluation]]) -> dict[str, str]:
        """Return what each row misses, by its name: a limit of the space, or a minimum score on the held-out items."""
        limits = {entry.name: self._shortfall(entry) for entry, _ in rows if isinstance(entry, Entry)}
        missed = {name: limit for name, limit in limits.items() if limit is not None}
        asked = {task.task: task.min_share_of_best_source for task in self.problem.suite.entries}
        shares = {task: share for task, share in asked.items() if share is not None}  # the others may score below 0
        if not shares:
            return missed
        scored = {entry.name: means(evaluation) for entry, evaluation in rows}
        sources = [scored[entry.name] for entry, _ in rows if entry.kind == "source"]
        for name, scores in scored.items():
            for task, share in shares.items():
                floor = share * max(source[task].value for source in sources)
                if scores[task].value < floor:
                    missed[name] = f"{scores[task].value:.3f} on {task}, where the minimum is {floor:.3f}"
        return missed

    def _held_out(self, entries: Sequence[Entry]) -> list[tuple[Contender, Evaluation]]:
        items = self.problem.held_out_items
        if self._scores_whole_models:  # in the search or as finalists, most of them
            return [(entry, self._confirm(entry, items)) for entry in entries]
        return [(entry, self.scorer.score("held_out", entry, items)) for entry in entries]

    def _ensemble(self) -> list[tuple[Contender, Evaluation]]:
        """Return the majority vote of the models that are to vote, where one is asked for and there are two or more."""
        voters = self._voters()
        if len(voters) < 2:
            return []
        members = [
            self.scorer.vote(Entry(f"member {number}", "ensemble", recipe), self.problem.held_out_items)
            for number, recipe in enumerate(voters, start=1)
        ]
        return [(Contender(f"ensemble of {len(members)} models", "ensemble"), rows_on_request.vote(members))]

    def _voters(self) -> list[Recipe]:
        """Return the different recipes that are to vote, best first."""
        wanted = self.problem.config.table
        if wanted.ensemble is None:
            return []
        points = self._last_population() if wanted.voters == "last_population" else []
        if not points:
            points = [self.history.asked[identity].candidate.genotype for identity in self.history.ranking()]
        recipes: dict[str, Recipe] = {}
        for point in points:
            if len(recipes) < wanted.ensemble:
                recipe = self.problem.space.decode(point)
                recipes.setdefault(self.problem.recipe_hash(recipe), recipe)
        return list(recipes.values())

    def _last_population(self) -> list[Genotype]:
        """Return the strategy's population at its end, or what was scored of its last generation, best first."""
        own = self.strategy.members()
        if own:
            return list(own)
        asked, ranked = self.history.asked, self.history.ranking()
        last = max((asked[identity].candidate.generation for identity in ranked), default=0)
        return [asked[one].candidate.genotype for one in ranked if asked[one].candidate.generation == last]

    def _soup(self) -> list[Entry]:
        """Return the greedy soup, where it is asked for."""
        problem = self.problem
        if not problem.config.table.greedy_soup:
            return []

        def score(entry: Entry) -> float:
            return self._confirm(entry, problem.search_items).fitness

        config, sources = problem.config, problem.sources()
        models, dtype, vocabulary = config.models, config.out_dtype, config.vocabulary_policy
        soup = rows_on_request.greedy_soup(models, problem.layout, dtype, sources, score, vocabulary=vocabulary)
        return [soup]

    def _choose(self) -> tuple[Entry, Entry | None, float]:
        """Return the found recipe, the strategy's own guess if it has one, and the found one's search score."""
        history, guess = self.history, self.strategy.recommend()
        mean = None if guess is None else Entry(self.strategy.guess, "mean", self.problem.space.decode(guess))
        if guess is None and not history.ranking():
            raise SearchError(f"{self.run.path}: no candidate was scored; see log.txt for the reasons")
        best = [identity for identity in self._ranking() if history.asked[identity].candidate.kind != "founder"]
        best = best[: self.problem.config.fitness.finalists]
        asked = {item for identity in best for item in history.evaluation(identity).items}
        rng = generator(self.problem.config.seed, len(history.asked))
        order = sequential_halving.in_order(self.problem.search_items, asked, rng)
        found, scored = sequential_halving.best(
            self._finalists(best, mean),
            order,
            self._confirm,
            answered=self._has_answered_all,
            clearly_worse=self._clearly_worse,
        )
        return Entry(FOUND, "found", found.recipe), mean, self._plain(scored).value

    def _plain(self, scored: Evaluation) -> Evaluation:
        """Return answers with the score that the table shows: the weighted mean of the tasks, and no constraint."""
        return Objectives(self.problem.suite.weights).judge(scored, means(scored))

    def _ranking(self) -> list[int]:
        """Return ids of the scored candidates, best first, by estimates that all candidates' answers enter."""
        told = self.history.scored()
        judged = self.plan.judge_all([self.history.evaluation(identity) for identity in told])
        return self.history.ranking(dict(zip(told, judged, strict=True)))

    def _finalists(self, candidates: Sequence[int], mean: Entry | None) -> list[Entry]:
        """Return the candidates with these ids, the strategy's guess and all alternatives, each recipe once."""
        space, history = self.problem.space, self.history
        entries = [
            Entry(f"candidate {one}", "found", space.decode(history.asked[one].candidate.genotype))
            for one in candidates
        ]
        entries += [mean] if mean is not None else []
        spelt = {point: entry for entry, point in self.problem.other_spellings().items()}
        alternatives = [entry for entry in self.problem.alternatives() if self._shortfall(entry) is None]
        finalists = {self._hash(entry): entry for entry in alternatives}
        for entry in entries:
            finalists.setdefault(spelt.get(self._hash(entry), self._hash(entry)), entry)
        return list(finalists.values())

    def _shortfall(self, entry: Entry) -> str | None:
        return self.problem.space.shortfall(entry.recipe)

    def _hash(self, entry: Entry) -> str:
        return self.problem.recipe_hash(entry.recipe)

    def _has_answered_all(self, entry: Entry) -> bool:
        """Return whether a finalist was asked every search item before; a resumed run must say the same."""
        return len(self.history.answers(self._hash(entry), confirmed=False)) == len(self.problem.search_items)

    def _clearly_worse(self, one: Evaluation, other: Evaluation) -> bool:
        """Return whether one finalist is so far behind another on the same items that it need not be asked more."""
        if one.fitness >= other.fitness or one.violation != other.violation:
            return False
        return self._p_value(one, other, self.problem.suite.weights) < HOPELESS

    def _confirm(self, entry: Entry, items: Sequence[str]) -> Evaluation:
        answers = self.scorer.confirm(entry, items)
        return self.objectives.judge(answers, means(answers))

    def _front(self, found: Entry) -> list[Entry]:
        """Return members of the front beside the found one, by their first objective; none for one objective."""
        if not self.objectives.apart:
            return []
        history = self.history
        chosen = self._nearest_to_the_front(found)
        recipes = [self.problem.space.decode(history.asked[identity].candidate.genotype) for identity in chosen]
        scored = [
            self._confirm(Entry(f"candidate {identity}", "front", recipe), self.problem.search_items)
            for identity, recipe in zip(chosen, recipes, strict=True)
        ]
        if not scored:
            return []
        points = [one.objectives for one in scored]
        rank = ranks(points, [one.violation for one in scored])
        rows = np.lexsort((-crowding_by_front(points, rank), rank))[: len(points[0])].tolist()
        rows.sort(key=lambda at: points[at], reverse=True)
        return [Entry(f"front {number}", "front", recipes[at]) for number, at in enumerate(rows, start=1)]

    def _nearest_to_the_front(self, found: Entry) -> list[int]:
        """Return candidates as the search saw them, `SPREAD` for each objective: the front, then what it hides."""
        history, taken = self.history, self._hash(found)
        asked = [(identity, history.asked[identity]) for identity in history.ranking()]
        left = [identity for identity, one in asked if one.candidate.kind != "founder" and one.recipe != taken]
        chosen: list[int] = []
        wanted = SPREAD * len(history.evaluation(left[0]).objectives) if left else 0
        while left and len(chosen) < wanted:
            told = [history.evaluation(identity) for identity in left]
            on = front([one.objectives for one in told], [one.violation for one in told])
            members = [identity for identity, one in zip(left, on, strict=True) if one]
            spread = crowding([history.evaluation(identity).objectives for identity in members])
            chosen += [members[at] for at in np.argsort(-spread, kind="stable")[: wanted - len(chosen)].tolist()]
            left = [identity for identity, one in zip(left, on, strict=True) if not one]
        return chosen
