"""From few answers to the full score: subsets, item response theory, estimators, racing rules, intervals."""

from fitness.estimation import estimators  # registers them
from fitness.estimation.inputs import EstimatorInputs
from fitness.estimation.registry import ESTIMATORS, Estimator, register_estimator

__all__ = ["ESTIMATORS", "Estimator", "EstimatorInputs", "estimators", "register_estimator"]
