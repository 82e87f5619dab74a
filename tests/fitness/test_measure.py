import numpy as np
import pytest

from fitness.evaluation import Evaluation, ItemScores
from fitness.measure import InheritedMeasure, PlainMeasure
from fitness.objectives import Objectives

ITEMS = {"a": tuple(f"a/validation/{i}" for i in range(60)), "b": tuple(f"b/validation/{i}" for i in range(40))}
OBJECTIVES = Objectives({"a": 1.0, "b": 3.0})
ALL = ITEMS["a"] + ITEMS["b"]


def truth(seed, accuracy):
    """Return the 0/1 score of a simulated model on every item."""
    rng = np.random.default_rng(seed)
    difficulty = np.random.default_rng(0).normal(size=len(ALL))
    right = rng.random(len(ALL)) < 1 / (1 + np.exp(difficulty - 4 * (accuracy - 0.5)))
    return dict(zip(ALL, right.astype(np.float32).tolist(), strict=True))


def parents():
    return [
        ItemScores(ALL, np.array(list(truth(seed, accuracy).values()), np.float32), 0.0)
        for seed, accuracy in ((1, 0.4), (2, 0.6))
    ]


def measure(count=10, seed=0):
    return InheritedMeasure(parents(), OBJECTIVES, count, seed)


def answer(model, items):
    scores = np.array([model[item] for item in items], np.float32)
    return Evaluation("ok", (float(scores.mean()),), (0.1,), tuple(items), scores)


def test_the_plain_measure_asks_the_same_items_and_takes_their_means():
    items = ALL[:5] + ALL[-3:]
    plain = PlainMeasure(items, OBJECTIVES)
    evaluation = answer(truth(3, 0.5), items)
    assert plain.items(0) == plain.items(7) == items
    expected = evaluation.scores[:5].mean() / 4 + 3 * evaluation.scores[5:].mean() / 4
    assert plain.judge(evaluation).fitness == pytest.approx(expected)


def test_each_generation_is_asked_other_items_and_so_many_of_each_task():
    asked = [measure().items(generation) for generation in range(4)]
    for items in asked:
        assert len(items) == len(set(items)) == 20
        assert sum(item in ITEMS["a"] for item in items) == 10
    assert len(set(asked)) == 4


def test_a_generations_items_do_not_change_once_they_are_chosen():
    known = measure()
    before = known.items(1)
    known.learn(answer(truth(5, 0.9), before))
    assert known.items(1) == before


def test_the_same_events_give_the_same_items_and_estimates():
    def run():
        known, values = measure(), []
        for generation in range(3):
            for seed in range(4):
                evaluation = known.judge(answer(truth(10 + seed, 0.5), known.items(generation)))
                known.learn(evaluation)
                values.append((evaluation.objectives, evaluation.standard_errors, evaluation.items))
        return values

    assert run() == run()


def test_all_answers_give_the_weighted_mean():
    known, model = measure(count=60), truth(7, 0.5)
    (value,) = known.judge(answer(model, ALL)).objectives
    means = {task: np.mean([model[item] for item in items]) for task, items in ITEMS.items()}
    assert value == pytest.approx((means["a"] + 3 * means["b"]) / 4)


def test_few_answers_tell_better_models_from_worse_ones():
    errors, plain = [], []
    for seed in range(30):
        model, known = truth(100 + seed, 0.3 + 0.4 * (seed % 5) / 4), measure()
        evaluation = answer(model, known.items(0))
        means = {task: np.mean([model[item] for item in items]) for task, items in ITEMS.items()}
        full = (means["a"] + 3 * means["b"]) / 4
        asked = {
            task: np.mean([model[item] for item in evaluation.items if item in items]) for task, items in ITEMS.items()
        }
        errors.append(abs(known.judge(evaluation).objectives[0] - full))
        plain.append(abs((asked["a"] + 3 * asked["b"]) / 4 - full))
    assert np.mean(errors) < np.mean(plain)


def test_a_failed_candidate_stays_failed():
    known = measure()
    failed = Evaluation.failed("out of memory")
    assert known.judge(failed) is failed
    known.learn(failed)
