"""What a merge inherits: the full score of a candidate from few answers, its parents' answers and an item bank.

The default estimator. A merge rarely errs where all its parents are right, and rarely finds what none of them
knows; so its answers are mostly known before it is asked, and the few that it gives tell how it deviates. With
design row xᵢ, whose entries follow from the parents' answers and from item response theory,

    P(right on item i) = σ(oᵢ + xᵢ·u),     u ~ N(m, κΛ),     κ ∈ {1, 4, 16, 64}                     (1)

and the score is the mean over all items of the answers given and of the probabilities of the others. The
posterior of u is a normal one at its mode (Laplace) for each κ; the κ are averaged by their evidence, which
gives the prior heavy tails: a broken merge, or one that composes its parents' skills, is not shrunk to them.

The prior, fixed before any answer; h is the share of right parents, d the parents' disagreement:

- intercept: such that the expected score is the parents' mean score, + d; sd √(0.35² + (2.5 d)²). Merges of
  parents that disagree tend to be better than their mean, and vary more;
- 2h − 1: logit(1 − d) ± 0.5. A merge leaves its parents' common answer about as often as they leave each other;
- yₜ − h of each parent t: 0 ± 0.6. A merge may be closer to one parent;
- 1 − |2h − 1|: 0 ± 0.7, what it does where they disagree;
- the item's logit at the parents' mean ability (MERGE³'s linear inheritance, arXiv:2502.10436, without its
  fitted weights), standardised over the items: 1 ± 0.3. Standardising makes it robust to banks calibrated on
  models much weaker than the parents, as only the order and the relative spacing of the items enter.

Strata by which parents are right are the special case without a bank. `learn` moves m and Λ to what the candidates
evaluated so far were like (empirical Bayes). Scores in [0, 1] enter as a quasi-likelihood with dispersion φ.

Letters: T parents, I items, S asked items, F columns of the design.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from fitness.irt import ItemBank, ability_map, check_scores, sigmoid

Array = npt.NDArray[np.float64]
Positions = npt.NDArray[np.int64]

SCALES = (1.0, 4.0, 16.0, 64.0)  # κ in (1)
SHARES = (0.7, 0.2, 0.08, 0.02)
INTERCEPT_SD, INTERCEPT_PER_DISAGREEMENT, INTERCEPT_SD_PER_DISAGREEMENT = 0.35, 1.0, 2.5
AGREEMENT_SD, AGREEMENT_RANGE = 0.5, (0.5, 4.5)
PARENT_SD, MIXED_SD = 0.6, 0.7
LOGIT_SCALE, LOGIT_MEAN, LOGIT_SD, BANKS_DIFFER_SD = 1.7, 1.0, 0.3, 0.7
LOGIT_RANGE = 6.0
ONE_PARENT_DISAGREEMENT = 0.15  # a single parent says nothing of how far a merge strays
UNINFORMED_SD = 1.5  # of the intercept's logit with neither parents nor a bank
SMALLEST_DISPERSION = 0.02
MEAN_STRENGTH, COVARIANCE_STRENGTH = 2.0, 8.0  # candidates that the prior is worth in `learn`
LEARN_FROM = 32  # latest candidates: a search moves on


@dataclass(frozen=True, eq=False)
class Prior:
    """What is expected of a candidate before it is asked anything, as in (1).

    Attributes
    ----------
    design, offset
        float64[I, F] and float64[I].
    mean, covariance
        float64[F] and float64[F, F], of u for κ = 1.
    dispersion
        φ: 1 for 0/1 scores; less for scores within (0, 1), whose variance is φ p(1 − p).
    parents
        How many it rests on.
    """

    design: Array
    offset: Array
    mean: Array
    covariance: Array
    dispersion: float = 1.0
    parents: int = 0

    @property
    def probability(self) -> Array:
        """float64[I]: the probability of being right, without the heavy tails."""
        return _marginal_probability(self, self.mean, self.covariance)


@dataclass(frozen=True, eq=False)
class Posterior:
    """What is known of a candidate after its answers.

    Attributes
    ----------
    value, standard_error
        Of the mean score over all I items.
    probability
        float64[I]: expected score of each item; the answers themselves where given.
    """

    value: float
    standard_error: float
    probability: Array


def prior(items: int, parents: npt.ArrayLike | None = None, banks: Sequence[ItemBank] = ()) -> Prior:
    """The prior of a candidate.

    Parameters
    ----------
    items
        I.
    parents
        float[T, I], the scores in [0, 1] of the models that are merged, on all items; T may be 0.
    banks
        None, one or two (2PL and multidimensional) banks of these items, in this order. Without parents only
        the first counts, and u is the ability.

    Raises
    ------
    ValueError
        Parents or banks of another number of items, or scores outside of [0, 1].
    """
    parent_TI = np.empty((0, items)) if parents is None else check_scores(parents)
    if parent_TI.ndim != 2 or parent_TI.shape[1] != items:
        raise ValueError(f"parents' scores have shape {parent_TI.shape}: give [parents, {items}]")
    for bank in banks:
        if len(bank.items) != items:
            raise ValueError(f"the item bank has {len(bank.items)} items, the task {items}: use ItemBank.select first")
    if len(parent_TI):
        return _inherited_prior(parent_TI, banks)
    if banks:
        bank = banks[0]
        dimensions = bank.dimensions
        return Prior(bank.discrimination, -bank.difficulty, np.zeros(dimensions), np.eye(dimensions))
    return Prior(np.ones((items, 1)), np.zeros(items), np.zeros(1), np.full((1, 1), UNINFORMED_SD**2))


def disagreement(parents: Array) -> float:
    """Mean absolute difference between two parents' scores of an item, in (0, 1): kept off 0 by half an item."""
    count, items = parents.shape
    if count < 2:
        return ONE_PARENT_DISAGREEMENT
    pairs = [np.abs(parents[i] - parents[j]).mean() for i in range(count) for j in range(i)]
    return float((np.mean(pairs) * items + 0.5) / (items + 1))


