"""The default estimate: a candidate's full score after its answers, whether it resembles its parents or not.

The answers are explained in several ways, each with a chance of its own before any answer (`CHANCES`):

- it resembles its parents as published merges do, (1) in `fitness.estimation.parent_prior`;
- `emerged`: the same, except that it is right on an unknown share of what no parent can do. Emergence is what a search
  looks for, and the parents' answers say nothing about it;
- `collapsed`: an unknown share of its answers is broken, and wrong;
- `unrelated`: the parents say nothing about it, and its answers follow the item bank, or one unknown rate;
- `by strata`: unknown rates of right answers where no parent, some or all parents are right;
- `guesses`: one unknown rate of right answers, whatever the item;
- `dead`: all its answers are wrong.

Each explanation gives a normal distribution of the full score; they are weighted by how probable they make the answers.
The estimate is the median of that mixture. The smallest shares of broken answers (`SLIGHTLY_BROKEN`) are not part of
it: even a hundred answers hardly tell them from none, so they would only lower every estimate. They count in the
interval: 1.96 standard errors on each side of the estimate leave out at most 2.5 % of the mixture with them. With few
answers that allows for what the answers do not exclude. Most of it is worse than the estimate (a tenth of the answers
is broken, and none of those asked), so the lower side decides, and the interval holds more than 95 %.

Letters: I items, S asked and U unasked ones, K explanations, F columns of the design.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from fitness.estimation.laplace import Answers, averaged_sigmoid, laplace
from fitness.estimation.parent_prior import Prior, check_answers, used_scales
from fitness.results import Estimate

Array = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

CHANCES = {"emerged": 0.08, "collapsed": 0.2, "unrelated": 0.002, "by strata": 0.002, "guesses": 0.01, "dead": 0.02}
BROKEN_SHARES = (0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # equally probable
SLIGHTLY_BROKEN = (0.03, 0.06)  # each as probable as those, for the interval alone
NEVER_CERTAIN = 1e-4  # smallest probability of either answer, if a share of the answers is broken
STANDARD_ERRORS = 1.96
TAIL = 0.025  # largest probability of a score further away than that, on each side
NEGLIGIBLE = 1e-6  # weight of an explanation


@dataclass(frozen=True)
class Explanation:
    """One way to explain the answers, and what it says of the sum of the unasked scores.

    Attributes
    ----------
    log_weight
        The logarithm of its chance times the probability of the answers.
    mean, variance
        Of the sum.
    only_possible
        Whether the interval allows for it and the estimate does not count with it.
    """

    log_weight: float
    mean: float
    variance: float
    only_possible: bool = False


@dataclass(frozen=True, eq=False)
class _Candidate:
    """A candidate's answers. `open_I`: the items that it was not asked."""

    given: Prior
    score_S: Array
    position_S: npt.NDArray[np.int64]
    open_I: Flags


def posterior(given: Prior, scores: npt.ArrayLike, positions: npt.ArrayLike) -> Estimate:
    """Return the expected full score of a candidate after its answers.

    Parameters
    ----------
    scores
        float[S] in [0, 1]; S may be 0.
    positions
        int[S], the distinct positions of the asked items.

    Raises
    ------
    ValueError
        Scores are outside [0, 1], or positions are out of range or repeated.
    """
    score_S, position_S = check_answers(given, scores, positions)
    items = len(given.design)
    open_I = np.ones(items, bool)
    open_I[position_S] = False
    count = int(open_I.sum())
    if count == 0:
        return Estimate(float(score_S.mean()), 0.0)
    from scipy import special

    found = list(_explanations(_Candidate(given, score_S, position_S, open_I)))

    def quantile(among: Sequence[Explanation], level: float) -> float:
        weight_K, mean_K, sd_K = _mixture(among)
        return _bisect(lambda x: float(special.ndtr((x - mean_K) / sd_K) @ weight_K), level, 0.0, float(count))

    middle = quantile([each for each in found if not each.only_possible], 0.5)
    low, high = quantile(found, TAIL), quantile(found, 1 - TAIL)
    error = max(middle - low, high - middle) / STANDARD_ERRORS
    return Estimate((float(score_S.sum()) + middle) / items, error / items)


def _explanations(candidate: _Candidate) -> Iterator[Explanation]:
    given, score_S = candidate.given, candidate.score_S
    stratum_I = given.strata
    if stratum_I is None:
        yield from _by_design(candidate, given, 1 - CHANCES["dead"])
    else:
        yield from _by_design(candidate, given, 1 - sum(CHANCES.values()))
        yield from _emerged(candidate, stratum_I)
        yield from _collapsed(candidate)
        if given.unrelated is not None:
            yield from _by_design(candidate, given.unrelated, CHANCES["unrelated"])
        yield _by_strata(candidate, stratum_I)
        yield _guesses(candidate)
    if not score_S.any():
        yield Explanation(math.log(CHANCES["dead"]), 0.0, 0.0)


