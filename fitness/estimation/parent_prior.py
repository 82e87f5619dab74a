"""The default estimator: the full score of a merge from few answers, its parents' answers and an item bank.

A merge is rarely wrong where all its parents are right, and rarely right where none of them is. So its answers are
largely predictable, and the few answers it gives show how it deviates from the prediction. With design row xᵢ, whose
entries are computed from the parents' answers and by item response theory,

    P(right on item i) = σ(oᵢ + xᵢ·u),     u ~ N(m, κΛ),     κ ∈ {1, 4, 16, 64}                     (1)

and the score is the mean over all items of the answers given and the probabilities of the others. The posterior of u is
approximated by a normal distribution at its mode (Laplace) for each κ; the κ are averaged by their evidence. This gives
the prior heavy tails: a broken merge, or one that combines its parents' skills, is not shrunk towards the parents.

The prior, fixed before any answer; h is the share of right parents, d the parents' disagreement:

- intercept: such that the expected score is the parents' mean score, + d; sd √(0.25² + (2 d)²). Merges of parents that
  disagree tend to be better than the parents' mean, and vary more;
- 2h − 1: logit(1 − d) ± 0.5. A merge differs from its parents' common answer about as often as they differ;
- yₜ − h of each parent t: 0 ± 0.6. A merge can be closer to one parent;
- 1 − |2h − 1|: 0 ± 0.7. What a merge does where its parents disagree;
- the item's logit at the parents' mean ability (MERGE³'s linear inheritance, arXiv:2502.10436, without its fitted
  weights), standardised over the items: 1 ± 0.3. Standardising makes it robust to banks calibrated on models much
  weaker than the parents, because only the order and the relative spacing of the items matter.

Without a bank, this stratifies items by which parents are right. `learn` fits m and Λ to the candidates evaluated
so far (empirical Bayes). Scores within (0, 1) enter as a quasi-likelihood with dispersion φ.

Letters: T parents, I items, S asked items, F columns of the design.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from fitness.estimation.irt import ItemBank, ability_map, check_scores, sigmoid

Array = npt.NDArray[np.float64]
Positions = npt.NDArray[np.int64]

SCALES = (1.0, 4.0, 16.0, 64.0)  # κ in (1)
SHARES = (0.85, 0.1, 0.04, 0.01)
INTERCEPT_SD, INTERCEPT_PER_DISAGREEMENT, INTERCEPT_SD_PER_DISAGREEMENT = 0.25, 1.0, 2.0
AGREEMENT_SD, AGREEMENT_RANGE = 0.5, (0.5, 4.5)
PARENT_SD, MIXED_SD = 0.6, 0.7
LOGIT_SCALE, LOGIT_MEAN, LOGIT_SD, BANKS_DIFFER_SD = 1.7, 1.0, 0.3, 0.7
LOGIT_RANGE = 6.0
ONE_PARENT_DISAGREEMENT = 0.15  # a single parent does not show how far a merge deviates
UNINFORMED_SD = 1.5  # of the intercept without parents and bank, in logits
SMALLEST_DISPERSION = 0.02
MEAN_STRENGTH, COVARIANCE_STRENGTH = 2.0, 8.0  # weight of the prior in `learn`, in candidates
LEARN_FROM = 32  # latest candidates, because a search moves on


@dataclass(frozen=True, eq=False)
class Prior:
    """The prior of a candidate before any answer, as in (1).

    Attributes
    ----------
    design, offset
        float64[I, F] and float64[I].
    mean, covariance
        float64[F] and float64[F, F], of u for κ = 1.
    dispersion
        φ: 1 for 0/1 scores; less for scores within (0, 1), whose variance is φ p(1 − p).
    parents
        Number of parents it is based on.
    """

    design: Array
    offset: Array
    mean: Array
    covariance: Array
    dispersion: float = 1.0
    parents: int = 0

    @property
    def probability(self) -> Array:
        """float64[I]: the probability of a right answer, without the heavy tails."""
        return _marginal_probability(self, self.mean, self.covariance)


@dataclass(frozen=True, eq=False)
class Posterior:
    """The estimate of a candidate's scores after its answers.

    Attributes
    ----------
    value, standard_error
        Of the mean score over all I items.
    probability
        float64[I]: the expected score of each item; the answer itself where given.
    """

    value: float
    standard_error: float
    probability: Array


def prior(items: int, parents: npt.ArrayLike | None = None, banks: Sequence[ItemBank] = ()) -> Prior:
    """Return the prior of a candidate.

    Parameters
    ----------
    items
        I.
    parents
        float[T, I], the merged models' scores in [0, 1] on all items; T may be 0.
    banks
        Up to two banks of these items (2PL and multidimensional), in this order. Without parents only the first is
        used, and u is the ability.

    Raises
    ------
    ValueError
        Parents or banks have another number of items, or scores lie outside of [0, 1].
    """
    parent_TI = np.empty((0, items)) if parents is None else check_scores(parents)
    if parent_TI.ndim != 2 or parent_TI.shape[1] != items:
        raise ValueError(f"parents' scores have shape {parent_TI.shape}: give [parents, {items}]")
    for bank in banks:
        if len(bank.items) != items:
            raise ValueError(
                f"the item bank has {len(bank.items)} items and the task {items}: use ItemBank.select first"
            )
    if len(parent_TI):
        return _inherited_prior(parent_TI, banks)
    if banks:
        bank = banks[0]
        dimensions = bank.dimensions
        return Prior(bank.discrimination, -bank.difficulty, np.zeros(dimensions), np.eye(dimensions))
    return Prior(np.ones((items, 1)), np.zeros(items), np.zeros(1), np.full((1, 1), UNINFORMED_SD**2))


def disagreement(parents: Array) -> float:
    """Return two parents' mean absolute difference per item, in (0, 1); half an item keeps it above 0."""
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
    ability_D = np.mean([ability_map(bank, score_I) for score_I in parent_TI], axis=0)
    logit_I = np.clip(bank.logit(ability_D), -LOGIT_RANGE, LOGIT_RANGE)
    spread = float(logit_I.std())
    return np.zeros_like(logit_I) if spread < 1e-9 else LOGIT_SCALE * (logit_I - logit_I.mean()) / spread


