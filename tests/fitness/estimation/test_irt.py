from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitness.estimation.irt import (
    ItemBank,
    ability_map,
    fit_2pl,
    fit_mirt,
    item_fit,
    sigmoid,
)


def simulated(models: int = 300, items: int = 150, dimensions: int = 1, seed: int = 0):
    """Return scores [models, items], and the true abilities, discriminations and difficulties."""
    rng = np.random.default_rng(seed)
    theta = rng.normal(size=(models, dimensions))
    a = rng.lognormal(0, 0.5, (items, dimensions)) * (
        1 if dimensions == 1 else rng.choice([-1, 1], (items, dimensions))
    )
    b = rng.normal(0, 1.5, items)
    return (rng.random((models, items)) < sigmoid(theta @ a.T - b)).astype(float), theta, a, b


@pytest.fixture(scope="module")
def one_dimensional():
    scores, theta, a, b = simulated()
    return fit_2pl(scores), scores, theta, a, b


def test_2pl_recovers_the_parameters(one_dimensional) -> None:
    bank, _, theta, a, b = one_dimensional
    assert np.corrcoef(np.log(bank.discrimination[:, 0]), np.log(a[:, 0]))[0, 1] > 0.85
    assert np.corrcoef(bank.difficulty, b)[0, 1] > 0.98
    assert abs(np.median(bank.difficulty - b)) < 0.15
    assert np.corrcoef(bank.abilities[:, 0], theta[:, 0])[0, 1] > 0.95


def test_2pl_leaves_missing_answers_out() -> None:
    scores, *_ = simulated(models=400, items=30)
    gaps = np.where(np.random.default_rng(1).random(scores.shape) < 0.3, np.nan, scores)
    full, partial = fit_2pl(scores), fit_2pl(gaps)
    assert np.corrcoef(full.difficulty, partial.difficulty)[0, 1] > 0.98
    assert abs((full.difficulty - partial.difficulty).mean()) < 0.1


def test_2pl_with_one_model_and_items_that_all_or_none_answer_stays_finite() -> None:
    scores = np.tile([1.0, 0.0, 1.0, 0.0], (3, 1))
    for bank in (fit_2pl(scores), fit_2pl(scores[:1]), fit_mirt(scores, 1)):
        assert np.isfinite(bank.difficulty).all() and np.isfinite(bank.discrimination).all()
        assert bank.difficulty[0] < bank.difficulty[1]


def test_mirt_predicts_better_than_one_dimension_where_there_are_two() -> None:
    scores, theta, a, b = simulated(models=300, items=120, dimensions=2)
    truth = sigmoid(theta @ a.T - b)

    def error(bank: ItemBank) -> float:
        return float(np.abs(sigmoid(bank.abilities @ bank.discrimination.T - bank.difficulty) - truth).mean())

    assert error(fit_mirt(scores, 2)) < 0.6 * error(fit_2pl(scores))


def test_fits_are_deterministic() -> None:
    scores, *_ = simulated(models=40, items=20)
    for fit in (fit_2pl, lambda x: fit_mirt(x, 3)):
        assert (fit(scores).discrimination == fit(scores).discrimination).all()


def test_map_is_where_the_gradient_vanishes(one_dimensional) -> None:
    bank, scores, *_ = one_dimensional
    asked = np.arange(0, 150, 7)
    ability = ability_map(bank, scores[0, asked], asked, prior_mean=[0.5], prior_precision=2.0)
    residual = scores[0, asked] - bank.probability(ability)[asked]
    gradient = bank.discrimination[asked].T @ residual - 2.0 * (ability - 0.5)
    assert np.abs(gradient).max() < 1e-6


@given(answers=st.lists(st.floats(0, 1), max_size=12), precision=st.floats(0.05, 5))
def test_abilities_are_finite_whatever_the_answers(answers: list[float], precision: float) -> None:
    bank = ItemBank(tuple(map(str, range(12))), np.full((12, 1), 1.5), np.linspace(-2, 2, 12), np.zeros((1, 1)))
    found = ability_map(bank, answers, np.arange(len(answers)), prior_precision=precision)
    assert np.isfinite(found).all()


def test_more_right_answers_mean_a_higher_ability() -> None:
    bank = ItemBank(("x", "y", "z"), np.ones((3, 1)), np.zeros(3), np.zeros((1, 1)))
    means = [ability_map(bank, [1.0] * k + [0.0] * (3 - k))[0] for k in range(4)]
    assert means == sorted(means) and means[0] < 0 < means[3]


def test_item_fit_finds_the_item_that_measures_nothing(one_dimensional) -> None:
    _, scores, *_ = one_dimensional
    spoilt = scores.copy()
    able = scores.mean(1)
    spoilt[:, 5] = (able < np.median(able)).astype(float)  # weak models are right, able ones wrong
    fit = item_fit(fit_2pl(spoilt), spoilt)
    assert fit.infit.argmax() == 5 and fit.infit[5] > 1.1
    assert 0.9 < np.median(fit.infit) < 1.1


def test_select_reorders_and_refuses_strangers(one_dimensional) -> None:
    bank, *_ = one_dimensional
    assert (bank.select(["7", "3"]).difficulty == bank.difficulty[[7, 3]]).all()
    with pytest.raises(ValueError, match=r"1 of 2 items are not in it .*fit the items of this task"):
        bank.select(["7", "elsewhere"])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fit_2pl(np.array([[0, 2.0]])), "rescale them to"),
        (lambda: fit_2pl(np.ones(3)), r"give \[models, items\]"),
        (lambda: fit_2pl(np.ones((2, 3)), items=["a"]), "one id per column"),
        (lambda: fit_mirt(np.ones((2, 3)), 4), "give 1 to 2"),
        (lambda: ItemBank(("a",), np.ones((1, 2)), np.zeros(2), np.zeros((1, 2))), r"give \[I, D\]"),
        (lambda: ability_map(fit_2pl(np.eye(3)), [1.0, 0.0]), "one score per asked item"),
        (lambda: ability_map(fit_2pl(np.eye(3)), [1.0, 0, 1], prior_precision=0), "number above 0"),
        (lambda: item_fit(fit_2pl(np.eye(3)), np.eye(2)), "the scores it was calibrated on"),
    ],
)
def test_bad_input_says_what_to_give(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