def _by_design(
    candidate: _Candidate, given: Prior, chance: float, among_I: Flags | None = None
) -> Iterator[Explanation]:
    """Yield an explanation for each scale κ of a prior, of all items or only those `among_I`."""
    keep_I = np.ones(len(given.design), bool) if among_I is None else among_I
    asked_S = keep_I[candidate.position_S]
    scale_K, share_K = used_scales(given)
    answers = Answers.of(given.design, given.offset, [(candidate.score_S[asked_S], candidate.position_S[asked_S])])
    found = laplace(given.mean, given.covariance, scale_K, answers)
    open_I = candidate.open_I & keep_I
    design_UF, offset_U = given.design[open_I], given.offset[open_I]
    covariance_KFF = found.covariance[0]
    variance_KU = np.einsum("uf,kfg,ug->ku", design_UF, covariance_KFF, design_UF, optimize=True)
    p_KU = averaged_sigmoid(offset_U + found.mean[0] @ design_UF.T, variance_KU)
    spread_KU = p_KU * (1 - p_KU)
    slope_KF = spread_KU @ design_UF  # ∂ Σp / ∂u
    mean_K = p_KU.sum(1)
    known_K = np.einsum("kf,kfg,kg->k", slope_KF, covariance_KFF, slope_KF)
    # the delta method is too large for wide posteriors: a sum within [0, U] has at most this variance
    largest_K = mean_K * (p_KU.shape[1] - mean_K)
    variance_K = np.minimum(largest_K, known_K + spread_KU.sum(1))
    log_weight_K = math.log(chance) + np.log(share_K) + found.log_evidence[0]
    for log_weight, mean, variance in zip(log_weight_K, mean_K, variance_K, strict=True):
        yield Explanation(float(log_weight), float(mean), float(variance))


def _emerged(candidate: _Candidate, stratum_I: npt.NDArray[np.int64]) -> Iterator[Explanation]:
    """Yield the explanations with a rate of its own where no parent is right."""
    nowhere_I = stratum_I == 0
    if not nowhere_I.any():
        return
    rate = _free_rate(candidate, nowhere_I)
    for each in _by_design(candidate, candidate.given, CHANCES["emerged"], ~nowhere_I):
        yield Explanation(each.log_weight + rate.log_weight, each.mean + rate.mean, each.variance + rate.variance)


def _collapsed(candidate: _Candidate) -> Iterator[Explanation]:
    """Yield an explanation for each share of broken answers: P(right) = (1 − share)·p."""
    p_I = np.clip(candidate.given.probability, NEVER_CERTAIN, 1 - NEVER_CERTAIN)
    p_S, p_U, score_S = p_I[candidate.position_S], p_I[candidate.open_I], candidate.score_S
    for share in (*SLIGHTLY_BROKEN, *BROKEN_SHARES):
        left_S, left_U = (1 - share) * p_S, (1 - share) * p_U
        log_likelihood = float(score_S @ np.log(left_S) + (1 - score_S) @ np.log1p(-left_S))
        log_weight = math.log(CHANCES["collapsed"] / len(BROKEN_SHARES)) + log_likelihood
        variance = float((left_U * (1 - left_U)).sum())
        yield Explanation(log_weight, float(left_U.sum()), variance, share in SLIGHTLY_BROKEN)


def _by_strata(candidate: _Candidate, stratum_I: npt.NDArray[np.int64]) -> Explanation:
    """Return the explanation with an unknown rate in each stratum."""
    rates = [_free_rate(candidate, stratum_I == stratum) for stratum in np.unique(stratum_I)]
    log_weight = math.log(CHANCES["by strata"]) + sum(rate.log_weight for rate in rates)
    return Explanation(log_weight, sum(rate.mean for rate in rates), sum(rate.variance for rate in rates))


def _guesses(candidate: _Candidate) -> Explanation:
    """Return the explanation with one unknown rate."""
    rate = _free_rate(candidate, np.ones(len(candidate.given.design), bool))
    return replace(rate, log_weight=math.log(CHANCES["guesses"]) + rate.log_weight)


def _free_rate(candidate: _Candidate, inside_I: Flags) -> Explanation:
    """Return what a rate of right answers that is uniform on [0, 1] says of some items (beta-binomial)."""
    inside_S = candidate.score_S[inside_I[candidate.position_S]]
    right, wrong = 1 + float(inside_S.sum()), 1 + float((1 - inside_S).sum())
    count = int((candidate.open_I & inside_I).sum())
    rate = right / (right + wrong)
    variance = count * rate * (1 - rate) * (1 + (count - 1) / (right + wrong + 1))
    log_weight = math.lgamma(right) + math.lgamma(wrong) - math.lgamma(right + wrong)
    return Explanation(log_weight, count * rate, max(variance, 0.0))


def _mixture(found: Sequence[Explanation]) -> tuple[Array, Array, Array]:
    """float64[K] each: weights, means and standard deviations of the explanations that matter."""
    log_weight_K = np.array([each.log_weight for each in found])
    weight_K = np.exp(log_weight_K - log_weight_K.max())
    kept_K = weight_K > NEGLIGIBLE * weight_K.sum()
    sd_K = np.sqrt(np.maximum([each.variance for each in found], 1e-12))
    mean_K = np.array([each.mean for each in found])
    return weight_K[kept_K] / weight_K[kept_K].sum(), mean_K[kept_K], sd_K[kept_K]


def _bisect(function: Callable[[float], float], level: float, low: float, high: float) -> float:
    """Return where an increasing function reaches a level between two ends."""
    for _ in range(40):
        middle = 0.5 * (low + high)
        if function(middle) < level:
            low = middle
        else:
            high = middle
    return 0.5 * (low + high)