def _inherited_prior(parent_TI: Array, banks: Sequence[ItemBank]) -> Prior:
    share_I, d = parent_TI.mean(0), disagreement(parent_TI)
    columns: list[tuple[Array, float, float]] = []  # values, prior mean, prior sd
    intercept_sd = math.hypot(INTERCEPT_SD, INTERCEPT_SD_PER_DISAGREEMENT * d)
    columns.append((np.ones_like(share_I), 0.0, intercept_sd))
    agreement = float(np.clip(math.log((1 - d) / d), *AGREEMENT_RANGE))
    columns.append((2 * share_I - 1, agreement, AGREEMENT_SD))
    if len(parent_TI) > 1:
        columns += [(score_I - share_I, 0.0, PARENT_SD) for score_I in parent_TI]
        columns.append((1 - np.abs(2 * share_I - 1), 0.0, MIXED_SD))
    logits = [_standardised_logit(bank, parent_TI) for bank in banks]
    if logits:
        columns.append((np.mean(logits, axis=0), LOGIT_MEAN, LOGIT_SD))
        columns += [(0.5 * (logits[0] - logit), 0.0, BANKS_DIFFER_SD) for logit in logits[1:]]

    design = np.stack([values for values, _, _ in columns], axis=1)
    mean = np.array([centre for _, centre, _ in columns])
    covariance = np.diag([sd**2 for _, _, sd in columns])
    result = Prior(design, np.zeros_like(share_I), mean, covariance, _dispersion(parent_TI), len(parent_TI))
    expected = (parent_TI.mean() * parent_TI.size + 0.5) / (parent_TI.size + 1)
    mean[0] = _intercept_for(result, expected) + INTERCEPT_PER_DISAGREEMENT * d
    return replace(result, mean=mean)


def _standardised_logit(bank: ItemBank, parent_TI: Array) -> Array:
    ability_D = np.mean([ability_map(bank, score_I).mean for score_I in parent_TI], axis=0)
    logit_I = np.clip(bank.logit(ability_D), -LOGIT_RANGE, LOGIT_RANGE)
    spread = float(logit_I.std())
    return np.zeros_like(logit_I) if spread < 1e-9 else LOGIT_SCALE * (logit_I - logit_I.mean()) / spread


