"""From abilities to scores: predictions of a model's answers to items it was not asked, by item response theory.

Maximum-likelihood abilities and p-IRT as published: tinyBenchmarks (arXiv:2402.14992) and MERGE³ (arXiv:2502.10436, its
code Mergenetic).

Letters: T parents, J other models, I items of the bank, S asked items, U items not asked, D ability dimensions.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from fitness.estimation.irt import LOGIT_BOUND, ItemBank, sigmoid
from fitness.results import Estimate

Array = npt.NDArray[np.float64]

PUBLISHED_EPSILON = 1e-10  # inside the logarithms


def _published_loss(logit_S: Array, score_S: Array) -> float:
    p_S = sigmoid(np.clip(logit_S, -LOGIT_BOUND, LOGIT_BOUND))
    right, wrong = np.log(p_S + PUBLISHED_EPSILON), np.log(1 - p_S + PUBLISHED_EPSILON)
    return -float(score_S @ right + (1 - score_S) @ wrong)


def likeliest_ability(bank: ItemBank, scores: Array, positions: npt.NDArray[np.int64]) -> Array:
    """float64[D]: maximum-likelihood ability by BFGS from 0, without a prior; it diverges if all answers are right."""
    from scipy import optimize

    a_SD, b_S = bank.discrimination[positions], bank.difficulty[positions]

    def loss(theta_D: Array) -> float:
        return _published_loss(a_SD @ theta_D - b_S, scores)

    return np.asarray(optimize.minimize(loss, np.zeros(bank.dimensions), method="BFGS").x, np.float64)


def likeliest_mixture(bank: ItemBank, abilities: Array, scores: Array, positions: npt.NDArray[np.int64]) -> Array:
    """float64[T]: λ in θ = Σ λₜ θₜ by maximum likelihood: BFGS from 1/T, without a prior or a simplex constraint."""
    from scipy import optimize

    slope_ST, b_S = bank.discrimination[positions] @ abilities.T, bank.difficulty[positions]

    def loss(share_T: Array) -> float:
        return _published_loss(slope_ST @ share_T - b_S, scores)

    start = np.full(len(abilities), 1 / len(abilities))
    return np.asarray(optimize.minimize(loss, start, method="BFGS").x, np.float64)


def with_predictions(
    bank: ItemBank,
    ability: Array,
    directions: Array,
    prior_precision: float,
    score_S: Array,
    position_S: npt.NDArray[np.int64],
    first_term: float,
) -> Estimate:
    """τ·(first term) + (1 − τ)·(mean prediction of the other items), and its error.

    The error includes the variance of the other items and, by the delta method, that of the ability along `directions`
    float64[D, K] under a prior with this precision.
    """
    items = len(bank.items)
    unasked_I = np.ones(items, bool)
    unasked_I[position_S] = False
    p_I = bank.probability(ability)
    weight_I = p_I * (1 - p_I)
    slope_IK = bank.discrimination @ directions
    information_KK = (slope_IK[position_S] * weight_I[position_S, None]).T @ slope_IK[position_S]
    covariance_KK = np.linalg.inv(information_KK + max(prior_precision, 1e-3) * np.eye(directions.shape[1]))
    gradient_K = slope_IK[unasked_I].T @ weight_I[unasked_I]
    variance = float(gradient_K @ covariance_KK @ gradient_K + weight_I[unasked_I].sum()) / items**2
    value = score_S.size / items * first_term + float(p_I[unasked_I].sum()) / items
    return Estimate(value, math.sqrt(variance))


def p_irt(bank: ItemBank, score_S: Array, position_S: npt.NDArray[np.int64]) -> Estimate:
    """p-IRT: answers where given, predictions at the maximum-likelihood ability elsewhere."""
    ability_D = likeliest_ability(bank, score_S, position_S)
    directions = np.eye(bank.dimensions)
    return with_predictions(bank, ability_D, directions, 0.0, score_S, position_S, float(score_S.mean()))


def validation_error(bank: ItemBank, scores: Array, models: int = 40) -> float:
    """Return the mean absolute error of p-IRT with half the items asked.

    Parameters
    ----------
    scores
        float64[J, I] of other models, of which up to `models` are used.
    """
    rng = np.random.default_rng(0)
    items = len(bank.items)
    errors = []
    for score_I in scores[rng.permutation(len(scores))[:models]]:
        half = np.sort(rng.choice(items, max(items // 2, 1), replace=False))
        errors.append(abs(p_irt(bank, score_I[half], half).value - float(score_I.mean())))
    return float(np.mean(errors))
