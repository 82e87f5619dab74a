"""How good a model is: tasks, items, scores and their errors.

Nothing heavy is imported here: torch, transformers and lm-eval belong to `fitness.tasks`, `fitness.scoring`
and the modules under them.
"""

from fitness.config import FitnessConfig, SubsetConfig, TaskConfig
from fitness.estimators import Estimate
from fitness.evaluation import Evaluation, ItemScores, TaskError
from fitness.items import Item, ItemPool

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
