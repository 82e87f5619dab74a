"""The estimators: from the scores of some items to the score of the task, with its standard error.

Each takes a candidate's scores, the positions of the items it was asked, and `EstimatorInputs`. The default is
`inherited`; published ones are implemented as published.

To add one, write the function and register it at the end of this file.

Letters: T parents, J other models, I items, S asked items, U items not asked, D ability dimensions.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from fitness.estimation import regression
from fitness.estimation.inputs import EstimatorInputs
from fitness.estimation.irt import ItemBank, ability_map, check_scores
from fitness.estimation.irt_predictions import likeliest_mixture, with_predictions
from fitness.estimation.irt_predictions import p_irt as p_irt_score
from fitness.estimation.posterior import posterior
from fitness.estimation.registry import Estimator, register_estimator
from fitness.estimation.subset import STRATUM_PROBABILITY, parent_strata
from fitness.results import Estimate, mean

Array = npt.NDArray[np.float64]


def _answers(
    scores: npt.ArrayLike, positions: npt.ArrayLike, inputs: EstimatorInputs, *, any_scores: bool = False
) -> tuple[Array, npt.NDArray[np.int64]]:
    score_S = (np.asarray(scores, np.float64) if any_scores else check_scores(scores)).ravel()
    position_S = np.asarray(positions, np.int64).ravel()
    if score_S.size == 0 or score_S.size != position_S.size:
        raise ValueError(
            f"{score_S.size} scores for {position_S.size} items: give one score per item, and at least one"
        )
    if position_S.min() < 0 or position_S.max() >= inputs.items:
        raise ValueError(f"asked items are outside 0 to {inputs.items - 1}: give positions within the task's items")
    if np.unique(position_S).size < position_S.size:
        raise ValueError("an item was asked twice: give each asked item once")
    return score_S, position_S


def subset_mean(scores: npt.ArrayLike, positions: npt.ArrayLike, inputs: EstimatorInputs) -> Estimate:
    """`mean` of a random subset, with a standard error times √(1 − S/I): 0 if all items were asked."""
    score_S, _ = _answers(scores, positions, inputs, any_scores=True)
    estimate = mean(score_S)
    open_share = 1 - score_S.size / inputs.items
    return Estimate(estimate.value, estimate.standard_error * math.sqrt(open_share) if open_share else 0.0)


def stratified_mean(scores: npt.ArrayLike, positions: npt.ArrayLike, inputs: EstimatorInputs) -> Estimate:
    """Mean of the strata's means, weighted by their sizes; a stratum without answers takes the overall mean."""
    score_S, position_S = _answers(scores, positions, inputs)
    stratum_I = parent_strata(inputs.parent_scores) if inputs.strata is None else inputs.strata
    overall = mean(score_S)
    value = variance = 0.0
    for stratum in np.unique(stratum_I):
        size = int((stratum_I == stratum).sum())
        inside_S = score_S[stratum_I[position_S] == stratum]
        part = mean(inside_S) if inside_S.size else overall
        value += size / inputs.items * part.value
        variance += (size / inputs.items * part.standard_error) ** 2 * (1 - inside_S.size / size)
    return Estimate(value, math.sqrt(variance))


def anchor_mean(scores: npt.ArrayLike, positions: npt.ArrayLike, inputs: EstimatorInputs) -> Estimate:
    """Σ w y with the anchors' weights (tinyBenchmarks); the plain mean for other subsets.

    The error is that of a mean over the effective number of items, 1/Σw². It is approximate, because anchors are not
    drawn at random.
    """
    score_S, position_S = _answers(scores, positions, inputs)
    weight_S = _weights(position_S, inputs)
    count = float(1 / (weight_S**2).sum())
    value = float(weight_S @ score_S)
    centre = (value * count + 0.5) / (count + 1)
    return Estimate(value, math.sqrt(centre * (1 - centre) / (count + 2)))


def _weights(position_S: npt.NDArray[np.int64], inputs: EstimatorInputs) -> Array:
    if inputs.weights is None:
        return np.full(position_S.size, 1 / position_S.size)
    missing = [int(position) for position in position_S if int(position) not in inputs.weights]
    if missing:
        raise ValueError(f"item {missing[0]} is not among the anchors: ask the anchors' positions")
    weight_S: Array = np.array([inputs.weights[int(position)] for position in position_S])
    weight_S /= weight_S.sum()
    return weight_S


