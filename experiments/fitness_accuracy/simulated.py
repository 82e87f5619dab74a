"""Merges that are simulated from the learnt prior: the least possible error, and items chosen by simulation.

*The least error.* If merges are distributed as the prior says, and an estimator knows that and its candidate is one of
them, nothing else that is computed from the same answers has a smaller expected absolute error than the median of its
posterior.

*Items by simulation.* `fitness.estimation.subset.greedy` reduces the variance of the score under one explanation, and
`checks` are added by rule. Here candidates are drawn from all explanations of `fitness.estimation.posterior`; each step
asks the item that most reduces the posterior standard deviation of the score, on average over candidates that are drawn
to be judged, with the others as the posterior's particles.

Letters: M simulated candidates, J judged ones, I items, F columns of a prior's design, K scales.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from experiments.fitness_accuracy.learn import NARROWED, WIDER
from fitness.estimation.irt import sigmoid
from fitness.estimation.learnt_prior import SCALES
from fitness.estimation.parent_prior import Prior
from fitness.estimation.posterior import BROKEN_SHARES, NEVER_CERTAIN
from fitness.estimation.subset import greedy

Array = npt.NDArray[np.float64]
Positions = npt.NDArray[np.int64]

ALIKE, EMERGED, BROKEN, GUESSES = 260, 40, 60, 20  # simulated candidates of each kind
UNLIKE = (0.02, 0.045, 0.008)  # chance of the last three kinds among the particles
JUDGED, UNLIKE_JUDGED = 100, (0.006, 0.012, 0.002)  # candidates to be judged, and the same chances among them
BY_SIMULATION = 30  # items; the posterior of more answers rests on too few particles
NEARLY_BEST = 0.05  # how much less than the best item another may gain and be asked as well


def as_learnt(given: Prior) -> Prior:
    """Return the distribution of published merges itself: not narrowed, without additional weight on wide scales."""
    share_K = np.maximum(np.array(given.shares) - WIDER, 0.0)
    return replace(given, covariance=given.covariance / NARROWED, shares=tuple((share_K / share_K.sum()).tolist()))


def probabilities(given: Prior, count: int, rng: np.random.Generator) -> Array:
    """float64[count, I]: of right answers, of merges drawn from a prior."""
    scale = np.sqrt(np.array(SCALES))[rng.choice(len(SCALES), count, p=given.shares)]
    off = rng.standard_normal((count, given.mean.size)) @ np.linalg.cholesky(given.covariance).T
    return np.asarray(sigmoid(given.offset + (given.mean + scale[:, None] * off) @ given.design.T))


def items_by_simulation(given: Prior, count: int, rng: np.random.Generator) -> Positions:
    """Return items chosen one by one, the first by simulation, and if more are wanted the others by `greedy`."""
    right_MI, kind_M = _candidates(given, rng)
    weight_M, judged_M = _weights(kind_M, UNLIKE), _weights(kind_M, UNLIKE_JUDGED)
    truth_J = rng.choice(len(right_MI), JUDGED, p=judged_M)
    answer_JI = rng.random((JUDGED, right_MI.shape[1])) < right_MI[truth_J]
    log_weight_JM = np.tile(np.log(weight_M), (JUDGED, 1))
    log_weight_JM[np.arange(JUDGED), truth_J] = -np.inf  # a candidate is no particle of its own posterior
    noise_MI, log_right_MI, log_wrong_MI = right_MI * (1 - right_MI), np.log(right_MI), np.log1p(-right_MI)
    asked: list[int] = []
    while len(asked) < min(count, BY_SIMULATION):
        gain_I = _gain(log_weight_JM, right_MI, noise_MI, asked)
        item = int(rng.choice(np.flatnonzero(gain_I >= (1 - NEARLY_BEST) * gain_I.max())))
        log_weight_JM += np.where(answer_JI[:, [item]], log_right_MI[:, item], log_wrong_MI[:, item])
        asked.append(item)
    return greedy(given, count, rng, asked)


def _candidates(given: Prior, rng: np.random.Generator) -> tuple[Array, Positions]:
    """Return float64[M, I], the probabilities of right answers, and int[M], each candidate's kind."""
    alike_MI, emerged_MI = probabilities(given, ALIKE, rng), probabilities(given, EMERGED, rng)
    if given.strata is not None:
        emerged_MI[:, given.strata == 0] = _rates(EMERGED, rng)
    broken_MI = (1 - np.resize(BROKEN_SHARES, BROKEN))[:, None] * given.probability
    guess_MI = np.broadcast_to(_rates(GUESSES, rng), (GUESSES, len(given.design)))
    kind_M = np.repeat(np.arange(4), (ALIKE, EMERGED, BROKEN, GUESSES))
    found = np.concatenate((alike_MI, emerged_MI, broken_MI, guess_MI))
    return np.clip(found, NEVER_CERTAIN, 1 - NEVER_CERTAIN), kind_M


def _rates(count: int, rng: np.random.Generator) -> Array:
    """float64[count, 1]: evenly over (0, 1), in random order."""
    return ((rng.permutation(count) + 0.5) / count)[:, None]


def _weights(kind_M: Positions, unlike: tuple[float, ...]) -> Array:
    """float64[M]: weights that give each kind its chance."""
    chance = np.array((1 - sum(unlike), *unlike)) / np.bincount(kind_M)
    weight_M = chance[kind_M]
    return np.asarray(weight_M / weight_M.sum())


def _gain(log_weight_JM: Array, right_MI: Array, noise_MI: Array, asked: list[int]) -> Array:
    """float64[I]: how much asking each item reduces the standard deviations of the judged candidates' scores, added up.

    An answer reduces the variance of the sum of the open answers by Cov(yᵢ, Σ y)² / Var(yᵢ).
    """
    open_I = np.ones(right_MI.shape[1], bool)
    open_I[asked] = False
    weight_JM = np.exp(log_weight_JM - log_weight_JM.max(1, keepdims=True))
    weight_JM /= weight_JM.sum(1, keepdims=True)
    sum_M = right_MI[:, open_I].sum(1)
    right_JI, mean_J = weight_JM @ right_MI, weight_JM @ sum_M
    with_sum_JI = weight_JM @ (sum_M[:, None] * right_MI + noise_MI) - mean_J[:, None] * right_JI
    less_JI = with_sum_JI**2 / np.maximum(right_JI * (1 - right_JI), NEVER_CERTAIN)
    variance_J = weight_JM @ (sum_M**2 + noise_MI[:, open_I].sum(1)) - mean_J**2
    left_JI = np.sqrt(np.maximum(variance_J[:, None] - less_JI, 0.0))
    gain_I = (np.sqrt(np.maximum(variance_J, 0.0))[:, None] - left_JI).sum(0)
    return np.where(open_I, gain_I, -np.inf)