def _dispersion(score_TI: Array) -> float:
    """The variance of the scores divided by that of 0/1 scores with the same mean; exactly 1 for 0/1 scores."""
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
    """Return E σ(x) for x ~ N(logit, variance), by the probit approximation (MacKay 1992)."""
    return sigmoid(logit / np.sqrt(1 + math.pi / 8 * variance))


def _marginal_probability(given: Prior, mean: Array, covariance: Array) -> Array:
    variance_I = np.einsum("if,fg,ig->i", given.design, covariance, given.design)
    return averaged_sigmoid(given.offset + given.design @ mean, variance_I)


@dataclass(frozen=True, eq=False)
class _Answers:
    """The answers of C candidates as arrays; `asked` is 0 where a candidate has fewer than S answers."""

    design: Array  # [C, S, F]
    offset: Array  # [C, S]
    score: Array  # [C, S]
    asked: Array  # [C, S]

    @classmethod
    def of(cls, given: Prior, answers: Sequence[tuple[Array, Positions]]) -> _Answers:
        asked_CS = np.zeros((len(answers), max(score_S.size for score_S, _ in answers)))
        score_CS, position_CS = np.zeros_like(asked_CS), np.zeros(asked_CS.shape, np.int64)
        for row, (score_S, position_S) in enumerate(answers):
            asked_CS[row, : score_S.size] = 1.0
            score_CS[row, : score_S.size], position_CS[row, : score_S.size] = score_S, position_S
        return cls(given.design[position_CS], given.offset[position_CS], score_CS, asked_CS)


@dataclass(frozen=True, eq=False)
class _Laplace:
    """Normal approximations of u for each of C candidates and K scales, and the posterior weights of the scales."""

    mean: Array  # [C, K, F]
    covariance: Array  # [C, K, F, F]
    share: Array  # [C, K]


