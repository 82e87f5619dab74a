"""Confidence intervals and paired tests for the final table."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fitness.results import mean

EXACT_UP_TO = 12  # differing pairs: 2^12 sign patterns are enumerated, more are sampled
RESAMPLES = 9_999
SIGNS_AT_ONCE = 1 << 20


def _is_binary(*arrays: np.ndarray) -> bool:
    return all(bool(np.isin(array, (0.0, 1.0)).all()) for array in arrays)


def interval(scores: npt.ArrayLike, level: float = 0.95) -> tuple[float, float]:
    """Confidence interval of the mean score.

    Wilson's interval for 0/1 scores. Otherwise Student's t with the standard error of
    `fitness.results.mean` (above 0 even if all scores are equal), cut to [0, 1] if all scores are in it.

    Parameters
    ----------
    scores
        float[I]; I >= 1.
    level
        Coverage, in (0, 1).

    Returns
    -------
    low, high
        In the unit of the scores.
    """
    if not 0 < level < 1:
        raise ValueError(f"level is {level}: give a number between 0 and 1, such as 0.95")
    score_I = np.asarray(scores, np.float64).ravel()
    estimate = mean(score_I)  # also checks the scores
    count = score_I.size
    from scipy import stats  # takes seconds to import, so not at the top

    if _is_binary(score_I):
        test = stats.binomtest(int(score_I.sum()), count)
        bounds = test.proportion_ci(confidence_level=level, method="wilson")
        return float(bounds.low), float(bounds.high)
    if count == 1 and not np.isfinite(estimate.standard_error):
        return -np.inf, np.inf
    margin = float(stats.t.ppf((1 + level) / 2, max(count - 1, 1))) * estimate.standard_error
    low, high = estimate.value - margin, estimate.value + margin
    if score_I.min() >= 0 and score_I.max() <= 1:
        return max(low, 0.0), min(high, 1.0)
    return low, high


def paired_test(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """Two-sided p-value of "a and b are equally good", from scores of the same items in the same order.

    0/1 scores: McNemar's exact test (binomial on the items that exactly one of the two got right).
    Otherwise: sign-flip permutation test of the mean difference; exact for up to 12 differing items, else
    with 9,999 draws from a fixed seed, so p >= 1e-4.

    Parameters
    ----------
    a, b
        float[I] each; I >= 1.

    Returns
    -------
    p_value
        In (0, 1]; 1 if all scores agree. Compare the means to see which is better.

    Raises
    ------
    ValueError
        Different lengths, no items, or scores that are not finite.
    """
    a_I, b_I = np.asarray(a, np.float64).ravel(), np.asarray(b, np.float64).ravel()
    if a_I.size != b_I.size or a_I.size == 0:
        raise ValueError(f"a has {a_I.size} scores and b {b_I.size}: give both for the same items, in the same order")
    if not (np.isfinite(a_I).all() and np.isfinite(b_I).all()):
        raise ValueError("scores contain NaN or infinity: leave these items out of both")
    difference = (a_I - b_I)[a_I != b_I]
    if difference.size == 0:
        return 1.0
    if _is_binary(a_I, b_I):
        from scipy import stats

        return float(stats.binomtest(int((difference > 0).sum()), difference.size, 0.5).pvalue)
    return _sign_flip_p_value(difference)


def weighted_interval(tasks: Sequence[tuple[npt.ArrayLike, float]], level: float = 0.95) -> tuple[float, float]:
    """Confidence interval of the weighted mean of several tasks' mean scores (normal approximation).

    Parameters
    ----------
    tasks
        (float[I] scores, weight) of each task; the weights are divided by their sum.
    level
        Coverage, in (0, 1).

    Returns
    -------
    low, high
        In the unit of the scores.
    """
    total = sum(weight for _, weight in tasks)
    estimates = [(mean(scores), weight / total) for scores, weight in tasks]
    value = sum(share * estimate.value for estimate, share in estimates)
    error = math.sqrt(sum((share * estimate.standard_error) ** 2 for estimate, share in estimates))
    from scipy import stats

    margin = float(stats.norm.ppf((1 + level) / 2)) * error
    return value - margin, value + margin


def weighted_paired_test(tasks: Sequence[tuple[npt.ArrayLike, npt.ArrayLike, float]]) -> float:
    """Two-sided p-value of "a and b are equally good" on the weighted mean of several tasks.

    The sign-flip permutation test of `paired_test`; each item's difference has the weight of its task
    divided by the task's number of items.

    Parameters
    ----------
    tasks
        (float[I] scores of a, float[I] of b, weight) of each task.
    """
    contributions = [
        weight / np.size(a) * (np.asarray(a, np.float64) - np.asarray(b, np.float64)) for a, b, weight in tasks
    ]
    difference = np.concatenate(contributions)
    difference = difference[difference != 0]
    return _sign_flip_p_value(difference) if difference.size else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number, in the same order.

    S. Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6, 1979: the
    k-th smallest of m is multiplied by m - k + 1, and none falls below a smaller one's. Rejecting those below α keeps
    the chance of any wrong rejection at most α.
    """
    order = sorted(range(len(p_values)), key=lambda at: p_values[at])
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, at in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[at]))
        adjusted[at] = largest
    return adjusted


def p_text(value: float) -> str:
    """Return a p-value in a few characters; ``< 1e-4`` for the least that random permutations can give."""
    if math.isclose(value, 1 / (RESAMPLES + 1)):
        return "< 1e-4"
    return f"{value:.3f}" if value >= 0.001 else f"{value:.0e}"


def _sign_flip_p_value(difference: np.ndarray) -> float:
    count = difference.size
    # Sums in another order differ in the last bits of their terms, which are all of a sum that cancels.
    observed = abs(difference.sum()) - 1e-12 * np.abs(difference).sum()
    if count <= EXACT_UP_TO:
        patterns = np.arange(2**count)[:, None] >> np.arange(count) & 1
        sums = (1 - 2 * patterns) @ difference
        return float((np.abs(sums) >= observed).mean())
    rng = np.random.default_rng(0)
    extreme = 0
    rows = max(1, SIGNS_AT_ONCE // count)
    for start in range(0, RESAMPLES, rows):
        signs = rng.integers(0, 2, (min(rows, RESAMPLES - start), count)) * 2.0 - 1.0
        extreme += int((np.abs(signs @ difference) >= observed).sum())
    return float((extreme + 1) / (RESAMPLES + 1))