def _dispersion(score_TI: Array) -> float:
    """Variance of the scores over that of 0/1 scores with the same mean; exactly 1 for 0/1 scores."""
    mean = float(score_TI.mean())
    if np.isin(score_TI, (0.0, 1.0)).all() or not 0 < mean < 1:
        return 1.0
    return float(np.clip(score_TI.var() / (mean * (1 - mean)), SMALLEST_DISPERSION, 1.0))


def _intercept_for(given: Prior, expected: float) -> float:
    """The intercept (column 0) at which the prior's mean probability is `expected`, by bisection."""
    low, high = -30.0, 30.0
    variance_I = np.einsum("if,fg,ig->i", given.design, given.covariance, given.design)
    rest_I = given.design[:, 1:] @ given.mean[1:]
    for _ in range(60):
        middle = 0.5 * (low + high)
        if averaged_sigmoid(rest_I + middle, variance_I).mean() < expected:
            low = middle
        else:
            high = middle
    return 0.5 * (low + high)


def averaged_sigmoid(logit: Array, variance: Array) -> Array:
    """E σ(x) for x ~ N(logit, variance): the usual probit approximation (MacKay 1992)."""
    return sigmoid(logit / np.sqrt(1 + math.pi / 8 * variance))


def _marginal_probability(given: Prior, mean: Array, covariance: Array) -> Array:
    variance_I = np.einsum("if,fg,ig->i", given.design, covariance, given.design)
    return averaged_sigmoid(given.offset + given.design @ mean, variance_I)


@dataclass(frozen=True, eq=False)
class _Laplace:
    """Normal approximation for one κ, with its log evidence (up to a constant)."""

    mean: Array
    covariance: Array
    log_evidence: float


def _laplace(given: Prior, score_S: Array, position_S: Positions, scale: float) -> _Laplace:
    design_SF, offset_S = given.design[position_S], given.offset[position_S]
    covariance_FF = scale * given.covariance
    precision_FF = np.linalg.inv(covariance_FF)

    def objective(u_F: Array) -> float:
        logit_S, off_F = offset_S + design_SF @ u_F, u_F - given.mean
        likelihood = float(score_S @ logit_S - np.logaddexp(0, logit_S).sum()) / given.dispersion
        return likelihood - 0.5 * float(off_F @ precision_FF @ off_F)

    u_F, value = given.mean.copy(), objective(given.mean)
    for _ in range(50):  # concave: Newton with step halving
        p_S = sigmoid(offset_S + design_SF @ u_F)
        gradient_F = design_SF.T @ (score_S - p_S) / given.dispersion - precision_FF @ (u_F - given.mean)
        information_FF = (design_SF * (p_S * (1 - p_S) / given.dispersion)[:, None]).T @ design_SF + precision_FF
        step_F = np.linalg.solve(information_FF, gradient_F)
        size = 1.0
        while (trial := objective(u_F + size * step_F)) < value and size > 1e-4:
            size /= 2
        if size <= 1e-4:
            break
        u_F, value = u_F + size * step_F, trial
        if np.abs(step_F).max() < 1e-6:
            break
    p_S = sigmoid(offset_S + design_SF @ u_F)
    information_FF = (design_SF * (p_S * (1 - p_S) / given.dispersion)[:, None]).T @ design_SF + precision_FF
    posterior_FF = np.linalg.inv(information_FF)
    gain = np.linalg.slogdet(posterior_FF)[1] - np.linalg.slogdet(covariance_FF)[1]
    return _Laplace(u_F, posterior_FF, value + 0.5 * float(gain))


def _mixture(given: Prior, score_S: Array, position_S: Positions) -> tuple[list[_Laplace], Array]:
    """The approximations for all κ, and the posterior shares of these."""
    parts = [_laplace(given, score_S, position_S, scale) for scale in SCALES]
    log_share = np.log(SHARES) + np.array([part.log_evidence for part in parts])
    share = np.exp(log_share - log_share.max())
    return parts, share / share.sum()


