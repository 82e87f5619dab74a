"""The default estimate of candidates that resemble their parents, and of others."""

from __future__ import annotations

import numpy as np
import pytest

from fitness.estimation import posterior as explanations
from fitness.estimation import subset
from fitness.estimation.irt import ItemBank
from fitness.estimation.parent_prior import prior
from fitness.estimation.posterior import posterior

ITEMS, SEEDS = 300, 25


def family(seed: int) -> tuple[np.ndarray, ItemBank]:
    """0/1 answers of two parents and a child that follows them on nearly all items, and a bank."""
    rng = np.random.default_rng(seed)
    difficulty = rng.normal(-1.0, 2.0, ITEMS)
    bank = ItemBank(tuple(map(str, range(ITEMS))), np.ones((ITEMS, 1)), difficulty, np.zeros((1, 1)))
    shared = rng.logistic(size=ITEMS)
    answers = [(0.9 * shared + 0.3 * rng.logistic(size=ITEMS) > difficulty).astype(float) for _ in range(3)]
    return np.array(answers), bank


def estimates(
    change, parents_of=lambda seed: family(seed)[0][:2], size: int = 20
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """float64[SEEDS] each: errors at `size` items, standard errors, and errors of the plain mean of random items."""
    errors, widths, plain = [], [], []
    for seed in range(SEEDS):
        answers, bank = family(seed)
        rng = np.random.default_rng([seed, 1])
        given = prior(ITEMS, parents_of(seed), [bank])
        child = change(answers[2], answers[:2], rng)
        asked = subset.default_subset(given, size, seed)
        found = posterior(given, child[asked], asked)
        errors.append(found.value - child.mean())
        widths.append(found.standard_error)
        plain.append(child[rng.choice(ITEMS, size, replace=False)].mean() - child.mean())
    return np.array(errors), np.array(widths), np.array(plain)


CHANGES = {
    "as it is": lambda child, parents, rng: child,
    "emerged 0.5": lambda child, parents, rng: np.where((parents.sum(0) == 0) & (rng.random(ITEMS) < 0.5), 1.0, child),
    "emerged 0.8": lambda child, parents, rng: np.where((parents.sum(0) == 0) & (rng.random(ITEMS) < 0.8), 1.0, child),
    "collapsed 0.3": lambda child, parents, rng: np.where(rng.random(ITEMS) < 0.3, 0.0, child),
    "collapsed 0.7": lambda child, parents, rng: np.where(rng.random(ITEMS) < 0.7, 0.0, child),
    "guesses": lambda child, parents, rng: (rng.random(ITEMS) < 0.25).astype(float),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_the_interval_covers_and_the_error_stays_near_the_means(kind: str) -> None:
    errors, widths, plain = estimates(CHANGES[kind])
    # these merges are simulated; on published ones, see the table in experiments/fitness_accuracy
    assert (np.abs(errors) <= 1.96 * widths).mean() >= 0.7
    assert np.abs(errors).mean() <= 1.7 * np.abs(plain).mean()


def test_a_candidate_like_its_parents_is_known_from_few_answers() -> None:
    errors, _, plain = estimates(CHANGES["as it is"])
    assert np.abs(errors).mean() < 0.4 * np.abs(plain).mean()


def test_a_tenth_of_broken_answers_is_found_with_many_answers() -> None:
    errors, _, plain = estimates(lambda child, _, rng: np.where(rng.random(ITEMS) < 0.1, 0.0, child), size=100)
    assert np.abs(errors).mean() < 1.2 * np.abs(plain).mean()


def test_wrong_parents_do_no_harm() -> None:
    errors, widths, plain = estimates(CHANGES["as it is"], lambda seed: family(seed + 100)[0][:2])
    assert (np.abs(errors) <= 1.96 * widths).mean() >= 0.85
    assert np.abs(errors).mean() <= 1.2 * np.abs(plain).mean()


def test_a_candidate_that_answers_nothing_right_has_no_score() -> None:
    answers, bank = family(0)
    given = prior(ITEMS, answers[:2], [bank])
    asked = subset.default_subset(given, 20, 0)
    found = posterior(given, np.zeros(20), asked)
    assert found.value < 0.01 and 0 < found.standard_error < 0.1
    right = posterior(given, (asked == asked[0]).astype(float), asked)  # one right answer is enough to doubt it
    assert right.value > 0.02


def test_the_checks_are_the_surest_items_that_all_parents_solve_or_none() -> None:
    answers, bank = family(0)
    given = prior(ITEMS, answers[:2], [bank])
    assert given.strata is not None
    checks = subset.checks(given, 20, subset.generator(0))
    assert set(given.strata[checks]) == {0, 2} and 4 <= len(checks) < 14
    solved, others = checks[given.strata[checks] == 2], checks[given.strata[checks] == 0]
    assert given.probability[solved].min() > np.median(given.probability[given.strata == 2])
    assert given.probability[others].max() < np.median(given.probability[given.strata == 0])
    assert set(solved) != set(subset.checks(given, 20, subset.generator(0, 1)))  # generations have different ones
    assert set(checks) <= set(subset.default_subset(given, 20, 0))
    assert len(subset.checks(given, 200, subset.generator(0))) < 22  # they do not grow for ever


def test_one_wrong_answer_to_a_sure_item_widens_the_interval_and_several_lower_the_estimate() -> None:
    answers, bank = family(0)
    given = prior(ITEMS, answers[:2], [bank])
    asked = subset.default_subset(given, 20, 0)
    sure = asked[np.argsort(-given.probability[asked])[:4]]
    found = []
    for wrong in (0, 1, 4):
        child = answers[2].copy()
        child[sure] = 1.0
        child[sure[:wrong]] = 0.0
        found.append(posterior(given, child[asked], asked))
    assert found[1].standard_error > found[0].standard_error
    assert found[2].value < found[0].value - 0.15


def test_the_smallest_shares_of_broken_answers_widen_the_interval_and_leave_the_estimate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers, bank = family(0)
    given = prior(ITEMS, answers[:2], [bank])
    asked = subset.default_subset(given, 20, 0)
    found = posterior(given, answers[2][asked], asked)
    monkeypatch.setattr(explanations, "SLIGHTLY_BROKEN", ())
    without = posterior(given, answers[2][asked], asked)
    assert found.value == without.value and found.standard_error > 1.02 * without.standard_error


def test_answers_that_follow_no_item_are_explained_by_one_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    answers, bank = family(0)
    given = prior(ITEMS, answers[:2], [bank])
    asked = subset.default_subset(given, 20, 0)
    scores = (np.arange(20) % 2).astype(float)[np.argsort(np.argsort(-given.probability[asked]))]
    found = posterior(given, scores, asked)
    monkeypatch.setitem(explanations.CHANCES, "guesses", 1e-12)
    assert abs(found.value - 0.5) < abs(posterior(given, scores, asked).value - 0.5)


def test_no_items_are_left() -> None:
    answers, _ = family(0)
    found = posterior(prior(ITEMS, answers[:2]), answers[2], np.arange(ITEMS))
    assert (found.value, found.standard_error) == (answers[2].mean(), 0.0)
