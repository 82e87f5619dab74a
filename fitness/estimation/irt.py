"""Item response theory: the difficulty and discrimination of items, and the ability of models.

    P(model j right on item i) = σ(aᵢ·θⱼ − bᵢ)                                              (1)

with aᵢ, θⱼ ∈ ℝᴰ: the two-parameter logistic model (2PL; Birnbaum 1968) for D = 1, its compensatory
multidimensional version (MIRT; Reckase 2009) for D > 1. The sign convention is that of tinyBenchmarks
(arXiv:2402.14992) and MERGE³ (arXiv:2502.10436). Parameters from py-irt >= 0.5, whose logit is Σ a(θ − b),
cannot be used.

Scores may be any number in [0, 1]; log-likelihoods are then fractional, y log P + (1−y) log(1−P).

Letters: J calibration models, I items of the bank, S asked items, D dimensions, Q quadrature nodes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

LOGIT_BOUND = 30.0  # as tinyBenchmarks' item_curve; σ(30) = 1 − 1e-13


@dataclass(frozen=True)
class ItemPriors:
    """Normal priors of the item parameters. Abilities are N(0, I), which fixes the scale.

    Attributes
    ----------
    log_discrimination_mean, log_discrimination_sd
        Of log a in the 2PL model: discriminations are positive.
    discrimination_sd
        Of each coordinate of a in the multidimensional model, around 0; signs are free.
    difficulty_sd
        Of b, around 0, in both models.
    """

    log_discrimination_mean: float = 0.0
    log_discrimination_sd: float = 0.5
    discrimination_sd: float = 1.0
    difficulty_sd: float = 3.0


@dataclass(frozen=True, eq=False)
class ItemBank:
    """Item parameters, and the abilities of the models they were calibrated on.

    Attributes
    ----------
    items
        Item ids; length I.
    discrimination
        float64[I, D], a in (1).
    difficulty
        float64[I], b in (1).
    abilities
        float64[J, D], the calibration models' abilities.
    facts
        Further information (priors, number of models, source); plain JSON.
    """

    items: tuple[str, ...]
    discrimination: Array
    difficulty: Array
    abilities: Array
    facts: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        count = len(self.items)
        if (
            self.discrimination.ndim != 2
            or self.discrimination.shape[0] != count
            or self.difficulty.shape != (count,)
            or self.abilities.ndim != 2
            or self.abilities.shape[1] != self.discrimination.shape[1]
        ):
            raise ValueError(
                f"item bank: {count} items, discrimination {self.discrimination.shape}, difficulty "
                f"{self.difficulty.shape}, abilities {self.abilities.shape}: give [I, D], [I] and [J, D]"
            )
        if not all(np.isfinite(array).all() for array in (self.discrimination, self.difficulty, self.abilities)):
            raise ValueError("item bank: parameters contain NaN or infinity: fit it again")

    @property
    def dimensions(self) -> int:
        """D."""
        return int(self.discrimination.shape[1])

    def logit(self, ability: npt.ArrayLike) -> Array:
        """float64[I]: the logit of being right at an ability float[D]."""
        logit_I: Array = self.discrimination @ np.atleast_1d(ability) - self.difficulty
        return logit_I.clip(-LOGIT_BOUND, LOGIT_BOUND)

    def probability(self, ability: npt.ArrayLike) -> Array:
        """float64[I]: the probability of being right at an ability float[D] (1)."""
        return sigmoid(self.logit(ability))

    def select(self, items: Sequence[str]) -> ItemBank:
        """Return the bank of these items, in this order.

        Raises
        ------
        ValueError
            An item is not in the bank.
        """
        position = {item: index for index, item in enumerate(self.items)}
        unknown = [item for item in items if item not in position]
        if unknown:
            raise ValueError(
                f"item bank: {len(unknown)} of {len(items)} items are not in it ({unknown[0]!r}, ...): "
                "fit the items of this task"
            )
        index = np.fromiter((position[item] for item in items), np.int64, len(items))
        return ItemBank(
            tuple(items), self.discrimination[index], self.difficulty[index], self.abilities, dict(self.facts)
        )


def sigmoid(x: Array) -> Array:
    """Return 1 / (1 + e⁻ˣ), without overflow."""
    return 0.5 * (1.0 + np.tanh(0.5 * x))


def check_scores(scores: npt.ArrayLike, missing: bool = False) -> Array:
    """Return scores as float64, all in [0, 1]; NaN is allowed only with `missing`.

    Raises
    ------
    ValueError
        Scores are outside [0, 1], or some are missing without `missing`.
    """
    array = np.asarray(scores, np.float64)
    known = array[~np.isnan(array)]
    if known.size < array.size and not missing:
        raise ValueError("scores contain NaN: leave failed items out")
    if known.size and (known.min() < 0 or known.max() > 1):
        raise ValueError(f"scores are in [{known.min():.3g}, {known.max():.3g}]: rescale them to [0, 1] first")
    return array


def _calibration_scores(scores: npt.ArrayLike, items: Sequence[str] | None) -> tuple[Array, tuple[str, ...]]:
    score_JI = check_scores(scores, missing=True)
    if score_JI.ndim != 2 or min(score_JI.shape) == 0:
        raise ValueError(f"calibration scores have shape {score_JI.shape}: give [models, items], at least one of each")
    names = tuple(map(str, range(score_JI.shape[1]))) if items is None else tuple(map(str, items))
    if len(names) != score_JI.shape[1]:
        raise ValueError(f"{len(names)} item ids for {score_JI.shape[1]} columns: give one id per column")
    return score_JI, names


def fit_2pl(
    scores: npt.ArrayLike,
    items: Sequence[str] | None = None,
    priors: ItemPriors | None = None,
    nodes: int = 41,
    tolerance: float = 1e-3,
    max_iterations: int = 200,
) -> ItemBank:
    """Fit the 2PL model by marginal maximum a posteriori (EM; Bock & Aitkin 1981).

    The E step integrates the abilities out on a grid of `nodes` points in [−5, 5]; the M step takes Newton steps in
    (log a, b) for all items at once. 300 models × 2,000 items take a few seconds on one core.

    Parameters
    ----------
    scores
        float[J, I] in [0, 1]; NaN where a model was not asked.
    items
        Item ids; by default "0", "1", ...
    tolerance
        Stop when no parameter changes by more than this in one iteration.

    Returns
    -------
    bank
        With D = 1 and the models' EAP abilities.

    Raises
    ------
    ValueError
        No models or items, or scores outside of [0, 1].
    """
    score_JI, names = _calibration_scores(scores, items)
    priors = priors or ItemPriors()
    asked_JI = ~np.isnan(score_JI)
    right_JI = np.where(asked_JI, score_JI, 0.0)
    asked_JI = asked_JI.astype(np.float64)
    node_Q = np.linspace(-5, 5, nodes)
    log_weight_Q = -0.5 * node_Q**2

    count_I = asked_JI.sum(0)
    share_I = (right_JI.sum(0) + 0.5) / (count_I + 1)
    log_a_I = np.full(len(names), priors.log_discrimination_mean)
    b_I = -np.log(share_I / (1 - share_I)) * 1.2  # a marginal logit is flatter than the logit given the ability
    for _ in range(max_iterations):
        posterior_JQ = _node_posterior(np.exp(log_a_I), b_I, node_Q, log_weight_Q, right_JI, asked_JI)
        right_IQ, asked_IQ = right_JI.T @ posterior_JQ, asked_JI.T @ posterior_JQ
        before = np.concatenate((log_a_I, b_I))
        for _ in range(3):
            log_a_I, b_I = _newton_step(log_a_I, b_I, node_Q, right_IQ, asked_IQ, priors)
        if np.abs(np.concatenate((log_a_I, b_I)) - before).max() < tolerance:
            break
    posterior_JQ = _node_posterior(np.exp(log_a_I), b_I, node_Q, log_weight_Q, right_JI, asked_JI)
    facts = {"model": "2PL", "models": len(score_JI), "priors": asdict(priors)}
    return ItemBank(names, np.exp(log_a_I)[:, None], b_I, (posterior_JQ @ node_Q)[:, None], facts)


def _node_posterior(
    a_I: Array, b_I: Array, node_Q: Array, log_weight_Q: Array, right_JI: Array, asked_JI: Array
) -> Array:
    """float64[J, Q]: each model's posterior over the nodes."""
    logit_IQ = a_I[:, None] * node_Q - b_I[:, None]
    # log P = logit − log(1 + e^logit), log(1−P) = −log(1 + e^logit)
    log_posterior_JQ = right_JI @ logit_IQ - asked_JI @ np.logaddexp(0, logit_IQ) + log_weight_Q
    log_posterior_JQ -= log_posterior_JQ.max(1, keepdims=True)
    posterior_JQ: Array = np.exp(log_posterior_JQ)
    posterior_JQ /= posterior_JQ.sum(1, keepdims=True)
    return posterior_JQ


