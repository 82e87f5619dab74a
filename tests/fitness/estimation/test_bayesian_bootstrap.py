"""What may still be answered: given answers stay, others follow them."""

from itertools import islice

import numpy as np
import pytest

from fitness.estimation.bayesian_bootstrap import posterior_draws
from fitness.results import Evaluation

ITEMS = tuple(f"{task}/test/{index}" for task in "ab" for index in range(20))


def answered(scores, places):
    items = tuple(ITEMS[at] for at in places)
    return Evaluation("stopped", items=items, scores=np.array(scores, np.float32))


def draw(evaluation, count=2000):
    return list(islice(posterior_draws(evaluation, ITEMS, np.random.default_rng(0)), count))


def test_right_and_wrong_answers_follow_a_beta_binomial():
    drawn = draw(answered([1, 1, 1, 0, 0, 0], [0, 3, 5, 7, 20, 21]))
    scores = np.array([each.scores for each in drawn])
    assert {each.items for each in drawn} == {ITEMS} and {each.status for each in drawn} == {"ok"}
    assert (scores[:, [0, 3, 5]] == 1).all() and (scores[:, [7, 20, 21]] == 0).all()
    first, second = np.delete(scores[:, :20], [0, 3, 5, 7], 1).mean(1), scores[:, 22:].mean(1)
    assert first.mean() == pytest.approx(4 / 6, abs=0.02) and second.mean() == pytest.approx(1 / 4, abs=0.02)
    variance = (4 * 2 / 36 / 7) + (4 * 2 / 36) * (1 - 1 / 7) / 16  # of a Beta(4, 2) rate, and of 16 flips given it
    assert first.var() == pytest.approx(variance, rel=0.1)


def test_scores_without_bounds_stay_among_those_given():
    drawn = draw(answered([-3.5, -1.25, -2.0], [0, 1, 20]), 50)
    scores = np.array([each.scores for each in drawn])
    assert set(np.unique(scores[:, :20])) == {-3.5, -1.25} and set(np.unique(scores[:, 20:])) == {-2.0}


def test_a_task_without_an_answer():
    with pytest.raises(ValueError, match="no item of task 'b' has an answer: ask some items of each task first"):
        draw(answered([1.0], [0]), 1)