def _laplace(given: Prior, answers: _Answers, start_CKF: Array | None = None) -> _Laplace:
    """Solve all candidates and scales at once: concave problems, by Newton's method with step halving."""
    score_CKS, asked_CKS = answers.score[:, None], answers.asked[:, None]
    design_CKSF = answers.design[:, None]
    scale_K = np.array(SCALES)
    precision_KFF = np.linalg.inv(given.covariance) / scale_K[:, None, None]

    def at(u_CKF: Array) -> tuple[Array, Array, Array]:
        """The objective, its gradient and its negative Hessian."""
        logit_CKS = answers.offset[:, None] + (design_CKSF @ u_CKF[..., None])[..., 0]
        off_CKF = u_CKF - given.mean
        pull_CKF = (precision_KFF @ off_CKF[..., None])[..., 0]
        log_likelihood_CKS = score_CKS * logit_CKS - np.logaddexp(0, logit_CKS)
        value_CK = (asked_CKS * log_likelihood_CKS).sum(-1) / given.dispersion - 0.5 * (off_CKF * pull_CKF).sum(-1)
        p_CKS = sigmoid(logit_CKS)
        residual_CKS = asked_CKS * (score_CKS - p_CKS) / given.dispersion
        gradient_CKF = (residual_CKS[..., None, :] @ design_CKSF)[..., 0, :] - pull_CKF
        weight_CKS = asked_CKS * p_CKS * (1 - p_CKS) / given.dispersion
        information_CKFF = (design_CKSF * weight_CKS[..., None]).swapaxes(-1, -2) @ design_CKSF + precision_KFF
        return value_CK, gradient_CKF, information_CKFF

    shape = (len(answers.score), len(scale_K), given.mean.size)
    u_CKF: Array = np.broadcast_to(given.mean if start_CKF is None else start_CKF, shape)
    value_CK, gradient_CKF, information_CKFF = at(u_CKF)
    for _ in range(50):
        step_CKF = np.linalg.solve(information_CKFF, gradient_CKF[..., None])[..., 0]
        size_CK = np.ones(shape[:2])
        while True:
            trial_CKF = u_CKF + size_CK[..., None] * step_CKF
            new = at(trial_CKF)
            worse_CK = (new[0] < value_CK) & (size_CK > 0)
            if not worse_CK.any():
                break
            size_CK = np.where(worse_CK, np.where(size_CK > 1e-4, size_CK / 2, 0.0), size_CK)
        u_CKF, (value_CK, gradient_CKF, information_CKFF) = trial_CKF, new
        if np.abs(size_CK[..., None] * step_CKF).max() < 1e-6:
            break
    covariance_CKFF: Array = np.linalg.inv(information_CKFF).astype(np.float64)
    prior_logdet_K = float(np.linalg.slogdet(given.covariance)[1]) + given.mean.size * np.log(scale_K)
    evidence_CK = value_CK + 0.5 * (np.linalg.slogdet(covariance_CKFF)[1] - prior_logdet_K)
    log_share_CK: Array = np.log(SHARES) + evidence_CK
    share_CK: Array = np.exp(log_share_CK - log_share_CK.max(-1, keepdims=True))
    return _Laplace(u_CKF, covariance_CKFF, share_CK / share_CK.sum(-1, keepdims=True))


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
        Scores lie outside of [0, 1], or positions are out of range or repeated.
    """
    score_S, position_S = _check_answers(given, scores, positions)
    items = len(given.design)
    unasked_I = np.ones(items, bool)
    unasked_I[position_S] = False
    design_UF = given.design[unasked_I]
    found = _laplace(given, _Answers.of(given, [(score_S, position_S)]))
    share = found.share[0]
    sums, variances, probability_U = [], [], np.zeros(len(design_UF))
    for mean_F, covariance_FF, weight in zip(found.mean[0], found.covariance[0], share, strict=True):
        p_U = _marginal_probability(given, mean_F, covariance_FF)[unasked_I]
        slope_F = design_UF.T @ (p_U * (1 - p_U))  # ∂ Σp / ∂u
        expected = float(p_U.sum())
        variance = float(slope_F @ covariance_FF @ slope_F) + given.dispersion * float((p_U * (1 - p_U)).sum())
        sums.append(expected)
        # the delta method is too large for wide posteriors: a sum within [0, U] has at most this variance
        variances.append(min(variance, expected * (p_U.size - expected)))
        probability_U += weight * p_U
    total = float(share @ np.array(sums))
    variance = float(share @ (np.array(variances) + (np.array(sums) - total) ** 2))
    probability_I = np.empty(items)
    probability_I[position_S], probability_I[unasked_I] = score_S, probability_U
    return Posterior((float(score_S.sum()) + total) / items, math.sqrt(variance) / items, probability_I)


def learn(given: Prior, evaluated: Sequence[tuple[npt.ArrayLike, npt.ArrayLike]], iterations: int = 10) -> Prior:
    """Return the prior after some candidates with the same parents: empirical Bayes by EM.

    m and Λ become the mean and the covariance of the latest 32 candidates' u, where the prior has the weight of 2
    candidates for m and of 8 for Λ.

    Parameters
    ----------
    evaluated
        (scores, positions) of each candidate, as in `posterior`, oldest first; no candidate needs all items.
    """
    answers = [_check_answers(given, scores, positions) for scores, positions in evaluated[-LEARN_FROM:]]
    answers = [(score_S, position_S) for score_S, position_S in answers if position_S.size]
    if not answers:
        return given
    side_by_side = _Answers.of(given, answers)
    scale_K = np.array(SCALES)
    current, start_CKF = given, None
    for _ in range(iterations):
        found = _laplace(current, side_by_side, start_CKF)
        start_CKF = found.mean
        weight_CK = found.share / scale_K
        total = MEAN_STRENGTH + weight_CK.sum()
        mean_F = (MEAN_STRENGTH * given.mean + np.einsum("ck,ckf->f", weight_CK, found.mean)) / total
        moved_F, off_CKF = mean_F - given.mean, found.mean - mean_F
        scatter_FF = COVARIANCE_STRENGTH * given.covariance + MEAN_STRENGTH * np.outer(moved_F, moved_F)
        scatter_FF = scatter_FF + np.einsum("ck,ckf,ckg->fg", weight_CK, off_CKF, off_CKF)
        scatter_FF = scatter_FF + np.einsum("ck,ckfg->fg", weight_CK, found.covariance)
        covariance_FF = scatter_FF / (COVARIANCE_STRENGTH + len(answers))
        change = np.abs(mean_F - current.mean).max()
        current = replace(given, mean=mean_F, covariance=0.5 * (covariance_FF + covariance_FF.T))
        if change < 1e-3:
            break
    return current
