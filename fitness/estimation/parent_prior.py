"""What is expected of a merge's 0/1 answers before it gives any: its parents' answers, an item bank, published merges.

A merge is rarely wrong where all its parents are right, and rarely right where none of them is. So its answers are
largely predictable, and the few answers it gives show how it deviates from the prediction. With design row xᵢ, whose
entries are computed from the parents' answers and by item response theory,

    P(right on item i) = σ(oᵢ + xᵢ·u),     u ~ N(m, κΛ)                                                    (1)

where κ is one of several scales: most merges are as different from each other as published ones are, some more. m and Λ
are those of published merges (`fitness.estimation.learnt_prior`), in the units of these guesses; h is the share of
right parents, d the parents' disagreement:

- intercept: such that the expected score is the parents' mean score, + d; sd √(0.25² + (2 d)²). Merges of parents that
  disagree tend to be better than the parents' mean, and vary more;
- 2h − 1: logit(1 − d) ± 0.5. A merge differs from its parents' common answer about as often as they differ;
- 1 − |2h − 1|: 0 ± 0.7. What a merge does where its parents disagree;
- the item's logit at the parents' mean ability (MERGE³'s linear inheritance, arXiv:2502.10436, without its fitted
  weights), standardised over the items: 1 ± 0.3. Standardising makes it robust to banks calibrated on models much
  weaker than the parents, because only the order and the relative spacing of the items matter;
- yₜ − h of each parent t, around 0. A merge can be closer to one parent.

`fitness.estimation.posterior` has what follows from answers, also for candidates that do not resemble their parents.
`learn` fits m and Λ to the candidates evaluated so far (empirical Bayes).

Letters: T parents, I items, S asked items, F columns of the design.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from fitness.estimation.irt import ItemBank, ability_map, check_scores, sigmoid
from fitness.estimation.laplace import Answers, averaged_sigmoid, laplace
from fitness.estimation.learnt_prior import SCALES, SHARES, WITH_BANK, WITHOUT_BANK, LearntPrior

Array = npt.NDArray[np.float64]
Positions = npt.NDArray[np.int64]

UNINFORMED_SHARES = (0.0, 0.85, 0.1, 0.04, 0.01)  # of the scales, without parents
INTERCEPT_SD, INTERCEPT_PER_DISAGREEMENT, INTERCEPT_SD_PER_DISAGREEMENT = 0.25, 1.0, 2.0
AGREEMENT_SD, AGREEMENT_RANGE = 0.5, (0.5, 4.5)
MIXED_SD = 0.7
LOGIT_SCALE, LOGIT_MEAN, LOGIT_SD = 1.7, 1.0, 0.3
LOGIT_RANGE = 6.0
ONE_PARENT_DISAGREEMENT = 0.15  # a single parent does not show how far a merge deviates
UNINFORMED_SD = 1.5  # of the intercept without parents and bank, in logits
MEAN_STRENGTH, COVARIANCE_STRENGTH = 2.0, 8.0  # weight of the prior in `learn`, in candidates


@dataclass(frozen=True, eq=False)
class Prior:
    """The prior of a candidate before any answer, as in (1).

    Attributes
    ----------
    design, offset
        float64[I, F] and float64[I].
    mean, covariance
        float64[F] and float64[F, F], of u for κ = 1.
    shares
        Weights of the scales κ, `fitness.estimation.learnt_prior.SCALES`.
    strata
        int[I]: 0 where no parent is right, 1 where some are, 2 where all are; None without parents.
    unrelated
        The prior of a model that these parents say nothing about; None if this prior is one.
    """

    design: Array
    offset: Array
    mean: Array
    covariance: Array
    shares: tuple[float, ...] = UNINFORMED_SHARES
    strata: Positions | None = None
    unrelated: Prior | None = None

    @property
    def probability(self) -> Array:
        """float64[I]: the probability of a right answer, without the heavy tails."""
        variance_I = np.einsum("if,fg,ig->i", self.design, self.covariance, self.design)
        return averaged_sigmoid(self.offset + self.design @ self.mean, variance_I)


def prior(items: int, parents: npt.ArrayLike | None = None, banks: Sequence[ItemBank] = ()) -> Prior:
    """Return the prior of a candidate.

    Parameters
    ----------
    items
        I.
    parents
        float[T, I], the merged models' answers on all items, 0 or 1; T may be 0.
    banks
        Up to two banks of these items (2PL and multidimensional), in this order. With parents the last is used; without
        only the first, and u is the ability.

    Raises
    ------
    ValueError
        Parents or banks have another number of items, or scores are outside [0, 1].
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
        inherited = from_guess(guess(parent_TI, banks), parent_TI, WITH_BANK if banks else WITHOUT_BANK)
        return replace(inherited, unrelated=prior(items, None, banks))
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


def strata(parent_TI: Array) -> Positions:
    """int[I]: 0 where no parent is right, 2 where all are, 1 elsewhere; of 0/1 answers."""
    share_I = parent_TI.mean(0)
    return np.where(share_I == 0, 0, np.where(share_I == 1, 2, 1)).astype(np.int64)


@dataclass(frozen=True, eq=False)
class Guess:
    """The columns that all merges have, and a rough prior of their coefficients, in whose units others are learnt.

    Attributes
    ----------
    columns
        float64[I, G].
    mean, sd
        float64[G]; the intercept's mean is relative to the one that gives the parents' mean score.
    """

    columns: Array
    mean: Array
    sd: Array


