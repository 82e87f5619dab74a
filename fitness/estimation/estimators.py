"""From the scores of some items to the score of the task, with its standard error.

An `Estimator` takes a candidate's scores, the positions of the items it was asked, and the `EstimatorInputs`. The
default is `inherited`; the published ones are implemented as published.

Letters: T parents, J other models, I items, S asked items, U items not asked, D ability dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from fitness.estimation import parent_prior
from fitness.estimation.irt import LOGIT_BOUND, ItemBank, ability_map, check_scores, sigmoid
from fitness.estimation.subset import STRATUM_PROBABILITY, parent_strata

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A value and its standard error, both in the unit of the scores."""

    value: float
    standard_error: float


def mean(scores: npt.ArrayLike) -> Estimate:
    """The plain mean.

    The usual error s/√I says 0 when all items agree, but 8 right answers of 8 are no proof of perfection. For
    scores within [0, 1] the error therefore counts half a pseudo-item at 0 and half a one at 1 (Jeffreys'
    prior). With I items and x̃ the mean of items and pseudo-items,

        ṽ = (Σ x² + ½) / (I + 1) − x̃²,      standard error = √(ṽ / (I + 2)).

    For 0/1 scores this is exactly the standard deviation of the Beta(½ + right, ½ + wrong) posterior. The
    value itself stays the plain mean.

    Parameters
    ----------
    scores
        float[I]; I >= 1. Outside of [0, 1] the error is s/√I (infinite for a single item).

    Raises
    ------
    ValueError
        No scores, or scores that are not finite.
    """
    score_I = np.asarray(scores, np.float64).ravel()
    if score_I.size == 0:
        raise ValueError("there are no scores to average: ask at least one item")
    if not np.isfinite(score_I).all():
        raise ValueError("scores contain NaN or infinity: leave failed items out")
    count = score_I.size
    value = float(score_I.mean())
    if score_I.min() >= 0 and score_I.max() <= 1:
        centre = (score_I.sum() + 0.5) / (count + 1)
        variance = (np.square(score_I).sum() + 0.5) / (count + 1) - centre**2
        return Estimate(value, math.sqrt(variance / (count + 2)))
    if count == 1:
        return Estimate(value, math.inf)
    return Estimate(value, float(score_I.std(ddof=1)) / math.sqrt(count))


@dataclass(frozen=True, eq=False)
class EstimatorInputs:
    """What is known beside a candidate's answers; all of one task, items in one order.

    Attributes
    ----------
    items
        I, the number of items of the task.
    parents
        float64[T, I], scores of the models that are merged, on all items.
    banks
        Item parameters; the published estimators use the last one, which is the multidimensional one of two.
    other_models
        float64[J, I], scores of other models on all items.
    weights
        Item position to its weight, of an anchor subset (`fitness.estimation.subset.anchors`); other subsets weigh
        equally.
    strata
        int[I], for `stratified_mean`; by default the parents' (`fitness.estimation.subset.parent_strata`).
    evaluated
        (scores, positions) of candidates of the same parents, oldest first.
    p_irt_error
        b of gp-IRT, in [0, 1]; None measures it on the other models, which takes seconds.
    """

    items: int
    parents: Array | None = None
    banks: tuple[ItemBank, ...] = ()
    other_models: Array | None = None
    weights: Mapping[int, float] | None = None
    strata: npt.NDArray[np.int64] | None = None
    evaluated: Sequence[tuple[npt.ArrayLike, npt.ArrayLike]] = ()
    p_irt_error: float | None = None

    def __post_init__(self) -> None:
        for name in ("parents", "other_models"):
            scores = getattr(self, name)
            if scores is not None and (np.ndim(scores) != 2 or np.shape(scores)[1] != self.items):
                raise ValueError(f"{name} have shape {np.shape(scores)}: give [models, {self.items}]")
        for bank in self.banks:
            if len(bank.items) != self.items:
                raise ValueError(f"the item bank has {len(bank.items)} items, the task {self.items}: select them first")

    @cached_property
    def prior(self) -> parent_prior.Prior:
        """What the default estimator expects of a candidate: from parents, banks and evaluated candidates."""
        return parent_prior.learn(parent_prior.prior(self.items, self.parents, self.banks), self.evaluated)

    @property
    def bank(self) -> ItemBank:
        """The bank that published estimators use."""
        if not self.banks:
            raise ValueError("this estimator needs item parameters: run `evomerge fit-items` and name its file")
        return self.banks[-1]

    @property
    def parent_scores(self) -> Array:
        """The parents' scores, float64[T, I]."""
        if self.parents is None or not len(self.parents):
            raise ValueError("this estimator needs the parents' scores on all items: evaluate the sources first")
        return self.parents

    @property
    def other_models_scores(self) -> Array:
        """Other models' scores, float64[J, I]."""
        if self.other_models is None or len(self.other_models) < 2:
            raise ValueError("this estimator needs other models' scores on all items: give a responses matrix")
        return self.other_models

    @cached_property
    def measured_p_irt_error(self) -> float:
        """The b of gp-IRT."""
        return validation_error(self) if self.p_irt_error is None else self.p_irt_error

    @cached_property
    def likeliest_abilities(self) -> Array:
        """float64[T, D]: the parents' maximum-likelihood abilities, as MERGE³ fits them."""
        every = np.arange(self.items)
        return np.stack([likeliest_ability(self.bank, score_I, every) for score_I in self.parent_scores])

    @cached_property
    def map_abilities(self) -> Array:
        """float64[T, D]: the parents' maximum a posteriori abilities."""
        return np.stack([ability_map(self.bank, score_I).mean for score_I in self.parent_scores])


