"""What a search asks its gradient steps, and whether it can take any."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from evomerge.config.errors import ConfigError
from evomerge.config.search_file import SearchConfig
from evomerge.merging.sources.source import Source
from evomerge.workers.gradient_steps import StepInputs
from fitness.estimation.subset import FreshItems
from fitness.functions.opening import Suite
from fitness.functions.suite import FunctionSuite
from fitness.items import positions_by_task
from fitness.scoring.text_losses import TextWindows
from search_spaces.recipes.methods import METHODS
from search_spaces.spaces.derivatives import ChainRule
from search_spaces.spaces.space import SearchSpace


@dataclass(frozen=True)
class GradientSteps:
    """The gradient steps of one search; a strategy without them has none.

    Attributes
    ----------
    config
        The search file; its strategy says how many items a step is asked, and its loss.
    suite
        The tasks.
    space
        Whose genes have the derivatives.
    base
        The base model.
    """

    config: SearchConfig
    suite: Suite
    space: SearchSpace
    base: Source

    @property
    def wanted(self) -> bool:
        """Whether the strategy takes steps."""
        return bool(self.config.strategy.items_per_step)

    def check(self) -> None:
        """Refuse steps where nothing has derivatives, or an item has no loss.

        Raises
        ------
        ConfigError
            The tasks, the weights or the space have no derivatives, or a text does not fit the experts.
        TaskError
            An item has no loss, a text cannot be used, or it holds a held-out question.
        """
        if isinstance(self.suite, FunctionSuite):
            raise ConfigError(
                "strategy.kind gradient: a fitness function returns scores and has no loss to differentiate; write "
                "strategy.kind cma_es, or tasks in place of fitness.function"
            )
        if self.config.fitness.engine.quantization is not None:
            raise ConfigError(
                "strategy.kind gradient: rounded weights have no derivatives (fitness.engine has quantization "
                f"{self.config.fitness.engine.quantization}); remove quantization, or write strategy.kind cma_es"
            )
        self._check_space()
        loss = self.config.strategy.step_loss
        if loss.reads_text:
            assert self.windows is not None
            held_out = [self.suite.item(item) for item in self.suite.pool.held_out_ids()]
            self.windows.check_apart({item.id: self.suite.task(item.task).question(item) for item in held_out})
        elif loss.kind == "right_answer":
            items = self._search_items()
            for task, places in positions_by_task(items).items():
                self.suite.task(task).check_losses([self.suite.item(items[at]) for at in places])

    def _check_space(self) -> None:
        if ChainRule(self.space, self.base.layout).searchable().any():
            return
        specs = [spec for recipe in self.space.structures() for spec in recipe.specs]
        held = ", ".join(dict.fromkeys(spec.name for spec in specs if not spec.differentiable))
        why = f": merged weights are smooth in no parameter of {held}" if held else ""
        names = ", ".join(name for name, spec in METHODS.items() if spec.differentiable)
        raise ConfigError(
            f"strategy.kind gradient: no gene of this space has derivatives{why}; write space.kind "
            f"layer_coefficients with space.method among {names}, or strategy.kind cma_es"
        )

    @cached_property
    def windows(self) -> TextWindows | None:
        """The experts' texts that steps are asked, for losses that read one; raises as `check` does for texts."""
        loss = self.config.strategy.step_loss
        if not loss.reads_text:
            return None
        experts = [name for name in self.config.models if name != self.config.base]
        files = loss.text if isinstance(loss.text, dict) else dict.fromkeys(experts, str(loss.text))
        different = set(files) ^ set(experts)
        if different:
            wrong = "has no text" if min(different) in experts else "is not an expert"
            raise ConfigError(
                f"strategy.loss.text: {min(different)} {wrong}; write a file for each of {', '.join(experts)}, or "
                "one for all"
            )
        return TextWindows(files, self.base.tokenizer.load(), loss.window)

    @cached_property
    def inputs(self) -> StepInputs | None:
        """What workers need for steps; None: there are none."""
        if not self.wanted:
            return None
        strategy, windows = self.config.strategy, self.windows
        return StepInputs(
            ChainRule(self.space, self.base.layout),
            self._search_items() if windows is None else tuple(windows.items),
            strategy.items_per_step,
            strategy.step_loss,
            windows,
            self.config.models,
        )

    def items(self, step: int) -> tuple[str, ...]:
        """Return what a step is asked: fresh search items, or windows of the experts' texts."""
        assert self.inputs is not None
        return self._fresh(self.inputs.count, step)

    @cached_property
    def _fresh(self) -> FreshItems:
        assert self.inputs is not None
        return FreshItems(self.inputs.items, self.config.seed)

    def _search_items(self) -> tuple[str, ...]:
        return self.suite.pool.subset("all", self.config.seed)
