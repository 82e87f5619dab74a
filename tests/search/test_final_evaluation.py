"""The choice of the result: who its finalists are, and which items they are asked."""

from dataclasses import replace

import numpy as np
import pytest

from evomerge.config.load import load
from evomerge.runs.held_out import HeldOut
from evomerge.runs.history import RunHistory
from evomerge.runs.run import Run
from evomerge.search.final_evaluation import FinalEvaluation
from evomerge.search.loop import Search
from evomerge.search.problem import Problem
from evomerge.search.recorded_scoring import RecordedScorer
from evomerge.search.sequential_halving import rounds
from evomerge.testing.pools import ScriptedPool, answered
from evomerge.workers.base import Request
from fitness.items import positions_by_task, task_of
from fitness.objectives import means
from fitness.pareto import ranks
from tests.cli.test_every_strategy import write


class RandomAnswers(ScriptedPool):
    """A pool whose recipes answer each item at random, but always in the same way; some are always right."""

    def __init__(self, fractions):
        super().__init__(lambda tag, request: answered(request, [self.score(request.recipe, i) for i in request.items]))
        self.fractions, self.perfect = fractions, set()
        self.numbers = {}  # of recipes in the order of their first answer: their hashes depend on the models' paths

    def score(self, recipe, item):
        if recipe.hash in self.perfect:
            return 1.0
        number = self.numbers.setdefault(recipe.hash, len(self.numbers))
        value = float(np.random.default_rng([number, *item.encode()]).random())
        return value if self.fractions else float(value < 0.5)

    def task_means(self, recipe, items):
        """Return the mean score of each task, in the order of the tasks."""
        places = positions_by_task(items)
        return [np.mean([self.score(recipe, items[at]) for at in places[task]]) for task in sorted(places)]


@pytest.fixture
def finish(tmp_path):
    """Search with random answers; return what is needed to choose the result."""
    runs = []

    def finish(strategy, *overrides, fractions=False):
        problem = Problem(load(write(tmp_path, strategy), overrides))
        run, pool = Run.create(tmp_path / "run", "seed: 0\n", {}), RandomAnswers(fractions)
        runs.append(run)
        plan = problem.evaluation_plan(RecordedScorer(run, RunHistory(), pool))
        search = Search(run, problem.space, problem.strategy(), problem.config.budget, plan)
        search.search(pool)
        pool.asked.clear()
        return problem, search, pool, FinalEvaluation(run, problem, search, pool)

    yield finish
    for run in runs:
        run.close()


def test_finalists_are_asked_other_items_first_than_those_that_chose_them(finish):
    problem, search, pool, final = finish({"kind": "random"})
    asked = search.history.asked
    finalists = [one for one in search.history.ranking() if asked[one].candidate.kind != "founder"]
    chosen_by = {item for identity in finalists for item in search.history.evaluation(identity).items}
    entries = final._finalists(finalists, None)
    recipes = {problem.space.decode(asked[one].candidate.genotype).hash for one in finalists}
    final.evaluate()
    places = positions_by_task(problem.search_items)
    unknown = [one for one in entries if len(search.history.answers(one.recipe.hash)) < len(problem.search_items)]
    share = rounds(len(unknown) + 1)[0][1]
    first_round = [request.items for _, request in pool.asked[: len(entries)] if request.recipe.hash in recipes]
    assert len(first_round) == len(finalists)
    assert chosen_by and chosen_by < set(problem.search_items)
    for items in first_round:
        assert not chosen_by & set(items)
        assert len(items) == sum(round(share * len(places[task])) for task in places)


def test_after_a_search_on_all_items_the_best_on_all_items_is_found(finish):
    problem, search, pool, final = finish({"kind": "random"}, "fitness.subset.items=all", "budget.evaluations=16")
    asked = {founder.entry.recipe.hash: founder.recipe for founder in problem.founders}
    recipes = [entry.recipe for entry in final._finalists(search.history.ranking(), None)]

    def score(recipe):
        return np.mean(pool.task_means(asked.get(recipe.hash, recipe), problem.search_items))

    best = max(recipes, key=score)
    found, _, value = final._choose()
    assert found.recipe.hash == best.hash
    assert value == pytest.approx(score(best))
    assert not pool.asked  # all answers are known, those of sources and baselines as founders


def test_a_finalist_is_given_up_by_its_score_only_where_both_miss_the_bounds_alike(finish):
    problem, _, _, final = finish({"kind": "random"})
    request = Request(problem.space.decode(problem.space.start), tuple(problem.search_items))

    def judged(share, violation):
        answers = answered(request, [float(at < share * len(request.items)) for at in range(len(request.items))])
        return replace(final.objectives.judge(answers, means(answers)), violation=float(violation))

    assert final._clearly_worse(judged(0.1, "0"), judged(0.9, "0"))  # two zeros, not one
    assert not final._clearly_worse(judged(0.9, "0"), judged(0.1, "0"))
    assert not final._clearly_worse(judged(0.49, "0"), judged(0.5, "0"))
    assert not final._clearly_worse(judged(0.1, "0.2"), judged(0.9, "0"))