def _newton_step(
    log_a_I: Array, b_I: Array, node_Q: Array, right_IQ: Array, asked_IQ: Array, priors: ItemPriors
) -> tuple[Array, Array]:
    """One (Fisher-scoring) step of all items in x = log a and b, at most 1 in each."""
    a_I = np.exp(log_a_I)
    p_IQ = sigmoid(a_I[:, None] * node_Q - b_I[:, None])
    residual_IQ, weight_IQ = right_IQ - asked_IQ * p_IQ, asked_IQ * p_IQ * (1 - p_IQ)
    slope_IQ = a_I[:, None] * node_Q  # ∂logit/∂x
    precision_x, precision_b = priors.log_discrimination_sd**-2, priors.difficulty_sd**-2
    gradient_x = (residual_IQ * slope_IQ).sum(1) - precision_x * (log_a_I - priors.log_discrimination_mean)
    gradient_b = -residual_IQ.sum(1) - precision_b * b_I
    h_xx = (weight_IQ * slope_IQ**2).sum(1) + precision_x
    h_xb = -(weight_IQ * slope_IQ).sum(1)
    h_bb = weight_IQ.sum(1) + precision_b
    determinant = h_xx * h_bb - h_xb**2
    step_x = (h_bb * gradient_x - h_xb * gradient_b) / determinant
    step_b = (h_xx * gradient_b - h_xb * gradient_x) / determinant
    return log_a_I + np.clip(step_x, -1, 1), b_I + np.clip(step_b, -1, 1)


