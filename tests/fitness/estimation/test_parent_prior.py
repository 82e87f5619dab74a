from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitness.estimation import EstimatorInputs, parent_prior, subset
from fitness.estimation.irt import ItemBank, fit_2pl, fit_mirt, sigmoid
from fitness.estimation.learnt_prior import SCALES, SHARES
from fitness.estimation.parent_prior import UNINFORMED_SHARES, disagreement, learn, prior
from fitness.estimation.posterior import posterior

ITEMS = 200


def make_bank(seed: int = 0, items: int = ITEMS) -> ItemBank:
    rng = np.random.default_rng(seed)
    return ItemBank(
        tuple(map(str, range(items))), rng.lognormal(0.3, 0.3, (items, 1)), rng.normal(0, 1.5, items), np.zeros((1, 1))
    )


def related_answers(seed: int, models: int, shared: float = 0.8) -> np.ndarray:
    """0/1 answers of models of one family, [models, items]; they share most of what makes an item go wrong."""
    rng, bank = np.random.default_rng(seed), make_bank()
    common = rng.logistic(size=ITEMS)
    own = rng.logistic(size=(models, ITEMS))
    latent = bank.logit([0.8]) + np.sqrt(shared) * common + np.sqrt(1 - shared) * own + rng.normal(0, 0.3, (models, 1))
    return (latent > 0).astype(float)


SITUATIONS = {
    "parents and bank": lambda y: prior(ITEMS, y, [make_bank()]),
    "two banks": lambda y: prior(ITEMS, y, [make_bank(), make_bank(1)]),
    "parents": lambda y: prior(ITEMS, y),
    "one parent": lambda y: prior(ITEMS, y[:1]),
    "three equal parents": lambda y: prior(ITEMS, y[[0, 0, 0]]),
    "bank": lambda y: prior(ITEMS, None, [make_bank()]),
    "nothing": lambda y: prior(ITEMS),
    "parents right everywhere": lambda y: prior(ITEMS, np.ones((2, ITEMS)), [make_bank()]),
    "parents wrong everywhere": lambda y: prior(ITEMS, np.zeros((2, ITEMS))),
}


@pytest.mark.parametrize("situation", SITUATIONS)
@pytest.mark.parametrize("answer", [0.0, 1.0, 0.3, None])
@pytest.mark.parametrize("count", [0, 1, 20, ITEMS])
def test_always_finite_and_within_the_scores_range(situation: str, answer: float | None, count: int) -> None:
    parents = related_answers(0, 2)
    given_prior = SITUATIONS[situation](parents)
    chosen = subset.random(ITEMS, count, subset.generator(1)) if count else np.zeros(0, np.int64)
    scores = parents[0, chosen] if answer is None else np.full(count, answer)
    found = posterior(given_prior, scores, chosen)
    assert 0 <= found.value <= 1 and 0 <= found.standard_error < 0.6
    if count == ITEMS:
        assert found.value == pytest.approx(scores.mean()) and found.standard_error == 0
    else:
        assert found.standard_error > 0


def test_expects_the_parents_mean_before_any_answer() -> None:
    same = related_answers(0, 1)[[0, 0]]
    assert posterior(prior(ITEMS, same), [], []).value == pytest.approx(same.mean(), abs=0.02)


def test_a_candidate_identical_to_its_parent_is_recognised() -> None:
    parents = related_answers(1, 2)
    given_prior = prior(ITEMS, parents, [make_bank()])
    for parent in parents:
        chosen = subset.default_subset(given_prior, 30, seed=0)
        found = posterior(given_prior, parent[chosen], chosen)
        assert found.value == pytest.approx(parent.mean(), abs=0.04)


@given(seed=st.integers(0, 100), count=st.integers(1, 40), flips=st.integers(1, 10))
def test_more_right_answers_never_lower_the_estimate(seed: int, count: int, flips: int) -> None:
    given_prior = prior(ITEMS, related_answers(seed, 2))
    chosen = subset.random(ITEMS, count, subset.generator(seed))
    scores = related_answers(seed, 3)[2, chosen]
    better = scores.copy()
    better[np.flatnonzero(scores == 0)[:flips]] = 1
    # answers that contradict the parents' pattern also lower its weight: allow what that can cost
    assert posterior(given_prior, better, chosen).value >= posterior(given_prior, scores, chosen).value - 0.02


def test_the_interval_covers_and_beats_the_plain_mean() -> None:
    errors, plain, inside = [], [], []
    for seed in range(40):
        parents_and_child = related_answers(seed, 3)
        given_prior = prior(ITEMS, parents_and_child[:2], [make_bank()])
        child = parents_and_child[2]
        chosen = subset.default_subset(given_prior, 20, seed)
        found = posterior(given_prior, child[chosen], chosen)
        errors.append(abs(found.value - child.mean()))
        inside.append(errors[-1] <= 1.96 * found.standard_error)
        plain.append(abs(child[subset.random(ITEMS, 20, subset.generator(seed))].mean() - child.mean()))
    assert np.mean(errors) < 0.5 * np.mean(plain)
    assert np.mean(inside) >= 0.75


def test_heavy_tails_let_a_broken_merge_be_seen() -> None:
    given_prior = prior(ITEMS, related_answers(0, 2) * 0 + 1.0)  # both parents always right
    chosen = subset.random(ITEMS, 20, subset.generator(0))
    assert posterior(given_prior, np.zeros(20), chosen).value < 0.15