# As published: tinyBenchmarks (arXiv:2402.14992) and MERGE³ (arXiv:2502.10436, its code Mergenetic) ---------------

PUBLISHED_MIX = 0.5  # gmp-IRT's c: the paper uses a heuristic, its code this number


def p_irt(scores: npt.ArrayLike, positions: npt.ArrayLike, inputs: EstimatorInputs) -> Estimate:
    """p-IRT as published: the answers given, and predictions at the maximum-likelihood ability for the other items."""
    score_S, position_S = _answers(scores, positions, inputs)
    return p_irt_score(inputs.bank, score_S, position_S)


def p_irt_map(scores: npt.ArrayLike, positions: npt.ArrayLike, inputs: EstimatorInputs) -> Estimate:
    """p-IRT with the maximum a posteriori ability under N(0, I)."""
    score_S, position_S = _answers(scores, positions, inputs)
    ability_D = ability_map(inputs.bank, score_S, position_S)
    directions = np.eye(inputs.bank.dimensions)
    return with_predictions(inputs.bank, ability_D, directions, 1.0, score_S, position_S, float(score_S.mean()))


def gp_irt(scores: npt.ArrayLike, positions: npt.ArrayLike, inputs: EstimatorInputs) -> Estimate:
    """gp-IRT as published: ξ·(anchor mean) + (1 − ξ)·(p-IRT), ξ = b²/(b² + v/(4n)).

    b is p-IRT's `validation_error`, v the mean variance of a model's scores.
    """
    score_S, position_S = _answers(scores, positions, inputs)
    bias = inputs.measured_p_irt_error
    variance = float(inputs.other_models_scores.var(axis=1).mean())
    share = bias**2 / (bias**2 + variance / (4 * score_S.size)) if bias > 0 else 0.0
    return _blend(share, anchor_mean(score_S, position_S, inputs), p_irt(score_S, position_S, inputs))


def _blend(share: float, first: Estimate, second: Estimate) -> Estimate:
    """share·first + (1 − share)·second; both use the same answers, so their errors add linearly."""
    value = share * first.value + (1 - share) * second.value
    return Estimate(value, share * first.standard_error + (1 - share) * second.standard_error)


def mp_irt(scores: npt.ArrayLike, positions: npt.ArrayLike, inputs: EstimatorInputs) -> Estimate:
    """mp-IRT as published (MERGE³): p-IRT at θ = Σ λₜ θₜ, parents' θₜ and λ by maximum likelihood.

    Its first term is the anchor-weighted mean.
    """
    score_S, position_S = _answers(scores, positions, inputs)
    abilities_TD = inputs.likeliest_abilities
    share_T = likeliest_mixture(inputs.bank, abilities_TD, score_S, position_S)
    first = float(_weights(position_S, inputs) @ score_S)
    return with_predictions(inputs.bank, share_T @ abilities_TD, abilities_TD.T, 0.0, score_S, position_S, first)


def gmp_irt(scores: npt.ArrayLike, positions: npt.ArrayLike, inputs: EstimatorInputs) -> Estimate:
    """gmp-IRT as in MERGE³'s code: half the anchor mean, half mp-IRT."""
    score_S, position_S = _answers(scores, positions, inputs)
    anchored, predicted = anchor_mean(score_S, position_S, inputs), mp_irt(score_S, position_S, inputs)
    return _blend(PUBLISHED_MIX, anchored, predicted)


# Corrected and other estimators ---------------------------------------------------------------------------------

MIXTURE_PRECISION = 4.0  # of λ's prior around 1/T; halves mp-IRT's error at 10 to 20 items
STRATUM_STRENGTH = 3.0  # items that the prior of a stratum is worth


def _map_mixture(inputs: EstimatorInputs, score_S: Array, position_S: npt.NDArray[np.int64]) -> Array:
    """float64[T]: λ under N(1/T, 1/4), parents' abilities by MAP; a convex problem in λ."""
    slope_ST = inputs.bank.discrimination[position_S] @ inputs.map_abilities.T
    parents = len(inputs.map_abilities)
    mixture = ItemBank(
        tuple(map(str, position_S)), slope_ST, inputs.bank.difficulty[position_S], np.empty((0, parents))
    )
    return ability_map(mixture, score_S, None, np.full(parents, 1 / parents), MIXTURE_PRECISION)


