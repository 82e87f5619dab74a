"""How good a model is: tasks, items, scores and their errors.

Nothing heavy is imported here: torch, transformers and lm-eval belong to `fitness.tasks`, `fitness.scoring.evaluator`
and the modules under them.
"""

from fitness.config import FitnessConfig, SubsetConfig, TaskConfig
from fitness.estimation.estimators import Estimate
from fitness.items import Item, ItemPool
from fitness.results import Evaluation, ItemScores, TaskError

__all__ = [
    "Estimate",
    "Evaluation",
    "FitnessConfig",
    "Item",
    "ItemPool",
    "ItemScores",
    "SubsetConfig",
    "TaskConfig",
    "TaskError",
]
