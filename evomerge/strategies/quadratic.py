"""Quadratic surrogates: a metric as a smooth function of a few coordinates, fitted to noisy evaluations.

Li et al., "MAP: Low-compute Model Merging with Amortized Pareto Fronts via Quadratic Approximation", arXiv 2406.07529.
With coordinates u in [-1, 1]^K a metric that is in [0, 1] is

    y(u) = sigmoid(e + b.u + u'A u),

any other metric the same without the sigmoid. Both are linear in (K + 1)(K + 2)/2 coefficients: on the scale of the
logit the fit is one weighted ridge regression. The published program fits the same function by `scipy.curve_fit`.

A score y of n items becomes z = logit((n y + 1/2) / (n + 1)) with the weight n y (1 - y), the inverse of its variance
(delta method). The strength of the ridge is that with the smallest leave-one-out error, which a linear fit gives
without refitting. Letters: N points, K coordinates, F features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Strengths of the ridge to choose from, in units of the mean weight of a point times the number of points."""
MOST_ITEMS = 1000.0
"""A score without noise counts as a mean over this many items."""


def coefficients_of(coordinates: int) -> int:
    """Return how many coefficients a surrogate has, (K + 1)(K + 2)/2: the fewest points for a fit."""
    return (coordinates + 1) * (coordinates + 2) // 2


def features(points: Array) -> Array:
    """Return 1, the coordinates and their products, float64[N, F], for points float64[N, K] in [-1, 1]."""
    first, second = np.triu_indices(points.shape[1])
    return np.hstack((np.ones((len(points), 1)), points, points[:, first] * points[:, second]))


@dataclass(frozen=True)
class Quadratic:
    """A fitted surrogate of one metric.

    Attributes
    ----------
    coefficients
        float64[F].
    covariance
        Of the coefficients, float64[F, F].
    bounded
        Whether the metric is in [0, 1], so that the quadratic form is its logit.
    """

    coefficients: Array
    covariance: Array
    bounded: bool

    def predicted(self, points: Array, caution: float = 0.0) -> Array:
        """Return the metric at points float64[N, K] in [-1, 1], as float64[N].

        Parameters
        ----------
        points
            Where.
        caution
            How many standard errors of the quadratic form are taken off.
        """
        feature_NF = features(points)
        form: Array = feature_NF @ self.coefficients
        if caution:
            form -= caution * np.sqrt(np.maximum(((feature_NF @ self.covariance) * feature_NF).sum(axis=1), 0.0))
        return 1.0 / (1.0 + np.exp(-np.clip(form, -40.0, 40.0))) if self.bounded else form


def fitted(points: Array, values: Array, errors: Array, trust: Array) -> Quadratic:
    """Fit a surrogate.

    Parameters
    ----------
    points
        float64[N, K], in [-1, 1].
    values, errors
        The metric and its standard error at each point, float64[N] each.
    trust
        How much each point counts beyond its error, float64[N], positive.
    """
    bounded = bool(values.min() >= 0.0 and values.max() <= 1.0)
    target, weight = _on_the_scale_of_the_logit(values, errors) if bounded else (values, np.ones(len(values)))
    weight = weight * trust
    feature_NF = features(points)
    root = np.sqrt(weight)[:, None]
    penalty = np.full(feature_NF.shape[1], weight.sum())
    penalty[0] = 1e-9 * weight.sum()  # the level is not drawn to 0
    fits = [_ridge(root * feature_NF, root[:, 0] * target, strength * penalty) for strength in RIDGES]
    coefficients, inverse, error = min(fits, key=lambda fit: fit[2])
    return Quadratic(coefficients, error * inverse, bounded)


def _on_the_scale_of_the_logit(values: Array, errors: Array) -> tuple[Array, Array]:
    with np.errstate(divide="ignore", invalid="ignore"):
        items = np.where(errors > 0, np.maximum(values * (1 - values), 0.25 / MOST_ITEMS) / errors**2, MOST_ITEMS)
    items = np.clip(items, 1.0, MOST_ITEMS)
    share = (items * values + 0.5) / (items + 1.0)
    return np.log(share / (1.0 - share)), items * share * (1.0 - share)


def _ridge(feature_NF: Array, target: Array, penalty: Array) -> tuple[Array, Array, float]:
    """Return the coefficients of a ridge regression, float64[F], the inverse of its matrix, and its error.

    The error is the mean squared one of points that are left out.
    """
    inverse = np.linalg.inv(feature_NF.T @ feature_NF + np.diag(penalty))
    coefficients: Array = inverse @ (feature_NF.T @ target)
    leverage = np.einsum("nf,fg,ng->n", feature_NF, inverse, feature_NF)
    left_out = (target - feature_NF @ coefficients) / np.maximum(1.0 - leverage, 1e-6)
    return coefficients, inverse, float(np.mean(left_out**2))
