"""The default estimate for scores other than 0 and 1."""

from __future__ import annotations

import numpy as np
import pytest

from fitness.estimation import ESTIMATORS, EstimatorInputs, subset
from fitness.estimation.regression import RegressionPrior, learn, posterior, prior

ITEMS, SEEDS = 200, 40


def spiked(rng: np.random.Generator, parents: int = 2) -> np.ndarray:
    """ROUGE-like scores of parents and a child: 0 on many items, else about the same number."""
    level = rng.beta(2, 3, ITEMS)
    zero = rng.random(ITEMS) < 0.35
    scores = np.clip(level + 0.15 * rng.normal(size=(parents + 1, ITEMS)), 0, 1)
    return np.where(zero | (rng.random((parents + 1, ITEMS)) < 0.15), 0.0, scores)


def losses(rng: np.random.Generator, parents: int = 2) -> np.ndarray:
    """Negative answer losses in nats: long-tailed, between models mostly shifted."""
    hard = rng.gamma(1.5, 2.0, ITEMS)
    return -hard * rng.lognormal(0, 0.25, (parents + 1, ITEMS)) - rng.exponential(0.2, (parents + 1, 1))


def errors(scores_of, change=lambda child: child) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """float64[SEEDS] each: errors at 20 items, standard errors, and errors of the plain mean of 20 random items."""
    found = []
    for seed in range(SEEDS):
        rng = np.random.default_rng(seed)
        *parents, child = scores_of(rng)
        child = change(child)
        known = EstimatorInputs(ITEMS, parents=np.array(parents))
        asked = subset.default_subset(known.prior, 20, seed)
        estimate = ESTIMATORS["inherited"].estimate(child[asked], asked, known)
        plain = child[rng.choice(ITEMS, 20, replace=False)].mean()
        found.append((estimate.value - child.mean(), estimate.standard_error, plain - child.mean()))
    return tuple(np.array(found).T)


@pytest.mark.parametrize("scores_of", [spiked, losses])
def test_it_beats_the_mean_without_bias_and_covers(scores_of) -> None:
    off, error, plain = errors(scores_of)
    assert np.abs(off).mean() < 0.6 * np.abs(plain).mean()
    assert abs(off.mean()) < 2.5 * off.std() / SEEDS**0.5
    assert (np.abs(off) <= 1.96 * error).mean() >= 0.88


@pytest.mark.parametrize("scores_of", [spiked, losses])
def test_a_candidate_unlike_its_parents_is_not_drawn_to_them(scores_of) -> None:
    off, error, _ = errors(scores_of, lambda child: 0.2 * child)
    _, _, plain = errors(scores_of)
    assert np.abs(off).mean() < np.abs(plain).mean()
    assert (np.abs(off) <= 1.96 * error).mean() >= 0.85


def test_candidates_teach_what_their_merges_have_in_common() -> None:
    rng = np.random.default_rng(0)
    *parents, child = losses(rng)
    start = prior(parents)
    shifted = [child - 1 + 0.1 * rng.normal(size=ITEMS) for _ in range(20)]
    evaluated = [
        (each[asked], asked) for each in shifted if (asked := rng.choice(ITEMS, 15, replace=False)) is not None
    ]
    learnt = learn(start, evaluated)
    truth = (child - 1).mean()
    assert abs(posterior(learnt, [], []).value - truth) < 0.3 * abs(posterior(start, [], []).value - truth)
    assert learn(start, []) is start


@pytest.mark.parametrize("parents", [1, 2, 3])
def test_all_answers_leave_no_error(parents: int) -> None:
    *known, child = spiked(np.random.default_rng(0), parents)
    given = prior(known)
    assert isinstance(given, RegressionPrior)
    found = posterior(given, child, np.arange(ITEMS))
    assert found.value == pytest.approx(child.mean()) and found.standard_error == 0
    few = posterior(given, child[:5], np.arange(5))
    assert few.standard_error > 0


def test_parents_that_do_not_differ_at_all_are_no_obstacle() -> None:
    given = prior(np.full((2, ITEMS), 0.4))
    found = posterior(given, np.full(10, 0.5), np.arange(10))
    assert 0.4 < found.value < 0.55 and np.isfinite(found.standard_error)


def test_the_order_of_parents_does_not_matter() -> None:
    *parents, child = spiked(np.random.default_rng(3), 3)
    asked = np.arange(0, ITEMS, 9)
    values = [
        posterior(prior([parents[at] for at in order]), child[asked], asked).value for order in ((0, 1, 2), (2, 0, 1))
    ]
    assert values[0] == pytest.approx(values[1], abs=1e-9)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: prior(np.zeros((0, 4))), "at least one parent"),
        (lambda: posterior(prior(np.eye(4)), [np.nan], [1]), "leave failed items out"),
    ],
)
def test_bad_input_says_what_to_give(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
