"""Means of scores, with standard errors."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fitness.results import mean


@given(right=st.integers(0, 60), wrong=st.integers(0, 60))
def test_error_is_that_of_the_jeffreys_posterior(right: int, wrong: int) -> None:
    if right + wrong == 0:
        return
    estimate = mean([1.0] * right + [0.0] * wrong)
    assert estimate.value == right / (right + wrong)
    assert estimate.standard_error == pytest.approx(stats.beta(right + 0.5, wrong + 0.5).std())


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50))
def test_bounded_scores_never_have_a_zero_error(scores: list[float]) -> None:
    assert 0 < mean(scores).standard_error < 0.5


def test_large_samples_agree_with_the_usual_error() -> None:
    scores = np.random.default_rng(0).beta(2, 5, 20_000)
    assert mean(scores).standard_error == pytest.approx(scores.std(ddof=1) / math.sqrt(scores.size), rel=1e-3)


def test_unbounded_scores() -> None:
    estimate = mean([1.0, 2.0, 6.0])
    assert (estimate.value, estimate.standard_error) == (3.0, pytest.approx(math.sqrt(7 / 3)))
    assert mean([5.0]).standard_error == math.inf


def test_bad_scores() -> None:
    with pytest.raises(ValueError, match="no scores to average: ask at least one item"):
        mean([])
    with pytest.raises(ValueError, match="NaN or infinity: leave failed items out"):
        mean([1.0, math.nan])