def test_the_strategys_own_guess_is_a_finalist(finish):
    problem, search, pool, final = finish({"kind": "cma_es", "population": 4, "score_mean_every": 100})
    guess = problem.space.decode(search.strategy.recommend()).hash
    assert guess not in search.history.by_recipe
    pool.perfect.add(guess)
    assert final.evaluate().best == guess
    written = (final.run.path / "best.yaml").read_text()
    assert written.startswith("# found by evomerge, held-out score 1.0000 +- ")


def test_files_name_the_source_that_is_recommended_and_whose_answers_are_known(finish, monkeypatch):
    problem, _, pool, final = finish({"kind": "random"})
    (source,) = (entry for entry in problem.sources() if entry.name == "base")
    own, at_random, held_out = source.recipe.hash, pool.score, set(problem.held_out_items)
    monkeypatch.setattr(
        pool, "score", lambda recipe, item: item in held_out if recipe.hash == own else at_random(recipe, item)
    )
    result = final.evaluate()
    assert result.verdict.recommended == "base"
    assert (final.run.path / "best.yaml").read_text().startswith("# base, held-out score 1.0000 +- ")
    written = HeldOut.read(final.run.path).rows
    assert written["base"] == [problem.recipe_hash(source.recipe)]
    assert {name: len(hashes) for name, hashes in written.items()} == {row.name: 1 for row in result.held_out}


def test_without_a_population_the_last_generation_votes(finish):
    problem, search, _, final = finish(
        {"kind": "random", "population": 4}, "table={ensemble: 3, voters: last_population}", "budget.evaluations=11"
    )
    asked = [one.candidate for one in search.history.asked.values()]
    last = {
        problem.recipe_hash(problem.space.decode(one.genotype))
        for one in asked
        if one.generation == max(other.generation for other in asked)
    }
    assert 3 <= len(last) < len(asked)
    assert {problem.recipe_hash(recipe) for recipe in final._voters()} <= last


def test_a_row_misses_what_falls_below_a_share_of_the_best_source(finish):
    problem, _, pool, final = finish({"kind": "random"}, "fitness.tasks.0.min_share_of_best_source=1.0")
    pool.perfect.add(problem.sources()[0].recipe.hash)
    task = problem.suite.entries[0].task
    rows = final.ask().rows
    mean_of = {entry.name: means(evaluation)[task].value for entry, evaluation in rows}
    floor = max(mean_of[entry.name] for entry, _ in rows if entry.kind == "source")
    missed = final._missed(rows)
    assert missed.keys() == {name for name, value in mean_of.items() if value < floor}
    assert 0 < len(missed) < len(rows)
    others = np.array([task_of(item) != task for item in problem.held_out_items])
    assert others.any()  # tasks without a minimum may have any scores
    lowered = [(entry, replace(one, scores=one.scores - np.float32(5) * others)) for entry, one in rows]
    assert final._missed(lowered) == missed


def test_rows_of_the_front_are_as_many_as_objectives_and_dominated_least(finish, monkeypatch):
    """Candidates with fractional scores, whose order on few items is not that on all."""
    several = {"kind": "nsga2", "population": 4}
    problem, _, pool, final = finish(several, "budget.evaluations=40", "seed=1", fractions=True)
    found, _, _ = final._choose()
    confirm, asked = final._confirm, []
    monkeypatch.setattr(final, "_confirm", lambda entry, items: asked.append(entry) or confirm(entry, items))
    rows = {row.recipe.hash: row for row in final._front(found)}
    assert (len(rows), len(asked)) == (2, 4)
    assert found.recipe.hash not in rows
    rank = ranks([pool.task_means(entry.recipe, problem.search_items) for entry in asked])
    by_hash = {entry.recipe.hash: int(one) for entry, one in zip(asked, rank, strict=True)}
    left_out = by_hash.keys() - rows.keys() - {found.recipe.hash}
    assert max(by_hash[one] for one in rows) <= min(by_hash[one] for one in left_out)
    assert len(set(rank.tolist())) > 1
    firsts = [pool.task_means(row.recipe, problem.search_items)[0] for row in rows.values()]
    assert firsts == sorted(firsts, reverse=True)
    assert [row.name for row in rows.values()] == ["front 1", "front 2"]


def test_sources_that_are_larger_than_the_space_allows_are_neither_found_nor_recommended(finish):
    tailored = "space={kind: tailoring, remove: 2, models: [ops, base]}"
    problem, search, pool, final = finish({"kind": "random"}, tailored)
    pool.perfect.update(entry.recipe.hash for entry in problem.sources())
    finalists = final._finalists(search.history.ranking(), None)
    assert {entry.recipe.num_layers for entry in finalists} == {4}
    result = final.evaluate()
    assert {row.name for row in result.held_out} >= {"base", "ops"}
    assert result.verdict.recommended in ("found", "start")
    assert not {"base", "ops"} & {comparison.name for comparison in result.verdict.comparisons}