def fit_mirt(
    scores: npt.ArrayLike,
    dimensions: int = 5,
    items: Sequence[str] | None = None,
    priors: ItemPriors | None = None,
    max_iterations: int = 500,
) -> ItemBank:
    """Fit the D-dimensional model by joint maximum a posteriori (L-BFGS).

    Abilities and item parameters are optimised together, which is biased with few models, but fast and, with the
    priors, stable. Axes are defined up to a rotation. The fit is deterministic: it starts from the principal components
    of the scores.

    Parameters
    ----------
    scores
        float[J, I] in [0, 1]; NaN where a model was not asked.
    dimensions
        D; at most min(J, I).

    Raises
    ------
    ValueError
        No models or items, scores outside of [0, 1], or a D too large for the data.
    """
    from scipy import optimize

    score_JI, names = _calibration_scores(scores, items)
    priors = priors or ItemPriors()
    models, count = score_JI.shape
    if not 1 <= dimensions <= min(models, count):
        raise ValueError(f"dimensions is {dimensions}: give 1 to {min(models, count)} for {models} models")
    asked_JI = ~np.isnan(score_JI)
    right_JI = np.where(asked_JI, score_JI, 0.0)
    asked_JI = asked_JI.astype(np.float64)
    precision_a, precision_b = priors.discrimination_sd**-2, priors.difficulty_sd**-2
    cuts = np.cumsum([models * dimensions, count * dimensions])

    def loss_and_gradient(x: Array) -> tuple[float, Array]:
        theta_JD = x[: cuts[0]].reshape(models, dimensions)
        a_ID = x[cuts[0] : cuts[1]].reshape(count, dimensions)
        b_I = x[cuts[1] :]
        logit_JI = theta_JD @ a_ID.T - b_I
        p_JI = sigmoid(logit_JI)
        loss = float((asked_JI * np.logaddexp(0, logit_JI)).sum() - (right_JI * logit_JI).sum())
        loss += 0.5 * float((theta_JD**2).sum() + precision_a * (a_ID**2).sum() + precision_b * (b_I**2).sum())
        error_JI = asked_JI * p_JI - right_JI
        gradients = (
            error_JI @ a_ID + theta_JD,
            error_JI.T @ theta_JD + precision_a * a_ID,
            -error_JI.sum(0) + precision_b * b_I,
        )
        return loss, np.concatenate([gradient.ravel() for gradient in gradients])

    share_I = (right_JI.sum(0) + 0.5) / (asked_JI.sum(0) + 1)
    left, scale, right = np.linalg.svd(asked_JI * (right_JI - share_I), full_matrices=False)
    theta_JD = left[:, :dimensions] * np.sqrt(models)
    a_ID = 4 * right[:dimensions].T * (scale[:dimensions] / np.sqrt(models))  # p has slope p(1−p) <= 1/4
    start = np.concatenate((theta_JD.ravel(), a_ID.ravel(), -np.log(share_I / (1 - share_I))))
    result = optimize.minimize(
        loss_and_gradient, start, jac=True, method="L-BFGS-B", options={"maxiter": max_iterations, "maxcor": 20}
    )
    theta_JD = result.x[: cuts[0]].reshape(models, dimensions)
    a_ID = result.x[cuts[0] : cuts[1]].reshape(count, dimensions)
    facts = {"model": "MIRT", "dimensions": dimensions, "models": models, "priors": asdict(priors)}
    return ItemBank(names, a_ID, result.x[cuts[1] :], theta_JD, facts)


