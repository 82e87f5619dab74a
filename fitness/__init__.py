"""How good a model is: tasks, items, scores and their standard errors.

Importing `fitness.config`, `fitness.objectives` or `fitness.estimation` imports neither torch nor transformers nor
lm-eval: models are scored in `fitness.scoring`, tasks are loaded in `fitness.tasks`.
"""
