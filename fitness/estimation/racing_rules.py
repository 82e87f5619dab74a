"""Racing: items are asked in blocks, and candidates that are clearly not among the best are stopped.

A strategy needs the best `keep` of a generation (CMA-ES: the better half and its order). After each block, a candidate
is stopped if at least `keep` others are significantly better:

- `exact`: McNemar's test, the binomial test on items that only one of two candidates got right; for 0/1 scores;
- `sprt`: for 0/1 scores. The mixture e-value against "not worse", E = ∫ Π 2θ^y(1−θ)^(1−y) dθ over θ in (½, 1), which
  allows a check after every item without correction (Robbins 1970; Ville's inequality);
- `t`: paired t-test of the differences, for other scores; with a lower bound on their variance, because Student's
  distribution is only approximate for few items;
- `wilcoxon`: signed-rank test, for other scores with outliers;
- `posterior`: the candidates' estimates with their standard errors (`Race.update_estimates`). It uses the parents and
  the item bank, so it decides earlier. Of the candidates that it stops, a share of at most `error` would have been
  among the best `keep` after all items, as far as those standard errors are right. With an `indifference` it also stops
  candidates that are probably not among these and whose further answers are worth less than that: a wrong choice among
  candidates that are nearly equal costs little (value of information: Frazier, Powell and Dayanik, "A
  Knowledge-Gradient Policy for Sequential Information Collection", SIAM J. Control Optim. 47, 2008; indifference zones:
  Bechhofer, Ann. Math. Statist. 25, 1954).

With the first four, the probability that a given candidate of the true best `keep` is ever stopped is at most `error`:
such a stop needs at least one wrong decision among its C − 1 comparisons (Bonferroni), and tests repeated after each of
B blocks divide the error among the blocks.

Letters: C candidates, I items asked so far.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import InitVar, dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from fitness.results import Estimate

Array = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Test = Literal["auto", "exact", "sprt", "t", "wilcoxon"]

VARIANCE_FLOOR_ITEMS = 1.0  # pseudo-items with the range's square as squared difference, in the t-test
QUADRATURE_NODES = 41
LARGEST_CORRELATION = 0.9  # with few items, all candidates may look alike
DRAWS = 1000  # of the candidates' scores after all items


@dataclass
class Race:
    """One generation's race.

    Attributes
    ----------
    candidates
        C.
    keep
        How many of the best are needed, 1 to C.
    error
        Accepted probability, in (0, 1), of stopping a candidate that is among the best `keep`.
    looks
        How often the race is checked: the number of blocks without the last, after which stopping saves nothing.
    test
        `auto`: `exact` for 0/1 scores, `t` for others.
    indifference
        With `update_estimates`: what all checks together may be expected to cost, of the best candidate's score and of
        the mean score of the best `keep`; >= 0, in the unit of the scores.
    stopped
        bool[C]: the candidates that an earlier check has stopped; None: none.
    active
        bool[C]: which candidates are still in the race.
    """

    candidates: int
    keep: int
    error: float = 0.05
    looks: int = 1
    test: Test = "auto"
    indifference: float = 0.0
    stopped: InitVar[Sequence[bool] | None] = None
    active: Flags = field(init=False)

    def __post_init__(self, stopped: Sequence[bool] | None) -> None:
        if not 1 <= self.keep <= self.candidates:
            raise ValueError(f"keep is {self.keep}: give 1 to {self.candidates}, the number of candidates")
        if not 0 < self.error < 1:
            raise ValueError(f"error is {self.error}: give a probability between 0 and 1, such as 0.05")
        if self.looks < 1:
            raise ValueError(f"looks is {self.looks}: give the number of blocks, at least 1")
        if not 0 <= self.indifference < math.inf:
            raise ValueError(f"indifference is {self.indifference}: give a difference of scores >= 0, such as 0.003")
        if self.test not in ("auto", "exact", "sprt", "t", "wilcoxon"):
            raise ValueError(f"test is {self.test!r}: give auto, exact, sprt, t or wilcoxon")
        self.active = np.ones(self.candidates, bool) if stopped is None else ~np.array(stopped, bool)

    def update(self, scores: npt.ArrayLike) -> Flags:
        """Stop candidates that are beaten by at least `keep` others.

        Parameters
        ----------
        scores
            float[C, I]: all answers so far, NaN where a stopped candidate was not asked. Two candidates are compared on
            the items that both answered, so stopped ones are still compared with others.

        Returns
        -------
        stopped
            bool[C]: the candidates stopped by this call.

        Raises
        ------
        ValueError
            Wrong shape; an active candidate without an answer; a test for 0/1 scores with other scores.
        """
        score_CI = np.asarray(scores, np.float64)
        if score_CI.ndim != 2 or len(score_CI) != self.candidates or score_CI.shape[1] == 0:
            raise ValueError(f"scores have shape {score_CI.shape}: give [{self.candidates}, items], at least one item")
        if np.isnan(score_CI[self.active]).any():
            raise ValueError("an active candidate lacks answers: ask all active candidates the same items")
        known = score_CI[~np.isnan(score_CI)]
        binary = bool(np.isin(known, (0.0, 1.0)).all())
        test = ("exact" if binary else "t") if self.test == "auto" else self.test
        if test in ("exact", "sprt") and not binary:
            raise ValueError(f"test {test!r} is for 0/1 scores: use test='t' or 'wilcoxon'")
        level = self.error / max(self.candidates - 1, 1)
        if test != "sprt":
            level /= self.looks
        return self._stop(_beaten_by(score_CI, self.active, test, level, float(np.ptp(known))))

    def update_estimates(self, estimates: list[Estimate], correlation: float = 0.0, answered: float = 0.0) -> Flags:
        """Stop the worst candidates, of which a share of `error` is expected among the best `keep` after all items.

        With an `indifference`, stop also those that are probably not among these and whose further answers are worth
        less (`expected_loss`).

        An estimate changes by the rest of the answers as its variance falls: to `answered` times what it is now, if it
        is inversely proportional to the number of answers. What no further answer can tell apart needs no answers, so
        the change alone counts. A posterior probability needs no correction for the number of checks.

        Parameters
        ----------
        estimates
            Of all C candidates, also of stopped ones (from their answers).
        correlation
            Of two estimates' errors, in [0, 1). Common items cause the same errors in both (`common_correlation`); 0 is
            conservative.
        answered
            Share of the race's items that active candidates have answered, in [0, 1); 0 is conservative.

        Returns
        -------
        stopped
            bool[C]: the candidates stopped by this call.
        """
        if len(estimates) != self.candidates:
            raise ValueError(f"{len(estimates)} estimates for {self.candidates} candidates: give one for each")
        value_C = np.array([estimate.value for estimate in estimates])
        error_C = np.array([estimate.standard_error for estimate in estimates])
        if not (np.isfinite(value_C).all() and np.isfinite(error_C).all()):
            raise ValueError("an estimate is not finite: leave failed candidates out of the race")
        error_C = np.where(self.active, error_C * math.sqrt(1 - answered), 0.0)  # the estimates of others stay
        error_C = error_C * math.sqrt(1 - correlation)  # of differences
        chance_C = probability_among_best(value_C, error_C, self.keep)
        worst_C = np.argsort(np.where(self.active, chance_C, np.inf), kind="stable")
        mean_C = np.cumsum(chance_C[worst_C]) / np.arange(1, self.candidates + 1)
        doomed_C = np.zeros(self.candidates, bool)
        doomed_C[worst_C[: int((mean_C <= self.error).sum())]] = True
        if self.indifference > 0:
            order = worst_C[: int((self.active & (chance_C < 0.5)).sum())]
            loss_N = expected_loss(value_C, error_C, self.keep, order)
            # each check may cost the same, so that all together cost no more than the indifference
            doomed_C[order[: int((np.maximum.accumulate(loss_N) <= self.indifference / self.looks).sum())]] = True
        return self._stop(np.where(doomed_C, self.keep, 0))

    def _stop(self, beaten_C: npt.NDArray[np.int64]) -> Flags:
        stopped_C = self.active & (beaten_C >= self.keep)
        self.active = self.active & ~stopped_C
        return stopped_C


def _beaten_by(score_CI: Array, active_C: Flags, test: str, level: float, spread: float) -> npt.NDArray[np.int64]:
    """int[C]: the number of others that beat each active candidate at this level."""
    beaten_C = np.zeros(len(score_CI), np.int64)
    for row in np.flatnonzero(active_C):
        difference_CI = score_CI - score_CI[row]  # NaN where the other was not asked
        if test in ("exact", "sprt"):
            better_C, worse_C = (difference_CI > 0).sum(1), (difference_CI < 0).sum(1)
            if test == "exact":
                significant_C = _binomial_tail(better_C, worse_C) <= level
            else:
                significant_C = log_e_value(better_C, worse_C) >= -math.log(level)
        else:
            p_value = _t_test if test == "t" else _signed_rank_test
            p_C = [p_value(other[~np.isnan(other)], spread) for other in difference_CI]
            significant_C = np.array(p_C) <= level
        significant_C[row] = False
        beaten_C[row] = int(significant_C.sum())
    return beaten_C


def _binomial_tail(better: npt.NDArray[np.int64], worse: npt.NDArray[np.int64]) -> Array:
    """One-sided exact p-value of `better` or more successes in better + worse fair coin flips."""
    from scipy import stats

    return np.asarray(stats.binom.sf(better - 1, better + worse, 0.5), np.float64)


def log_e_value(better: npt.ArrayLike, worse: npt.ArrayLike) -> Array:
    """Logarithm of E of the mixture SPRT, θ uniform on (½, 1): 2^(n+1) B(k+1, n−k+1) P(Beta(k+1, n−k+1) > ½)."""
    from scipy import special

    k, misses = np.asarray(better, np.float64), np.asarray(worse, np.float64)
    tail = special.betainc(misses + 1, k + 1, 0.5)  # = P(Beta(k+1, misses+1) > ½)
    log_integral = special.betaln(k + 1, misses + 1) + np.log(np.maximum(tail, 1e-300))
    return np.asarray((k + misses + 1) * math.log(2) + log_integral, np.float64)


def _t_test(difference: Array, spread: float) -> float:
    """One-sided p-value of "the mean difference is at most 0"."""
    from scipy import special

    count = difference.size
    if count < 2 or spread == 0:
        return 1.0
    mean = float(difference.mean())
    square = float(((difference - mean) ** 2).sum()) + VARIANCE_FLOOR_ITEMS * spread**2 / 4
    error = math.sqrt(square / (count - 1) / count)
    return float(special.stdtr(count - 1, -mean / error))


def _signed_rank_test(difference: Array, _: float) -> float:
    """One-sided p-value of Wilcoxon's signed-rank test; 1 if no items differ.

    Normal approximation with continuity correction: given the ranks, the signs are random, so the sum of the positive
    ranks has mean Σr/2 and variance Σr²/4, with or without ties.
    """
    from scipy import special, stats

    moved = difference[difference != 0]
    if moved.size == 0:
        return 1.0
    rank = stats.rankdata(np.abs(moved))
    excess = float(rank[moved > 0].sum() - rank.sum() / 2 - 0.5)
    return float(special.ndtr(-excess / math.sqrt(float((rank**2).sum()) / 4)))


def common_correlation(scores: npt.ArrayLike) -> float:
    """Correlation of two candidates' answers to an item, in [0, 0.9]: hard items are hard for both.

    The intraclass correlation ICC(C,1) of a two-way layout (Shrout & Fleiss 1979). The common part of the errors of
    means over the same items cancels in their difference.

    Parameters
    ----------
    scores
        float[C, I], NaN where not asked; candidates without all answers are ignored.
    """
    score_CI = np.asarray(scores, np.float64)
    score_CI = score_CI[~np.isnan(score_CI).any(1)]
    count, items = score_CI.shape
    if count < 2 or items < 2:
        return 0.0
    mean_I, mean_C = score_CI.mean(0), score_CI.mean(1)
    residual_CI = score_CI - mean_I - mean_C[:, None] + score_CI.mean()
    between = count * float(mean_I.var(ddof=1))
    within = float((residual_CI**2).sum()) / ((items - 1) * (count - 1))
    total = between + (count - 1) * within
    return float(np.clip((between - within) / total, 0.0, LARGEST_CORRELATION)) if total > 0 else 0.0


def probability_among_best(value: Array, error: Array, keep: int) -> Array:
    """float64[C]: the probability that each of C independent normal values is among the `keep` largest.

    Integrates over the candidate's own value; given it, the number of others above is a sum of independent Bernoulli
    variables, whose distribution is built up one candidate at a time.
    """
    from scipy import special

    count = len(value)
    if keep >= count:
        return np.ones(count)
    node_Q, weight_Q = np.polynomial.hermite_e.hermegauss(QUADRATURE_NODES)
    weight_Q = weight_Q / weight_Q.sum()
    safe = np.maximum(error, 1e-9)
    chance = np.empty(count)
    for row in range(count):
        own_Q = value[row] + safe[row] * node_Q
        number_QK = np.zeros((QUADRATURE_NODES, keep))  # P(exactly k others above), k < keep
        number_QK[:, 0] = 1
        for other in range(count):
            if other == row:
                continue
            above_Q = special.ndtr((value[other] - own_Q) / safe[other])[:, None]
            shifted_QK = np.concatenate((np.zeros((QUADRATURE_NODES, 1)), number_QK[:, :-1]), axis=1)
            number_QK = number_QK * (1 - above_Q) + shifted_QK * above_Q
        chance[row] = float(weight_Q @ number_QK.sum(1))
    return chance


def expected_loss(value: Array, error: Array, keep: int, order: npt.NDArray[np.int64]) -> Array:
    """float64[N]: what it is expected to cost if the first n candidates of `order` answer no more.

    The scores after all items are independent and normal. Candidates that answer no more are ranked by their expected
    scores, the others by their scores. The cost is the larger of two losses: of the best candidate's score, and of the
    mean score of the best `keep`. It is averaged over draws that are the same in every call.

    Parameters
    ----------
    value, error
        float64[C]: expected scores and their standard errors.
    order
        int[N], distinct candidates.
    """
    score_DC = value + error * np.random.default_rng(0).normal(size=(DRAWS, len(value)))
    rank_DC = score_DC.copy()
    best, kept = float(score_DC.max(1).mean()), _mean_of_best(score_DC, score_DC, keep)
    loss_N = np.empty(len(order))
    for n, candidate in enumerate(order):
        rank_DC[:, candidate] = value[candidate]
        loss_N[n] = max(best - _mean_of_best(score_DC, rank_DC, 1), kept - _mean_of_best(score_DC, rank_DC, keep))
    return loss_N


def _mean_of_best(score_DC: Array, rank_DC: Array, keep: int) -> float:
    """Return the mean score of the `keep` that rank highest, over all draws."""
    chosen_DK = np.argpartition(-rank_DC, keep - 1, axis=1)[:, :keep]
    return float(np.take_along_axis(score_DC, chosen_DK, axis=1).mean())
