"""The choice among finalists: halving, what it costs, and answers that are never asked for twice."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.runs.history import RunHistory
from evomerge.runs.result import Entry
from evomerge.runs.run import ReferenceScore, Run
from evomerge.search.recorded_scoring import RecordedScorer
from evomerge.search.sequential_halving import best, in_order, rounds
from evomerge.testing.pools import ScriptedPool, answered
from fitness.objectives import means
from fitness.results import Evaluation
from search_spaces.recipes.baselines import source_recipe

ITEMS = tuple(f"{task}/test/{index}" for task, count in (("a", 60), ("b", 3)) for index in range(count))


def entry(name):
    return Entry("found", "found", source_recipe(f"/models/{name}", 2))


class Answering(ScriptedPool):
    """A pool whose recipes are right with their own skill; counts the items asked and dies at one of them."""

    def __init__(self, skill, dies_at=None):
        super().__init__(self.score)
        self.skill, self.dies_at_item = skill, dies_at
        self.items = []

    def score(self, tag, request):
        if self.dies_at_item is not None and len(self.items) >= self.dies_at_item:
            raise KeyboardInterrupt
        name = request.recipe.hash
        self.items += [(name, item) for item in request.items]
        return answered(request, [right(self.skill[name], name, item) for item in request.items])


def right(skill, name, item):
    return float(np.random.default_rng(list(f"{name}{item}".encode())).random() < skill)


def judged(evaluation):
    value = float(np.mean([estimate.value for estimate in means(evaluation).values()]))
    return replace(evaluation, objectives=(value,), standard_errors=(0.0,))


@pytest.fixture
def scorer(tmp_path):
    def scorer(pool, name="run"):
        path = tmp_path / name
        run = Run.open(path) if path.exists() else Run.create(path, "seed: 0\n", {})
        return run, RecordedScorer(run, RunHistory(run.events()), pool)

    return scorer


def chosen(scorer, finalists, **options):
    order = in_order(ITEMS, (), np.random.default_rng(0))
    return best(finalists, order, lambda one, items: judged(scorer.confirm(one, items)), **options)


def test_rounds_halve_and_cost_the_same():
    assert [left for left, _ in rounds(13)] == [13, 7, 4, 2]
    assert rounds(1) == [(1, 1.0)] and rounds(2) == [(2, 1.0)]


@given(st.integers(1, 200))
def test_each_round_costs_the_same_and_the_last_two_answer_all(finalists):
    left, share = zip(*rounds(finalists), strict=True)
    cost = np.array(left) * np.diff([0, *share])
    assert np.allclose(cost, cost[0]) and share[-1] == pytest.approx(1)
    assert left[-1] == min(finalists, 2)
    assert cost.sum() <= np.ceil(np.log2(max(finalists, 2))) * 2


def test_items_that_chose_them_come_last():
    used = set(ITEMS[:20]) | {ITEMS[61]}
    order = in_order(ITEMS, used, np.random.default_rng(0))
    assert sorted(order["a"] + order["b"]) == sorted(ITEMS)
    assert set(order["a"][-20:]) == set(ITEMS[:20]) and order["b"][-1] == ITEMS[61]
    assert order["a"][:40] != sorted(order["a"][:40])


def test_the_best_is_found_for_a_fraction_of_the_answers(scorer):
    finalists = [entry(name) for name in "abcdefgh"]
    skill = {one.recipe.hash: 0.9 if one is finalists[5] else 0.3 for one in finalists}
    pool = Answering(skill)
    run, desk = scorer(pool)
    found, scored = chosen(desk, finalists)
    assert found is finalists[5]
    assert sorted(scored.items) == sorted(ITEMS)
    assert scored.objectives == judged(replace(scored)).objectives
    assert len(pool.items) == len(set(pool.items)) == desk.history.item_evaluations < 0.5 * 8 * len(ITEMS)
    run.close()


def test_of_those_that_have_answered_everything_the_best_takes_part_and_the_first_wins_a_tie(scorer):
    finalists = [entry(name) for name in "abcdef"]
    skill = dict.fromkeys([one.recipe.hash for one in finalists], 1.0) | {finalists[0].recipe.hash: 0.5}
    pool = Answering(skill)
    run, desk = scorer(pool)
    for one in finalists[:4]:
        desk.confirm(one, ITEMS)
    pool.items.clear()
    found, _ = chosen(desk, finalists, answered=lambda one: len(desk.history.answers(one.recipe.hash)) == len(ITEMS))
    assert found is finalists[1]
    assert {name for name, _ in pool.items} == {one.recipe.hash for one in finalists[4:]}
    run.close()


def test_a_finalist_that_is_clearly_worse_is_asked_no_more(scorer):
    finalists = [entry(name) for name in "abcdefgh"]
    skill = {one.recipe.hash: 1.0 if one is finalists[5] else 0.0 for one in finalists}
    halved, dropped = Answering(skill), Answering(skill)
    for name, pool, options in (
        ("halved", halved, {}),
        ("dropped", dropped, {"clearly_worse": lambda one, other: one.objectives[0] < other.objectives[0] - 0.5}),
    ):
        run, desk = scorer(pool, name)
        assert chosen(desk, finalists, **options)[0] is finalists[5]
        run.close()
    first_round = sum(max(1, round(rounds(8)[0][1] * count)) for count in (60, 3))
    assert len(dropped.items) == 7 * first_round + len(ITEMS) < len(halved.items)


@pytest.mark.parametrize("dies_at", [1, 40, 100, 150])
def test_a_choice_that_was_interrupted_asks_nothing_twice(scorer, dies_at):
    finalists = [entry(name) for name in "abcdefgh"]
    skill = {one.recipe.hash: 0.2 + 0.1 * number for number, one in enumerate(finalists)}
    whole = Answering(skill)
    run, desk = scorer(whole, "whole")
    expected = chosen(desk, finalists)
    run.close()
    first, second = Answering(skill, dies_at), Answering(skill)
    run, desk = scorer(first)
    with pytest.raises(KeyboardInterrupt):
        chosen(desk, finalists)
    run.close()
    run, desk = scorer(second)
    found, scored = chosen(desk, finalists)
    run.close()
    assert (found, scored.items, scored.scores.tolist()) == (
        expected[0], expected[1].items, expected[1].scores.tolist(),
    )  # fmt: skip
    assert sorted(first.items + second.items) == sorted(whole.items)


def test_a_history_puts_the_rounds_together():
    history = RunHistory()
    for items, right in (((ITEMS[0], ITEMS[1]), (1, 0)), ((ITEMS[7],), (1,))):
        scores = np.array(right, np.float32)
        history.add(ReferenceScore("confirm", "x", Evaluation("ok", (1.0,), (0.0,), items, scores, {"merge": 1.5})))
    assert history.answers("x") == {ITEMS[0]: 1.0, ITEMS[1]: 0.0, ITEMS[7]: 1.0}
    both = history.reference_scores["confirm", "x"]
    assert (both.items, both.objectives, both.seconds) == ((*ITEMS[:2], ITEMS[7]), (), {"merge": 3.0})
    assert history.item_evaluations == 3 and history.answers("y") == {}
