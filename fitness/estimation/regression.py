"""The default estimate for scores that are not just 0 and 1: losses, probabilities, ROUGE with many scores of 0.

A merge's score of an item is close to its parents' mean score hᵢ of it:

    yᵢ = hᵢ + xᵢ·u + eᵢ,     u ~ N(m, κσ²Λ),   e ~ N(0, σ²),   σ² ~ InvGamma(a, a σ₀²)                            (1)

with columns x: 1, hᵢ − h̄, and yₜ − h of each parent t, each in units of its spread. σ₀² is what the parents' scores of
an item vary. The posterior is known in closed form (normal-inverse-gamma; e.g. Gelman et al., Bayesian Data Analysis,
14.2), and the scales κ are weighted by their evidence: a candidate unlike its parents is hardly drawn to them. Nothing
about the scores' distribution is used but their variance, so a spike at 0 leaves the estimate unbiased. Items are asked
over the whole range of h (`fitness.estimation.subset.by_difficulty`).

Letters: T parents, I items, S asked and U unasked ones, F columns, K scales.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from fitness.results import Estimate

Array = npt.NDArray[np.float64]
Answers = tuple[npt.ArrayLike, npt.ArrayLike]  # scores, positions

SCALES = (0.01, 0.1, 1.0, 10.0, 100.0)  # κ in (1), equally probable
SLOPE_VARIANCE = 0.25  # of the coefficient of h − h̄; the others' is 1
VARIANCE_STRENGTH = 2.0  # a in (1): half the number of answers that the prior of σ² is worth
ONE_PARENT_VARIANCE = 0.25  # σ₀² for a single parent, in units of the variance of its scores
SMALLEST_VARIANCE = 1e-3  # σ₀² in the same units
MEAN_STRENGTH = 2.0  # candidates that the prior's mean is worth


@dataclass(frozen=True, eq=False)
class RegressionPrior:
    """The prior of a candidate before any answer, as in (1).

    Attributes
    ----------
    expected
        float64[I], h.
    design
        float64[I, F].
    mean
        float64[F], m.
    variance
        float64[F], the diagonal of Λ.
    noise
        σ₀².
    """

    expected: Array
    design: Array
    mean: Array
    variance: Array
    noise: float


@dataclass(frozen=True, eq=False)
class _Posterior:
    """The posterior for each scale: weights [K], means [K, F], covariances in units of σ² [K, F, F], and E σ² [K]."""

    share: Array
    mean: Array
    covariance: Array
    noise: Array


def prior(parents: npt.ArrayLike) -> RegressionPrior:
    """Return the prior of a merge whose parents have these scores, float[T, I] with T >= 1."""
    parent_TI = np.asarray(parents, np.float64)
    if parent_TI.ndim != 2 or not len(parent_TI):
        raise ValueError(f"parents' scores have shape {parent_TI.shape}: give [parents, items], at least one parent")
    expected_I = parent_TI.mean(0)
    columns = [expected_I - expected_I.mean()]
    if len(parent_TI) > 1:
        columns += list(parent_TI - expected_I)
    spread = [float(column.std()) for column in columns]
    kept = [column / size for column, size in zip(columns, spread, strict=True) if size > 1e-12]
    design_IF = np.stack([np.ones_like(expected_I), *kept], axis=1)
    variance_F = np.ones(design_IF.shape[1])
    variance_F[1:2] = SLOPE_VARIANCE if spread[0] > 1e-12 else 1.0
    total = float(parent_TI.var()) or 1.0
    between = float(parent_TI.var(axis=0, ddof=1).mean()) if len(parent_TI) > 1 else ONE_PARENT_VARIANCE * total
    noise = max(between, SMALLEST_VARIANCE * total)
    return RegressionPrior(expected_I, design_IF, np.zeros(design_IF.shape[1]), variance_F, noise)


def _check(given: RegressionPrior, scores: npt.ArrayLike, positions: npt.ArrayLike) -> tuple[Array, Array]:
    score_S, position_S = np.asarray(scores, np.float64).ravel(), np.asarray(positions, np.int64).ravel()
    if not np.isfinite(score_S).all():
        raise ValueError("scores contain NaN or infinity: leave failed items out")
    return score_S - given.expected[position_S], given.design[position_S]


def _solve(given: RegressionPrior, residual_S: Array, design_SF: Array) -> _Posterior:
    """Return the posterior of u and σ² for each scale κ."""
    start, end = VARIANCE_STRENGTH, VARIANCE_STRENGTH + residual_S.size / 2
    shares, means, covariances, noises = [], [], [], []
    for scale in SCALES:
        precision_F = 1 / (scale * given.variance)
        covariance_FF = np.linalg.inv(np.diag(precision_F) + design_SF.T @ design_SF)
        pull_F = precision_F * given.mean + design_SF.T @ residual_S
        mean_F = covariance_FF @ pull_F
        square = float(residual_S @ residual_S + given.mean @ (precision_F * given.mean) - mean_F @ pull_F)
        rest = start * given.noise + max(square, 0.0) / 2
        logdet = float(np.linalg.slogdet(covariance_FF)[1] + np.log(precision_F).sum())
        shares.append(0.5 * logdet - end * math.log(rest))
        means.append(mean_F)
        covariances.append(covariance_FF)
        noises.append(rest / (end - 1))
    share_K = np.exp(np.array(shares) - max(shares))
    return _Posterior(share_K / share_K.sum(), np.array(means), np.array(covariances), np.array(noises))


def posterior(given: RegressionPrior, scores: npt.ArrayLike, positions: npt.ArrayLike) -> Estimate:
    """Return the expected full score of a candidate after its answers.

    Parameters
    ----------
    scores
        float[S], any finite numbers; S may be 0.
    positions
        int[S], the distinct positions of the asked items.
    """
    residual_S, design_SF = _check(given, scores, positions)
    found = _solve(given, residual_S, design_SF)
    open_I = np.ones(given.expected.size, bool)
    open_I[np.asarray(positions, np.int64)] = False
    slope_F, count = given.design[open_I].sum(0), int(open_I.sum())
    sum_K = found.mean @ slope_F
    variance_K = found.noise * (count + np.einsum("f,kfg,g->k", slope_F, found.covariance, slope_F))
    middle = float(found.share @ sum_K)
    variance = float(found.share @ (variance_K + (sum_K - middle) ** 2))
    answered = float(np.sum(np.asarray(scores, np.float64)))
    items = given.expected.size
    value = (answered + float(given.expected[open_I].sum()) + middle) / items
    return Estimate(value, math.sqrt(variance) / items if count else 0.0)


def learn(given: RegressionPrior, evaluated: Sequence[Answers]) -> RegressionPrior:
    """Return the prior after some candidates with the same parents: the mean of their coefficients, and their noise.

    Parameters
    ----------
    evaluated
        (scores, positions) of each candidate.
    """
    answers = [_check(given, *each) for each in evaluated]
    found = [_solve(given, residual_S, design_SF) for residual_S, design_SF in answers if residual_S.size]
    if not found:
        return given
    mean_F = sum((each.share @ each.mean for each in found), np.zeros(given.mean.size)) / (len(found) + MEAN_STRENGTH)
    noise = sum(float(each.share @ each.noise) for each in found) + MEAN_STRENGTH * given.noise
    return replace(given, mean=mean_F, noise=noise / (len(found) + MEAN_STRENGTH))