Estimator = Callable[[npt.ArrayLike, npt.ArrayLike, EstimatorInputs], Estimate]
"""(scores float[S] in [0, 1], positions int[S] of the asked items, what is known) -> estimate of the mean score."""


def _answers(
    scores: npt.ArrayLike, positions: npt.ArrayLike, known: EstimatorInputs
) -> tuple[Array, npt.NDArray[np.int64]]:
    score_S, position_S = check_scores(scores).ravel(), np.asarray(positions, np.int64).ravel()
    if score_S.size == 0 or score_S.size != position_S.size:
        raise ValueError(f"{score_S.size} scores for {position_S.size} items: give one score per item, at least one")
    if position_S.min() < 0 or position_S.max() >= known.items:
        raise ValueError(f"asked items lie outside of 0 to {known.items - 1}: give positions within the task's items")
    if np.unique(position_S).size < position_S.size:
        raise ValueError("an item was asked twice: give each asked item once")
    return score_S, position_S


def subset_mean(scores: npt.ArrayLike, positions: npt.ArrayLike, known: EstimatorInputs) -> Estimate:
    """`mean` of a random subset, its error times √(1 − S/I): a subset of all items leaves nothing open."""
    score_S, _ = _answers(scores, positions, known)
    estimate = mean(score_S)
    return Estimate(estimate.value, estimate.standard_error * math.sqrt(1 - score_S.size / known.items))


def stratified_mean(scores: npt.ArrayLike, positions: npt.ArrayLike, known: EstimatorInputs) -> Estimate:
    """Mean of the strata's means, weighted by their sizes; a stratum that was not asked takes the overall mean."""
    score_S, position_S = _answers(scores, positions, known)
    stratum_I = parent_strata(known.parent_scores) if known.strata is None else known.strata
    overall = mean(score_S)
    value = variance = 0.0
    for stratum in np.unique(stratum_I):
        size = int((stratum_I == stratum).sum())
        inside_S = score_S[stratum_I[position_S] == stratum]
        part = mean(inside_S) if inside_S.size else overall
        value += size / known.items * part.value
        variance += (size / known.items * part.standard_error) ** 2 * (1 - inside_S.size / size)
    return Estimate(value, math.sqrt(variance))


def anchor_mean(scores: npt.ArrayLike, positions: npt.ArrayLike, known: EstimatorInputs) -> Estimate:
    """Σ w y with the anchors' weights (tinyBenchmarks); the plain mean for other subsets.

    The error is that of a mean of as many items as the weights are worth, 1/Σw²; anchors are not drawn at random, so
    this is a rough figure.
    """
    score_S, position_S = _answers(scores, positions, known)
    weight_S = _weights(position_S, known)
    count = float(1 / (weight_S**2).sum())
    value = float(weight_S @ score_S)
    centre = (value * count + 0.5) / (count + 1)
    return Estimate(value, math.sqrt(centre * (1 - centre) / (count + 2)))