def mp_irt_map(scores: npt.ArrayLike, positions: npt.ArrayLike, inputs: EstimatorInputs) -> Estimate:
    """mp-IRT with λ's posterior mode under N(1/T, 1/4) and the parents' abilities by MAP."""
    score_S, position_S = _answers(scores, positions, inputs)
    share_T, abilities_TD = _map_mixture(inputs, score_S, position_S), inputs.map_abilities
    first = float(score_S.mean())
    return with_predictions(
        inputs.bank, share_T @ abilities_TD, abilities_TD.T, MIXTURE_PRECISION, score_S, position_S, first
    )


def ridge(scores: npt.ArrayLike, positions: npt.ArrayLike, inputs: EstimatorInputs) -> Estimate:
    """Ridge regression of other models' full scores on their answers to the asked items.

    The penalty minimises the leave-one-out error, which is used as the standard error.
    """
    score_S, position_S = _answers(scores, positions, inputs)
    other_JI = inputs.other_models_scores
    x_JS, y_J = other_JI[:, position_S], other_JI.mean(1)
    x_mean, y_mean = x_JS.mean(0), float(y_J.mean())
    left_JR, scale_R, right_RS = np.linalg.svd(x_JS - x_mean, full_matrices=False)
    projected_R, models = left_JR.T @ (y_J - y_mean), len(y_J)
    best: tuple[float, Array] = (math.inf, np.zeros(position_S.size))
    for penalty in models * np.logspace(-4, 1, 16):
        shrink_R = scale_R**2 / (scale_R**2 + penalty)
        fitted_J = left_JR @ (shrink_R * projected_R)
        leverage_J = (left_JR**2) @ shrink_R + 1 / models
        error = float(np.mean(((y_J - y_mean - fitted_J) / np.maximum(1 - leverage_J, 1e-3)) ** 2))
        if error < best[0]:
            best = error, right_RS.T @ (scale_R / (scale_R**2 + penalty) * projected_R)
    value = float(np.clip(y_mean + (score_S - x_mean) @ best[1], 0, 1))
    return Estimate(value, math.sqrt(best[0]))


def blup(scores: npt.ArrayLike, positions: npt.ArrayLike, inputs: EstimatorInputs) -> Estimate:
    """Best linear unbiased prediction of the unasked items from other models' means and covariance.

    The sample covariance is shrunk by 5 % towards its diagonal. Good within the range of the other
    models' scores; far off for a model better than all of them.
    """
    score_S, position_S = _answers(scores, positions, inputs)
    other_JI = inputs.other_models_scores
    mean_I = other_JI.mean(0)
    centred_JI = other_JI - mean_I
    unasked_I = np.ones(inputs.items, bool)
    unasked_I[position_S] = False
    models, keep = len(other_JI), 0.95
    total_J = centred_JI[:, unasked_I].sum(1)
    cross_S = keep * centred_JI[:, position_S].T @ total_J / (models - 1)
    covariance_SS = centred_JI[:, position_S].T @ centred_JI[:, position_S] / (models - 1)
    variance_I = np.maximum((centred_JI**2).sum(0) / (models - 1), 1e-4)
    covariance_SS = keep * covariance_SS + np.diag((1 - keep) * variance_I[position_S])
    gain_S = np.linalg.solve(covariance_SS + 1e-6 * np.eye(score_S.size), cross_S)
    total = float(mean_I[unasked_I].sum() + gain_S @ (score_S - mean_I[position_S]))
    open_variance = keep * float(total_J @ total_J) / (models - 1) + (1 - keep) * float(variance_I[unasked_I].sum())
    variance = max(open_variance - float(gain_S @ cross_S), 1e-4 * int(unasked_I.sum()))
    unasked = int(unasked_I.sum())
    value = (float(score_S.sum()) + float(np.clip(total, 0, unasked))) / inputs.items
    return Estimate(value, math.sqrt(variance) / inputs.items if unasked else 0.0)


