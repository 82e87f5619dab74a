"""An estimator: Laplace's rule of succession, for few right-or-wrong answers."""

import numpy as np

from fitness.estimation.registry import Estimator, register_estimator
from fitness.results import Estimate


def laplace(scores, positions, inputs):
    """Return the posterior mean and deviation of the score, from a uniform prior; all items asked leave no doubt."""
    right, count = float(np.sum(scores)), len(scores)
    value = (right + 1) / (count + 2)
    error = np.sqrt(value * (1 - value) / (count + 3) * (1 - count / inputs.items))
    return Estimate(value, float(error))


register_estimator(Estimator("laplace", laplace))
