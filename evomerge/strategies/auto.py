"""The default: which strategy searches a space follows from the space, the tasks and the budget."""

from __future__ import annotations

from typing import Literal

from evomerge.strategies.base import Strategy, StrategyConfig
from evomerge.strategies.registry import register_strategy
from evomerge.strategies.warm_start import WarmStartPopulation
from search_spaces.spaces.space import SearchSpace


@register_strategy
class AutoConfig(StrategyConfig):
    """The default. Gradients where the space, the method and the tasks have them, then CMA-ES with small steps around
    their result, or `eda` where genes are choices; evolution alone without gradients; `nsga2` for several objectives.
    Without `fitness.subset` each candidate is asked 25 fresh items per task. `evomerge plan` says what is chosen and
    why; a run records it.
    """

    objectives = "any"
    warm_start_type = WarmStartPopulation
    as_stage = False

    kind: Literal["auto"] = "auto"
    warm_start: WarmStartPopulation | None = None
    """Earlier run whose best candidates begin the search, in place of gradients. By default there is none."""

    def build(self, space: SearchSpace, seed: int) -> Strategy:
        """Refuse: what it stands for is chosen where models and tasks are known.

        Raises
        ------
        ValueError
            Always.
        """
        raise ValueError("strategy.kind auto: call evomerge.search.auto_strategy.choose first, or name a strategy")