def _weights(position_S: npt.NDArray[np.int64], known: EstimatorInputs) -> Array:
    if known.weights is None:
        return np.full(position_S.size, 1 / position_S.size)
    missing = [int(position) for position in position_S if int(position) not in known.weights]
    if missing:
        raise ValueError(f"item {missing[0]} is not among the anchors: ask the anchors' positions")
    weight_S = np.array([known.weights[int(position)] for position in position_S])
    return weight_S / weight_S.sum()


# As published: tinyBenchmarks (arXiv:2402.14992) and MERGE³ (arXiv:2502.10436, its code Mergenetic) ---------------

PUBLISHED_EPSILON = 1e-10  # inside their logarithms
PUBLISHED_MIX = 0.5  # gmp-IRT's c: the paper has a heuristic, the code this number


def _published_loss(logit_S: Array, score_S: Array) -> float:
    p_S = sigmoid(np.clip(logit_S, -LOGIT_BOUND, LOGIT_BOUND))
    right, wrong = np.log(p_S + PUBLISHED_EPSILON), np.log(1 - p_S + PUBLISHED_EPSILON)
    return -float(score_S @ right + (1 - score_S) @ wrong)


def likeliest_ability(bank: ItemBank, scores: Array, positions: npt.NDArray[np.int64]) -> Array:
    """float64[D]: maximum-likelihood ability by BFGS from 0, without a prior: it diverges on all-right answers."""
    from scipy import optimize

    a_SD, b_S = bank.discrimination[positions], bank.difficulty[positions]

    def loss(theta_D: Array) -> float:
        return _published_loss(a_SD @ theta_D - b_S, scores)

    return np.asarray(optimize.minimize(loss, np.zeros(bank.dimensions), method="BFGS").x, np.float64)


def likeliest_mixture(bank: ItemBank, abilities: Array, scores: Array, positions: npt.NDArray[np.int64]) -> Array:
    """float64[T]: λ of θ = Σ λₜ θₜ by maximum likelihood: BFGS from 1/T, neither prior nor simplex."""
    from scipy import optimize

    slope_ST, b_S = bank.discrimination[positions] @ abilities.T, bank.difficulty[positions]

    def loss(share_T: Array) -> float:
        return _published_loss(slope_ST @ share_T - b_S, scores)

    start = np.full(len(abilities), 1 / len(abilities))
    return np.asarray(optimize.minimize(loss, start, method="BFGS").x, np.float64)


def _with_predictions(
    bank: ItemBank,
    ability: Array,
    directions: Array,
    prior_precision: float,
    score_S: Array,
    position_S: npt.NDArray[np.int64],
    first_term: float,
) -> Estimate:
    """τ·(first term) + (1 − τ)·(mean prediction of the other items), and its error.

    The error has the other items' own variance and, by the delta method, that of the ability along `directions`
    float64[D, K] under a prior of this precision.
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


def p_irt(scores: npt.ArrayLike, positions: npt.ArrayLike, known: EstimatorInputs) -> Estimate:
    """p-IRT as published: answers where given, predictions at the maximum-likelihood ability elsewhere."""
    score_S, position_S = _answers(scores, positions, known)
    ability_D = likeliest_ability(known.bank, score_S, position_S)
    directions = np.eye(known.bank.dimensions)
    return _with_predictions(known.bank, ability_D, directions, 0.0, score_S, position_S, float(score_S.mean()))


def p_irt_map(scores: npt.ArrayLike, positions: npt.ArrayLike, known: EstimatorInputs) -> Estimate:
    """p-IRT with the maximum a posteriori ability under N(0, I)."""
    score_S, position_S = _answers(scores, positions, known)
    ability_D = ability_map(known.bank, score_S, position_S).mean
    directions = np.eye(known.bank.dimensions)
    return _with_predictions(known.bank, ability_D, directions, 1.0, score_S, position_S, float(score_S.mean()))


def validation_error(known: EstimatorInputs, models: int = 40) -> float:
    """Mean absolute error of p-IRT with half the items asked, on up to 40 of the other models."""
    other_JI = known.other_models_scores
    rng = np.random.default_rng(0)
    errors = []
    for score_I in other_JI[rng.permutation(len(other_JI))[:models]]:
        half = np.sort(rng.choice(known.items, max(known.items // 2, 1), replace=False))
        errors.append(abs(p_irt(score_I[half], half, known).value - float(score_I.mean())))
    return float(np.mean(errors))


def gp_irt(scores: npt.ArrayLike, positions: npt.ArrayLike, known: EstimatorInputs) -> Estimate:
    """gp-IRT as published: ξ·(anchor mean) + (1 − ξ)·(p-IRT), ξ = b²/(b² + v/(4n)).

    b is p-IRT's `validation_error`, v the mean variance of a model's scores.
    """
    score_S, position_S = _answers(scores, positions, known)
    bias = known.measured_p_irt_error
    variance = float(known.other_models_scores.var(axis=1).mean())
    share = bias**2 / (bias**2 + variance / (4 * score_S.size)) if bias > 0 else 0.0
    return _blend(share, anchor_mean(score_S, position_S, known), p_irt(score_S, position_S, known))


def _blend(share: float, first: Estimate, second: Estimate) -> Estimate:
    """share·first + (1 − share)·second; both rest on the same answers, so their errors add up linearly."""
    value = share * first.value + (1 - share) * second.value
    return Estimate(value, share * first.standard_error + (1 - share) * second.standard_error)


def mp_irt(scores: npt.ArrayLike, positions: npt.ArrayLike, known: EstimatorInputs) -> Estimate:
    """mp-IRT as published (MERGE³): p-IRT at θ = Σ λₜ θₜ, parents' θₜ and λ by maximum likelihood.

    Its first term is the anchor-weighted mean.
    """
    score_S, position_S = _answers(scores, positions, known)
    abilities_TD = known.likeliest_abilities
    share_T = likeliest_mixture(known.bank, abilities_TD, score_S, position_S)
    first = float(_weights(position_S, known) @ score_S)
    return _with_predictions(known.bank, share_T @ abilities_TD, abilities_TD.T, 0.0, score_S, position_S, first)


def gmp_irt(scores: npt.ArrayLike, positions: npt.ArrayLike, known: EstimatorInputs) -> Estimate:
    """gmp-IRT as in MERGE³'s code: half the anchor mean, half mp-IRT."""
    score_S, position_S = _answers(scores, positions, known)
    anchored, predicted = anchor_mean(score_S, position_S, known), mp_irt(score_S, position_S, known)
    return _blend(PUBLISHED_MIX, anchored, predicted)