def parent_post_stratification(scores: npt.ArrayLike, positions: npt.ArrayLike, inputs: EstimatorInputs) -> Estimate:
    """Strata by whether no, some or all parents are right, with Beta priors of weight 3 at .22, .55, .92.

    Needs neither IRT nor other models: Z = (1/I) Σ_k [s_k + (I_k − n_k)(s_k + n₀π_k)/(n_k + n₀)].
    """
    score_S, position_S = _answers(scores, positions, inputs)
    stratum_I = parent_strata(inputs.parent_scores)
    total = variance = 0.0
    for stratum, expected in enumerate(STRATUM_PROBABILITY):
        inside_S = score_S[stratum_I[position_S] == stratum]
        unasked = int((stratum_I == stratum).sum()) - inside_S.size
        strength = inside_S.size + STRATUM_STRENGTH
        rate = (float(inside_S.sum()) + STRATUM_STRENGTH * expected) / strength
        total += float(inside_S.sum()) + unasked * rate
        # beta-binomial variance of the unasked items' sum
        variance += unasked * rate * (1 - rate) * (1 + (unasked - 1) / (strength + 1)) if unasked else 0.0
    return Estimate(total / inputs.items, math.sqrt(variance) / inputs.items)


def stratified_difference(scores: npt.ArrayLike, positions: npt.ArrayLike, inputs: EstimatorInputs) -> Estimate:
    """Difference estimator on q = .6·(parents' mean) + .4·(λ-MAP mp-IRT), its offset shrunk in each parent stratum."""
    score_S, position_S = _answers(scores, positions, inputs)
    ability_D = _map_mixture(inputs, score_S, position_S) @ inputs.map_abilities
    predicted_I = 0.6 * inputs.parent_scores.mean(0) + 0.4 * inputs.bank.probability(ability_D)
    stratum_I = parent_strata(inputs.parent_scores)
    unasked_I = np.ones(inputs.items, bool)
    unasked_I[position_S] = False
    total, variance = float(score_S.sum()), 0.0
    for stratum in range(3):
        inside_S = stratum_I[position_S] == stratum
        open_I = unasked_I & (stratum_I == stratum)
        strength = int(inside_S.sum()) + STRATUM_STRENGTH
        offset = float((score_S - predicted_I[position_S])[inside_S].sum()) / strength
        rate_U = np.clip(predicted_I[open_I] + offset, 0, 1)
        total += float(rate_U.sum())
        # variance of each item, with half a pseudo-item to keep it above 0, and of the offset
        spread = float((rate_U * (1 - rate_U)).mean() + 0.5 / (strength + 1)) if rate_U.size else 0.0
        variance += rate_U.size * spread + rate_U.size**2 * spread / strength
    return Estimate(total / inputs.items, math.sqrt(variance) / inputs.items)


def inherited(scores: npt.ArrayLike, positions: npt.ArrayLike, inputs: EstimatorInputs) -> Estimate:
    """The default: `fitness.estimation.posterior` for 0/1 scores, `fitness.estimation.regression` for others."""
    score_S, position_S = _answers(scores, positions, inputs, any_scores=True)
    given = inputs.prior
    if isinstance(given, regression.RegressionPrior):
        return regression.posterior(given, score_S, position_S)
    return posterior(given, score_S, position_S)


for _estimator in (
    Estimator(
        "inherited",
        inherited,
        needs=frozenset({"parents"}),
        uses=frozenset({"item_bank"}),
        subset_kind="informative",
        learns=True,
        any_scores=True,
    ),
    Estimator("mean", subset_mean, rotates=False, any_scores=True),
    Estimator("stratified_mean", stratified_mean, needs=frozenset({"parents"}), subset_kind="parent_strata"),
    Estimator("anchor_mean", anchor_mean, needs=frozenset({"item_bank"}), subset_kind="anchors"),
    Estimator("p_irt", p_irt, needs=frozenset({"item_bank"})),
    Estimator("p_irt_map", p_irt_map, needs=frozenset({"item_bank"})),
    Estimator("gp_irt", gp_irt, needs=frozenset({"item_bank", "other_models"}), subset_kind="anchors"),
    Estimator("mp_irt", mp_irt, needs=frozenset({"parents", "item_bank"})),
    Estimator("gmp_irt", gmp_irt, needs=frozenset({"parents", "item_bank"})),
    Estimator("mp_irt_map", mp_irt_map, needs=frozenset({"parents", "item_bank"})),
    Estimator("ridge", ridge, needs=frozenset({"other_models"})),
    Estimator("blup", blup, needs=frozenset({"other_models"})),
    Estimator(
        "parent_post_stratification",
        parent_post_stratification,
        needs=frozenset({"parents"}),
        subset_kind="parent_strata",
    ),
    Estimator(
        "stratified_difference",
        stratified_difference,
        needs=frozenset({"parents", "item_bank"}),
        subset_kind="parent_strata",
    ),
):
    register_estimator(_estimator)
