"""From the scores of some items to the score of the task, with its standard error."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


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