def guess(parent_TI: Array, banks: Sequence[ItemBank]) -> Guess:
    """Return intercept, agreement, mixed answers and, with banks, the bank's logit; see the top of this file."""
    share_I, d = parent_TI.mean(0), disagreement(parent_TI)
    columns: list[tuple[Array, float, float]] = [
        (
            np.ones_like(share_I),
            INTERCEPT_PER_DISAGREEMENT * d,
            math.hypot(INTERCEPT_SD, INTERCEPT_SD_PER_DISAGREEMENT * d),
        ),
        (2 * share_I - 1, float(np.clip(math.log((1 - d) / d), *AGREEMENT_RANGE)), AGREEMENT_SD),
        (1 - np.abs(2 * share_I - 1), 0.0, MIXED_SD),
    ]
    if banks:
        columns.append((_standardised_logit(banks[-1], parent_TI), LOGIT_MEAN, LOGIT_SD))
    return Guess(
        np.stack([values for values, _, _ in columns], axis=1),
        np.array([mean for _, mean, _ in columns]),
        np.array([sd for _, _, sd in columns]),
    )


def from_guess(guessed: Guess, parent_TI: Array, learnt: LearntPrior) -> Prior:
    """Return the prior of a merge of these parents that differs from them as `learnt` says."""
    share_I = parent_TI.mean(0)
    design = np.concatenate((guessed.columns, (parent_TI - share_I).T), axis=1)
    common, count = guessed.mean.size, guessed.mean.size + len(parent_TI)
    mean, covariance = np.zeros(count), learnt.parent_sd**2 * np.eye(count)
    mean[:common] = guessed.mean + guessed.sd * np.array(learnt.mean)
    covariance[:common, :common] = guessed.sd[:, None] * np.array(learnt.covariance) * guessed.sd
    mean[0] += _intercept_for(design[:, 1:] @ mean[1:], parent_TI)
    return Prior(design, np.zeros_like(share_I), mean, covariance, SHARES, strata(parent_TI))


def _standardised_logit(bank: ItemBank, parent_TI: Array) -> Array:
    ability_D = np.mean([ability_map(bank, score_I) for score_I in parent_TI], axis=0)
    logit_I = np.clip(bank.logit(ability_D), -LOGIT_RANGE, LOGIT_RANGE)
    spread = float(logit_I.std())
    return np.zeros_like(logit_I) if spread < 1e-9 else LOGIT_SCALE * (logit_I - logit_I.mean()) / spread


def _intercept_for(rest_I: Array, parent_TI: Array) -> float:
    """The intercept at which the mean probability is the parents' mean score, by bisection."""
    expected = (parent_TI.sum() + 0.5) / (parent_TI.size + 1)
    low, high = -30.0, 30.0
    for _ in range(60):
        middle = 0.5 * (low + high)
        if sigmoid(rest_I + middle).mean() < expected:
            low = middle
        else:
            high = middle
    return 0.5 * (low + high)


def check_answers(given: Prior, scores: npt.ArrayLike, positions: npt.ArrayLike) -> tuple[Array, Positions]:
    """Return a candidate's answers as arrays.

    Raises
    ------
    ValueError
        Scores are outside [0, 1], or positions are out of range or repeated.
    """
    score_S = check_scores(scores).ravel()
    position_S = np.asarray(positions, np.int64).ravel()
    items = len(given.design)
    if score_S.size != position_S.size:
        raise ValueError(f"{score_S.size} scores for {position_S.size} items: give one score per asked item")
    if position_S.size and not (position_S.min() >= 0 and position_S.max() < items):
        raise ValueError(f"asked items are outside 0 to {items - 1}: give positions within the task's items")
    if np.unique(position_S).size < position_S.size:
        raise ValueError("an item was asked twice: give each asked item once")
    return score_S, position_S


def learn(given: Prior, evaluated: Sequence[tuple[npt.ArrayLike, npt.ArrayLike]], iterations: int = 10) -> Prior:
    """Return the prior after some candidates with the same parents: empirical Bayes by EM.

    m and Λ become the mean and the covariance of the candidates' u, where the prior has the weight of 2
    candidates for m and of 8 for Λ.

    Parameters
    ----------
    evaluated
        (scores, positions) of each candidate, as in `check_answers`; no candidate needs all items.
    """
    answers = [check_answers(given, scores, positions) for scores, positions in evaluated]
    answers = [(score_S, position_S) for score_S, position_S in answers if position_S.size]
    if not answers:
        return given
    side_by_side = Answers.of(given.design, given.offset, answers)
    scale_K, shares = used_scales(given)
    current, start_CKF = given, None
    for _ in range(iterations):
        found = laplace(current.mean, current.covariance, scale_K, side_by_side, start_CKF)
        start_CKF = found.mean
        weight_CK = found.share(shares) / scale_K
        # relative weights: if all candidates are unlike published merges, they are still like each other
        relative_CK = weight_CK * len(answers) / weight_CK.sum()
        total = MEAN_STRENGTH + len(answers)
        mean_F = (MEAN_STRENGTH * given.mean + np.einsum("ck,ckf->f", relative_CK, found.mean)) / total
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


def used_scales(given: Prior) -> tuple[Array, Array]:
    """float64[K] each: the scales κ with a weight above 0, and their weights."""
    share_K = np.array(given.shares)
    return np.array(SCALES)[share_K > 0], share_K[share_K > 0]
