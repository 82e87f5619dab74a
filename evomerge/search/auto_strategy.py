"""What `strategy: auto` means for one search: its strategy, and how many items a candidate is asked.

The settings were chosen on the zoo's generation task: small first steps with few fresh items find more than large ones
with many fixed items, and gradient steps need the fewest answers of all (`experiments/search_efficiency`,
`experiments/quickstart`). Most of the budget is theirs, and evolution around their result begins with still smaller
steps: it is for what the loss does not stand for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from evomerge.config.search_file import SearchConfig
from evomerge.files.messages import counted
from evomerge.strategies import CmaEsConfig, EdaConfig, Nsga2Config, StagedConfig, StrategyConfig
from evomerge.strategies.auto import AutoConfig
from evomerge.strategies.gradient import GradientConfig
from fitness.config import SubsetConfig
from search_spaces.spaces.space import SearchSpace

ITEMS = 25
"""Fresh items per task that a candidate, or a gradient step, is asked."""
SIGMA = 0.1
"""First step size of CMA-ES at the space's start."""
SIGMA_AFTER = 0.02
"""The same at the result of gradient steps: the mean of a generation on few items is noisier than this result."""
MOST_STEPS = 240
"""Gradient steps, at most four fifths of the budget; half of it where genes are choices, which steps leave."""


class Choice(NamedTuple):
    """A search file with what is chosen, and why in one sentence."""

    config: SearchConfig
    reason: str


def choose(config: SearchConfig, space: SearchSpace, obstacle: str | None, items: Mapping[str, int]) -> Choice:
    """Return a search file with the strategy that `auto` means in place of `auto`; another file as it is.

    Parameters
    ----------
    config
        The search file.
    space
        Its space.
    obstacle
        Why there are no gradients; None: there are.
    items
        Name of each task that is scored to how many search items it has.
    """
    auto = config.strategy
    if not isinstance(auto, AutoConfig):
        return Choice(config, "")
    strategy, reason = _strategy(config, auto, space, obstacle, len(items))
    fitness = config.fitness
    if "subset" not in fitness.model_fields_set and fitness.racing is None and any(n > ITEMS for n in items.values()):
        subset = SubsetConfig(items=ITEMS, estimator="mean", rotate=True)
        fitness = fitness.model_copy(update={"subset": subset})
        reason += f"; each candidate is asked {ITEMS} fresh items per task"
    return Choice(config.model_copy(update={"strategy": strategy, "fitness": fitness}), f"strategy auto: {reason}")


def _strategy(
    config: SearchConfig, auto: AutoConfig, space: SearchSpace, obstacle: str | None, tasks: int
) -> tuple[StrategyConfig, str]:
    budget = config.budget.evaluations
    warm: dict[str, Any] = {} if auto.warm_start is None else {"warm_start": {"run": auto.warm_start.run}}
    if config.fitness.objectives == "per_task" and tasks > 1:
        return Nsga2Config(**warm), "nsga2, since there are several objectives"
    if config.space.kind == "two_stage" and budget > 1:
        first = CmaEsConfig(sigma=SIGMA)
        return StagedConfig(evaluations=budget // 2, first=first, **warm), "staged, since the space has two stages"
    if space.discrete.any():
        evolution: StrategyConfig = EdaConfig(**warm)
        about = "eda, since some genes are choices"
    else:
        evolution = CmaEsConfig(sigma=SIGMA, **warm)
        about = f"cma_es with small steps (sigma {SIGMA:g})"
    steps = min(MOST_STEPS, budget // 2 if space.discrete.any() else 4 * budget // 5)
    if warm:
        return evolution, f"{about}, from the earlier run"
    if obstacle is None and 3 * space.discrete.sum() > space.dimension:
        obstacle = "many genes are choices"
    if obstacle is not None:
        return evolution, f"{about}; there are no gradients: {obstacle}"
    if steps < 1:
        return evolution, f"{about}; the budget is too small for gradients"
    if not space.discrete.any():
        evolution = CmaEsConfig(sigma=SIGMA_AFTER)
        about = f"cma_es around their result (sigma {SIGMA_AFTER:g})"
    return GradientConfig(steps=steps, items=ITEMS, then=evolution), f"{counted(steps, 'gradient step')}, then {about}"
