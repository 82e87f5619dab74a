"""How good a model is: tasks, items, scores and their errors.

Importing this package imports neither torch nor transformers nor lm-eval: models are scored in `fitness.scoring`, tasks
are loaded in `fitness.tasks`.
"""

from fitness.config import FitnessConfig, SubsetConfig
from fitness.items import Item, ItemPool
from fitness.results import Estimate, Evaluation, ItemScores, TaskError
from fitness.tasks.config import TaskConfig

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