# Corrected and other estimators ---------------------------------------------------------------------------------

MIXTURE_PRECISION = 4.0  # of λ's prior around 1/T: halves mp-IRT's error at 10 to 20 items
STRATUM_STRENGTH = 3.0  # items that the prior of a stratum is worth


def _map_mixture(known: EstimatorInputs, score_S: Array, position_S: npt.NDArray[np.int64]) -> Array:
    """float64[T]: λ under N(1/T, 1/4), parents' abilities by MAP; a convex problem in λ."""
    slope_ST = known.bank.discrimination[position_S] @ known.map_abilities.T
    parents = len(known.map_abilities)
    mixture = ItemBank(tuple(map(str, position_S)), slope_ST, known.bank.difficulty[position_S], np.empty((0, parents)))
    return ability_map(mixture, score_S, None, np.full(parents, 1 / parents), MIXTURE_PRECISION).mean


def mp_irt_map(scores: npt.ArrayLike, positions: npt.ArrayLike, known: EstimatorInputs) -> Estimate:
    """mp-IRT with λ's posterior mode under N(1/T, 1/4) and the parents' abilities by MAP."""
    score_S, position_S = _answers(scores, positions, known)
    share_T, abilities_TD = _map_mixture(known, score_S, position_S), known.map_abilities
    first = float(score_S.mean())
    return _with_predictions(
        known.bank, share_T @ abilities_TD, abilities_TD.T, MIXTURE_PRECISION, score_S, position_S, first
    )


def ridge(scores: npt.ArrayLike, positions: npt.ArrayLike, known: EstimatorInputs) -> Estimate:
    """Ridge regression of other models' full scores on their answers to the asked items.

    The penalty minimises the leave-one-out error, which is also the standard error.
    """
    score_S, position_S = _answers(scores, positions, known)
    other_JI = known.other_models_scores
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


def blup(scores: npt.ArrayLike, positions: npt.ArrayLike, known: EstimatorInputs) -> Estimate:
    """Best linear unbiased prediction of the unasked items from other models' means and covariance.

    The sample covariance is shrunk by 5 % towards its diagonal. Good within the range of the other
    models' scores; far off for a model better than all of them.
    """
    score_S, position_S = _answers(scores, positions, known)
    other_JI = known.other_models_scores
    mean_I = other_JI.mean(0)
    centred_JI = other_JI - mean_I
    unasked_I = np.ones(known.items, bool)
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
    value = (float(score_S.sum()) + float(np.clip(total, 0, unasked))) / known.items
    return Estimate(value, math.sqrt(variance) / known.items if unasked else 0.0)


