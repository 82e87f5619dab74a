from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fitness.estimation import intervals
from fitness.estimation.intervals import (
    RESAMPLES,
    holm,
    interval,
    p_text,
    paired_test,
    weighted_interval,
    weighted_paired_test,
)


def test_wilson_interval_for_right_and_wrong() -> None:
    low, high = interval([1.0] * 8 + [0.0] * 2)
    assert (low, high) == (pytest.approx(0.4901625), pytest.approx(0.9433178))  # Wilson (1927), 8 of 10
    assert interval([1.0] * 10)[0] == pytest.approx(0.7224672)
    assert interval([1.0] * 10)[1] == 1.0


def test_t_interval_otherwise() -> None:
    scores = [2.0, 4.0, 9.0]
    expected = stats.t.interval(0.9, 2, loc=5.0, scale=stats.sem(scores))
    assert interval(scores, 0.9) == pytest.approx(expected)
    assert interval([3.0]) == (-math.inf, math.inf)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_intervals_of_bounded_scores_stay_inside_and_hold_the_mean(scores: list[float]) -> None:
    low, high = interval(scores)
    assert 0 <= low <= np.mean(scores) + 1e-12
    assert np.mean(scores) - 1e-12 <= high <= 1
    assert low < high


def test_wider_for_higher_levels() -> None:
    scores = [0.2, 0.4, 0.9, 0.5]
    assert interval(scores, 0.99)[0] < interval(scores, 0.8)[0]
    with pytest.raises(ValueError, match=r"level is 95: give a number between 0 and 1, such as 0\.95"):
        interval(scores, 95)


def test_mcnemar_counts_only_the_items_that_differ() -> None:
    a = [1.0] * 10 + [0.0] * 2 + [1.0] * 50
    b = [0.0] * 10 + [1.0] * 2 + [1.0] * 50
    assert paired_test(a, b) == pytest.approx(stats.binomtest(2, 12).pvalue)
    assert paired_test(a, b) == paired_test(b, a)
    assert paired_test(a, a) == 1.0


def test_permutation_test_is_exact_for_few_items() -> None:
    a, b = np.array([0.9, 0.8, 0.7, 0.65]), np.array([0.1, 0.3, 0.2, 0.6])
    assert paired_test(a, b) == 2 / 16  # only all signs equal are as extreme
    reference = stats.permutation_test((a, b), lambda x, y, axis: (x - y).mean(axis), permutation_type="samples")
    assert paired_test(a, b) == pytest.approx(reference.pvalue)


@pytest.mark.parametrize("terms", [[1 / 71] * 6 + [-6 / 71], [0.1] * 3 + [-0.3], [0.1, 0.2, -0.3] * 4])
def test_equal_means_whose_sums_differ_in_the_last_bits_have_a_p_value_of_one(terms: list[float]) -> None:
    assert paired_test(terms, [0.0] * len(terms)) == 1.0


def test_permutation_test_of_many_items_agrees_with_t() -> None:
    rng = np.random.default_rng(1)
    b = rng.random(200)
    a = b + rng.normal(0.02, 0.1, 200)
    assert paired_test(a, b) == pytest.approx(stats.ttest_rel(a, b).pvalue, abs=0.01)
    assert paired_test(a, b) == paired_test(a, b)


def test_bad_pairs() -> None:
    with pytest.raises(ValueError, match="a has 2 scores and b 1: give both for the same items"):
        paired_test([1, 0], [1])
    with pytest.raises(ValueError, match="NaN or infinity: leave these items out of both"):
        paired_test([1, math.nan], [1, 0])


def test_several_tasks_count_with_their_weights() -> None:
    right, wrong = np.ones(40), np.zeros(40)
    low, high = weighted_interval([(right, 3.0), (wrong, 1.0)])
    assert low < 0.75 < high
    assert high - low < 0.12
    assert weighted_paired_test([(right, right, 3.0), (wrong, wrong, 1.0)]) == 1.0
    assert weighted_paired_test([(right, wrong, 3.0), (wrong, wrong, 1.0)]) < 0.001
    # one task for a and as much of the other for b: undecided, unless one weighs more
    assert weighted_paired_test([(right, wrong, 1.0), (wrong, right, 1.0)]) > 0.9
    assert weighted_paired_test([(right, wrong, 9.0), (wrong, right, 1.0)]) < 0.001


def test_items_of_a_large_task_weigh_less_than_those_of_a_small_one() -> None:
    """Two tasks of equal weight: a is right on all 4 items of the small one, b on 16 of the 40 of the large one."""
    small, large = (np.ones(4), np.zeros(4)), (np.zeros(40), np.repeat([1.0, 0.0], [16, 24]))
    difference = np.concatenate(((small[0] - small[1]) / 4, (large[0] - large[1])[:16] / 40))
    flips = 1 - 2 * (np.arange(2**20)[:, None] >> np.arange(20) & 1).astype(np.int8)
    expected = (np.abs(flips @ difference) >= abs(difference.sum()) - 1e-9).mean()
    assert weighted_paired_test([(*small, 1.0), (*large, 1.0)]) == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("at_once", [1, 100, 1 << 20])
def test_signs_are_drawn_in_one_order_however_many_at_once(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    difference = np.random.default_rng(1).normal(0.3, 1.0, 40)
    rng, extreme = np.random.default_rng(0), 0
    for _ in range(999):
        extreme += abs((rng.integers(0, 2, 40) * 2 - 1) @ difference) >= abs(difference.sum())
    monkeypatch.setattr(intervals, "RESAMPLES", 999)
    monkeypatch.setattr(intervals, "SIGNS_AT_ONCE", at_once)
    assert paired_test(difference, np.zeros(40)) == (extreme + 1) / 1000
    assert 0.001 < (extreme + 1) / 1000 < 0.5


def test_no_sampled_p_value_is_zero() -> None:
    """A test that draws sign patterns counts the observed one too, so that p is at least 1 in the number of draws."""
    a = 0.5 + np.linspace(0.1, 0.4, 60)
    assert paired_test(a, np.full(60, 0.5)) == 1 / (RESAMPLES + 1)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


def test_holm_keeps_the_family_wise_error() -> None:
    rng = np.random.default_rng(0)
    wrong = sum(min(holm(rng.uniform(size=8).tolist())) < 0.05 for _ in range(2000))
    assert wrong / 2000 < 0.065


def test_p_values_say_where_permutations_can_give_no_smaller_one() -> None:
    assert [p_text(p) for p in (0.25, 0.0123, 0.0004, 1e-4, 3e-20)] == ["0.250", "0.012", "4e-04", "< 1e-4", "3e-20"]
    scores = np.random.default_rng(0).normal(0, 1, 60)
    assert p_text(paired_test(scores + 3, scores + np.linspace(0, 0.1, 60))) == "< 1e-4"