def _asked(bank: ItemBank, scores: npt.ArrayLike, positions: npt.ArrayLike | None) -> tuple[Array, Array, Array]:
    """Scores float64[S], a float64[S, D] and b float64[S] of the asked items."""
    score_S = check_scores(scores).ravel()
    index_S = np.arange(len(bank.items)) if positions is None else np.asarray(positions, np.int64).ravel()
    if score_S.size != index_S.size:
        raise ValueError(f"{score_S.size} scores for {index_S.size} items: give one score per asked item")
    return score_S, bank.discrimination[index_S], bank.difficulty[index_S]


def _prior(
    bank: ItemBank, mean: npt.ArrayLike | None, precision: float | npt.ArrayLike
) -> tuple[Array, npt.NDArray[np.float64]]:
    mean_D = np.zeros(bank.dimensions) if mean is None else np.asarray(mean, np.float64).reshape(bank.dimensions)
    precision_DD = np.asarray(precision, np.float64)
    if precision_DD.ndim == 0:
        precision_DD = float(precision_DD) * np.eye(bank.dimensions)
    if np.linalg.eigvalsh(precision_DD).min() <= 0:
        raise ValueError("the ability's prior precision must be positive: give a number above 0, such as 0.1")
    return mean_D, precision_DD


def ability_map(
    bank: ItemBank,
    scores: npt.ArrayLike,
    positions: npt.ArrayLike | None = None,
    prior_mean: npt.ArrayLike | None = None,
    prior_precision: float | npt.ArrayLike = 1.0,
) -> Array:
    """float64[D]: the ability that maximises the posterior.

    Parameters
    ----------
    scores
        float[S] in [0, 1]; S may be 0, which gives the prior mean.
    positions
        int[S], positions of the asked items in the bank; by default all I items.
    prior_mean, prior_precision
        Normal prior: float[D] (default 0) and a number > 0 or a matrix float[D, D].
    """
    score_S, a_SD, b_S = _asked(bank, scores, positions)
    mean_D, precision_DD = _prior(bank, prior_mean, prior_precision)

    def loss(theta_D: Array) -> float:
        logit_S = a_SD @ theta_D - b_S
        offset_D = theta_D - mean_D
        return float(np.logaddexp(0, logit_S).sum() - score_S @ logit_S + 0.5 * offset_D @ precision_DD @ offset_D)

    theta_D: Array = mean_D.copy()
    value = loss(theta_D)
    for _ in range(100):  # the loss is strictly convex, so Newton steps with halving converge
        p_S = sigmoid(a_SD @ theta_D - b_S)
        gradient_D = a_SD.T @ (p_S - score_S) + precision_DD @ (theta_D - mean_D)
        hessian_DD = (a_SD * (p_S * (1 - p_S))[:, None]).T @ a_SD + precision_DD
        step_D = np.linalg.solve(hessian_DD, gradient_D)
        size = 1.0
        while (trial := loss(theta_D - size * step_D)) > value and size > 1e-6:
            size /= 2
        if size <= 1e-6:
            break
        theta_D, value = theta_D - size * step_D, trial
        if np.abs(step_D).max() < 1e-8:
            break
    return theta_D


@dataclass(frozen=True, eq=False)
class ItemFit:
    """Mean squared standardised residuals of each item, float64[I]: 1 where the model holds.

    `infit` weights models by the item's information about them; `outfit` weights all models equally, so that a single
    surprising answer is visible. Below 0.7 an item is more regular than the model; above 1.3 it measures something
    else.
    """

    infit: Array
    outfit: Array


def item_fit(bank: ItemBank, scores: npt.ArrayLike) -> ItemFit:
    """Return how well the model fits each item, on the models it was calibrated on (Wright & Masters 1982).

    Parameters
    ----------
    scores
        float[J, I], of the models whose abilities the bank has, in the same order; NaN where not asked.
    """
    score_JI = check_scores(scores, missing=True)
    if score_JI.shape != (len(bank.abilities), len(bank.items)):
        raise ValueError(
            f"scores have shape {score_JI.shape}, the bank has {len(bank.abilities)} models and {len(bank.items)} "
            "items: give the scores it was calibrated on"
        )
    p_JI = np.clip(sigmoid(bank.abilities @ bank.discrimination.T - bank.difficulty), 1e-6, 1 - 1e-6)
    variance_JI = np.where(np.isnan(score_JI), np.nan, p_JI * (1 - p_JI))
    square_JI = (score_JI - p_JI) ** 2
    return ItemFit(np.nansum(square_JI, 0) / np.nansum(variance_JI, 0), np.nanmean(square_JI / variance_JI, 0))