def parent_post_stratification(scores: npt.ArrayLike, positions: npt.ArrayLike, known: EstimatorInputs) -> Estimate:
    """Strata by which parents are right, each with a Beta prior worth 3 items at .22, .55, .92 (none, some, all).

    Needs neither IRT nor other models: Z = (1/I) Σ_k [s_k + (I_k − n_k)(s_k + n₀π_k)/(n_k + n₀)].
    """
    score_S, position_S = _answers(scores, positions, known)
    stratum_I = parent_strata(known.parent_scores)
    total = variance = 0.0
    for stratum, expected in enumerate(STRATUM_PROBABILITY):
        inside_S = score_S[stratum_I[position_S] == stratum]
        unasked = int((stratum_I == stratum).sum()) - inside_S.size
        strength = inside_S.size + STRATUM_STRENGTH
        rate = (float(inside_S.sum()) + STRATUM_STRENGTH * expected) / strength
        total += float(inside_S.sum()) + unasked * rate
        # beta-binomial variance of the unasked items' sum
        variance += unasked * rate * (1 - rate) * (1 + (unasked - 1) / (strength + 1)) if unasked else 0.0
    return Estimate(total / known.items, math.sqrt(variance) / known.items)


def stratified_difference(scores: npt.ArrayLike, positions: npt.ArrayLike, known: EstimatorInputs) -> Estimate:
    """Difference estimator on q = .6·(parents' mean) + .4·(λ-MAP mp-IRT), its offset shrunk in each parent stratum."""
    score_S, position_S = _answers(scores, positions, known)
    ability_D = _map_mixture(known, score_S, position_S) @ known.map_abilities
    predicted_I = 0.6 * known.parent_scores.mean(0) + 0.4 * known.bank.probability(ability_D)
    stratum_I = parent_strata(known.parent_scores)
    unasked_I = np.ones(known.items, bool)
    unasked_I[position_S] = False
    total, variance = float(score_S.sum()), 0.0
    for stratum in range(3):
        inside_S = stratum_I[position_S] == stratum
        open_I = unasked_I & (stratum_I == stratum)
        strength = int(inside_S.sum()) + STRATUM_STRENGTH
        offset = float((score_S - predicted_I[position_S])[inside_S].sum()) / strength
        rate_U = np.clip(predicted_I[open_I] + offset, 0, 1)
        total += float(rate_U.sum())
        # each item's own variance, half a pseudo-item keeping it off 0, and that of the offset
        spread = float((rate_U * (1 - rate_U)).mean() + 0.5 / (strength + 1)) if rate_U.size else 0.0
        variance += rate_U.size * spread + rate_U.size**2 * spread / strength
    return Estimate(total / known.items, math.sqrt(variance) / known.items)


def inherited(scores: npt.ArrayLike, positions: npt.ArrayLike, known: EstimatorInputs) -> Estimate:
    """The default (`fitness.estimation.parent_prior`): parents, a bank, both or neither; learns from candidates."""
    score_S, position_S = _answers(scores, positions, known)
    result = parent_prior.posterior(known.prior, score_S, position_S)
    return Estimate(result.value, result.standard_error)


NEEDS_PARENTS = (
    "inherited",
    "stratified_mean",
    "mp_irt",
    "gmp_irt",
    "mp_irt_map",
    "parent_post_stratification",
    "stratified_difference",
)
NEEDS_BANK = ("anchor_mean", "p_irt", "p_irt_map", "gp_irt", "mp_irt", "gmp_irt", "mp_irt_map", "stratified_difference")
NEEDS_OTHERS = ("gp_irt", "ridge", "blup")
ESTIMATORS: Mapping[str, Estimator] = {
    "inherited": inherited,
    "mean": subset_mean,
    "stratified_mean": stratified_mean,
    "anchor_mean": anchor_mean,
    "p_irt": p_irt,
    "p_irt_map": p_irt_map,
    "gp_irt": gp_irt,
    "mp_irt": mp_irt,
    "gmp_irt": gmp_irt,
    "mp_irt_map": mp_irt_map,
    "ridge": ridge,
    "blup": blup,
    "parent_post_stratification": parent_post_stratification,
    "stratified_difference": stratified_difference,
}
"""Name to estimator, as a search file names it."""