def _check_answers(given: Prior, scores: npt.ArrayLike, positions: npt.ArrayLike) -> tuple[Array, Positions]:
    score_S = check_scores(scores).ravel()
    position_S = np.asarray(positions, np.int64).ravel()
    items = len(given.design)
    if score_S.size != position_S.size:
        raise ValueError(f"{score_S.size} scores for {position_S.size} items: give one score per asked item")
    if position_S.size and not (position_S.min() >= 0 and position_S.max() < items):
        raise ValueError(f"asked items lie outside of 0 to {items - 1}: give positions within the task's items")
    if np.unique(position_S).size < position_S.size:
        raise ValueError("an item was asked twice: give each asked item once")
    return score_S, position_S


def posterior(given: Prior, scores: npt.ArrayLike, positions: npt.ArrayLike) -> Posterior:
    """Expected full score of a candidate after its answers.

    Parameters
    ----------
    scores
        float[S] in [0, 1]; S may be 0.
    positions
        int[S], which of the I items were asked; each once.

    Raises
    ------
    ValueError
        Scores outside of [0, 1], or positions that do not fit.
    """
    score_S, position_S = _check_answers(given, scores, positions)
    items = len(given.design)
    unasked_I = np.ones(items, bool)
    unasked_I[position_S] = False
    design_UF = given.design[unasked_I]
    parts, share = _mixture(given, score_S, position_S)
    sums, variances, probability_U = [], [], np.zeros(len(design_UF))
    for part, weight in zip(parts, share, strict=True):
        p_U = _marginal_probability(given, part.mean, part.covariance)[unasked_I]
        slope_F = design_UF.T @ (p_U * (1 - p_U))  # ∂ Σp / ∂u
        expected = float(p_U.sum())
        variance = float(slope_F @ part.covariance @ slope_F) + given.dispersion * float((p_U * (1 - p_U)).sum())
        sums.append(expected)
        # the delta method overshoots for wide posteriors: a sum within [0, U] has at most this variance
        variances.append(min(variance, expected * (p_U.size - expected)))
        probability_U += weight * p_U
    total = float(share @ np.array(sums))
    variance = float(share @ (np.array(variances) + (np.array(sums) - total) ** 2))
    probability_I = np.empty(items)
    probability_I[position_S], probability_I[unasked_I] = score_S, probability_U
    return Posterior((float(score_S.sum()) + total) / items, math.sqrt(variance) / items, probability_I)


def learn(given: Prior, evaluated: Sequence[tuple[npt.ArrayLike, npt.ArrayLike]], iterations: int = 10) -> Prior:
    """The prior after some candidates of the same parents: empirical Bayes by EM.

    m and Λ move to the mean and the covariance of what the latest 32 candidates were like; the prior is worth 2 of
    them for m and 8 for Λ.

    Parameters
    ----------
    evaluated
        (scores, positions) of each candidate, as in `posterior`, oldest first; none of them needs all items.
    """
    answers = [_check_answers(given, scores, positions) for scores, positions in evaluated[-LEARN_FROM:]]
    answers = [(score_S, position_S) for score_S, position_S in answers if position_S.size]
    if not answers:
        return given
    count, current = len(answers), given
    for _ in range(iterations):
        weighted_mean_F, weight = MEAN_STRENGTH * given.mean, MEAN_STRENGTH
        mixtures = [_mixture(current, score_S, position_S) for score_S, position_S in answers]
        for parts, share in mixtures:
            for part, part_share, scale in zip(parts, share, SCALES, strict=True):
                weighted_mean_F = weighted_mean_F + part_share / scale * part.mean
                weight += part_share / scale
        mean_F = weighted_mean_F / weight
        moved_F = mean_F - given.mean
        scatter_FF = COVARIANCE_STRENGTH * given.covariance + MEAN_STRENGTH * np.outer(moved_F, moved_F)
        for parts, share in mixtures:
            for part, part_share, scale in zip(parts, share, SCALES, strict=True):
                off_F = part.mean - mean_F
                scatter_FF = scatter_FF + part_share / scale * (np.outer(off_F, off_F) + part.covariance)
        covariance_FF = scatter_FF / (COVARIANCE_STRENGTH + count)
        change = np.abs(mean_F - current.mean).max()
        current = replace(given, mean=mean_F, covariance=0.5 * (covariance_FF + covariance_FF.T))
        if change < 1e-3:
            break
    return current