def test_a_bank_of_weaker_models_still_helps() -> None:
    """Calibrated on models far below the candidates: not worse than no bank at all by more than a tenth."""
    rng, bank = np.random.default_rng(5), make_bank()
    weak = rng.random((100, ITEMS)) < sigmoid(rng.normal(-2.5, 0.7, (100, 1)) * bank.discrimination.T - bank.difficulty)
    banks = (fit_2pl(weak.astype(float)), fit_mirt(weak.astype(float), 3))
    errors = {"bank": [], "none": []}
    for seed in range(40):
        answers = related_answers(seed, 3, shared=0.6)
        for name, known in (("bank", banks), ("none", ())):
            given_prior = prior(ITEMS, answers[:2], known)
            chosen = subset.default_subset(given_prior, 20, seed)
            errors[name].append(abs(posterior(given_prior, answers[2, chosen], chosen).value - answers[2].mean()))
    assert np.mean(errors["bank"]) < 1.1 * np.mean(errors["none"])


def test_learning_from_candidates_moves_the_prior_to_them() -> None:
    parents = related_answers(0, 2)
    rng = np.random.default_rng(0)
    # candidates find half of what no parent knows
    candidates = np.maximum(parents[0], (rng.random((30, ITEMS)) < 0.5).astype(float))
    start = prior(ITEMS, parents)
    evaluated = []
    for number, candidate in enumerate(candidates[:20]):
        chosen = subset.random(ITEMS, 20, subset.generator(0, number))
        evaluated.append((candidate[chosen], chosen))
    learnt = learn(start, evaluated)
    truth = candidates[20:].mean()
    assert abs(posterior(learnt, [], []).value - truth) < 0.7 * abs(posterior(start, [], []).value - truth)
    errors = {"start": [], "learnt": []}
    for number, candidate in enumerate(candidates[20:]):
        chosen = subset.random(ITEMS, 10, subset.generator(1, number))
        for name, given_prior in (("start", start), ("learnt", learnt)):
            errors[name].append(abs(posterior(given_prior, candidate[chosen], chosen).value - candidate.mean()))
    assert np.mean(errors["learnt"]) < 0.6 * np.mean(errors["start"])


def test_learning_ends_when_the_prior_moves_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    parents = related_answers(0, 2)
    evaluated = [(parents[0][::9], np.arange(ITEMS)[::9]), (parents[1][1::9], np.arange(ITEMS)[1::9])]
    calls = []
    laplace = parent_prior.laplace
    monkeypatch.setattr(parent_prior, "laplace", lambda *given: calls.append(1) or laplace(*given))
    ended = learn(prior(ITEMS, parents), evaluated, iterations=500)
    count = len(calls)
    assert 2 < count < 500
    last, before, earlier = (
        learn(prior(ITEMS, parents), evaluated, iterations=number).mean for number in (count, count - 1, count - 2)
    )
    np.testing.assert_array_equal(last, ended.mean)
    assert np.abs(last - before).max() < 1e-3 <= np.abs(before - earlier).max()


def test_learning_from_nothing_changes_nothing() -> None:
    start = prior(ITEMS, related_answers(0, 2))
    assert learn(start, []) is start and learn(start, [([], [])]) is start


def test_learning_follows_the_latest_candidates() -> None:
    """A search that gets better leaves its first candidates behind."""
    parents, chosen = related_answers(0, 2), np.arange(0, ITEMS, 10)
    wrong, right = [(np.zeros(20), chosen)] * 32, [(np.ones(20), chosen)] * 32

    def expected(evaluated) -> float:
        return EstimatorInputs(ITEMS, parents=parents, evaluated=evaluated).prior.probability.mean()

    assert expected(wrong + right) == expected(right) > expected(wrong) + 0.2


@pytest.mark.parametrize("spread", [3.0, 10.0])
def test_no_standard_error_exceeds_what_a_score_between_0_and_1_can_have(spread: float) -> None:
    """A variable on [0, 1] with mean v has a variance of at most v(1 - v), however little is known."""
    start = prior(ITEMS)
    found = posterior(replace(start, covariance=spread**2 * start.covariance), [], [])
    assert found.standard_error <= (found.value * (1 - found.value)) ** 0.5 + 1e-9


def test_order_of_parents_does_not_matter() -> None:
    parents = related_answers(2, 3)
    chosen = np.arange(0, ITEMS, 9)
    values = [
        posterior(prior(ITEMS, parents[list(order)], [make_bank()]), parents[0, chosen], chosen).value
        for order in ((0, 1, 2), (2, 0, 1))
    ]
    assert values[0] == pytest.approx(values[1], abs=1e-9)


def test_disagreement() -> None:
    assert disagreement(np.array([[1.0, 0, 1, 0], [1, 0, 0, 1]])) == pytest.approx((2 + 0.5) / 5)
    assert 0 < disagreement(np.ones((2, 10))) < 0.1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: prior(4, np.ones((2, 3))), r"give \[parents, 4\]"),
        (lambda: prior(4, np.full((1, 4), 2.0)), "rescale them"),
        (lambda: prior(4, None, [make_bank()]), "use ItemBank.select first"),
        (lambda: posterior(prior(4), [1.0], [0, 1]), "one score per asked item"),
        (lambda: posterior(prior(4), [1.0, 0], [1, 1]), "asked twice"),
        (lambda: posterior(prior(4), [1.0], [4]), "positions within the task's items"),
        (lambda: posterior(prior(4), [np.nan], [1]), "leave failed items out"),
    ],
)
def test_bad_input_says_what_to_give(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("shares", [SHARES, UNINFORMED_SHARES])
def test_the_chances_of_the_scales_sum_to_one(shares: tuple[float, ...]) -> None:
    assert len(shares) == len(SCALES)
    assert sum(shares) == pytest.approx(1)
    assert min(shares) >= 0
