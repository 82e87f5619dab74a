"""How published merges differ from their parents: the numbers of the default estimator's prior.

Written by ``python -m experiments.fitness_accuracy.learn --responses DIR``, which says how they are estimated. They are
in the units of the guess in `fitness.estimation.parent_prior`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LearntPrior:
    """The distribution of merges' coefficients in standard units, without their parents' own.

    Attributes
    ----------
    mean, covariance
        [G] and [G, G].
    parent_sd
        Of the coefficient of each parent's answers, in logits.
    """

    mean: tuple[float, ...]
    covariance: tuple[tuple[float, ...], ...]
    parent_sd: float


SCALES = (0.25, 1.0, 4.0, 16.0, 64.0)
"""κ, of the covariance."""
SHARES = (0.01, 0.249, 0.568, 0.152, 0.021)
"""Of the merges that have each scale."""
WITH_BANK = LearntPrior(
    (0.169, 0.473, -0.321, -0.53),
    (
        (0.2661, -0.2338, 0.0184, 0.2447),
        (-0.2338, 0.5638, -0.037, -0.3727),
        (0.0184, -0.037, 0.077, 0.0439),
        (0.2447, -0.3727, 0.0439, 0.4405),
    ),
    0.337,
)
WITHOUT_BANK = LearntPrior(
    (0.089, 2.367, -0.593),
    (
        (0.0949, 0.0152, -0.0057),
        (0.0152, 0.2259, -0.0011),
        (-0.0057, -0.0011, 0.0772),
    ),
    0.325,
)
