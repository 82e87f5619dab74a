"""One search with a strategy of evomerge, in the product's own loop."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import TypeAdapter

from evomerge.config.search_file import BudgetConfig, SearchConfig
from evomerge.runs.history import RunHistory
from evomerge.runs.run import Run, Told
from evomerge.search.auto_strategy import ITEMS, MOST_STEPS, SIGMA_AFTER, choose
from evomerge.search.loop import Search
from evomerge.search.problem import largest_error
from evomerge.strategies import AnyStrategy, Strategy, StrategyConfig
from evomerge.strategies.founded import Founded
from evomerge.workers.inline import InlinePool
from experiments.search_efficiency.metering import BudgetSpent, Curve, Meter
from experiments.search_efficiency.problems import Problem
from fitness.estimation.evaluation_plan import EstimatedPlan, EvaluationPlan, FixedItemsPlan, estimator_inputs
from fitness.estimation.subset import FreshItems, generator
from fitness.items import positions_by_task, task_of
from fitness.objectives import Objectives
from search_spaces.spaces.space import Genotype


@dataclass(frozen=True)
class Measured:
    """A strategy's settings for one problem, and how its candidates are measured.

    Attributes
    ----------
    settings
        Not resolved yet.
    each
        Items of each task that a candidate answers.
    fresh
        Whether each generation answers other items.
    evaluations
        Candidates and steps that the budget is enough for, if all ask as few items as any does.
    """

    settings: StrategyConfig
    each: int
    fresh: bool
    evaluations: int


@dataclass(frozen=True)
class Ours:
    """A strategy at its default settings.

    Attributes
    ----------
    name
        In the table.
    strategy
        The `strategy` part of a search file.
    items
        Items that a candidate answers, over all tasks together.
    fresh
        Whether each generation answers other items.
    apart
        Whether each task is an objective of its own.
    tasks, most_genes
        What it is made for: problems with at least so many tasks and at most so many genes.
    """

    name: str
    strategy: Mapping[str, Any]
    items: int = 50
    fresh: bool = False
    apart: bool = False
    tasks: int = 1
    most_genes: int = 10**9
    deterministic: ClassVar[bool] = False

    @property
    def settings(self) -> str:
        """What its results depend on, besides the program."""
        return f"{json.dumps(dict(self.strategy))}, {self.items} {'fresh' if self.fresh else 'fixed'} items"

    def search(self, problem: Problem, seed: int) -> Curve:
        """Search once until the problem's last checkpoint."""
        how = self.measured(problem)
        noise = largest_error(problem.weights, dict.fromkeys(problem.weights, how.each))
        resolved = how.settings.resolved(problem.space, noise=noise, evaluations=how.evaluations)
        strategy = self.built(resolved, problem, seed)
        meter = Meter(problem)

        def note(history: RunHistory, told: Told) -> None:
            meter.spent += 0 if told.cached else len(told.evaluation.items)
            guess = strategy.recommend()
            if guess is None and history.best is not None:
                guess = history.asked[history.ranking()[0]].candidate.genotype
            if guess is not None:
                meter.guess = np.array(guess)
            meter.note()
            if meter.spent >= problem.checkpoints[-1]:
                raise BudgetSpent

        steps = partial(FreshItems(problem.search_items, seed), how.settings.items_per_step)
        with tempfile.TemporaryDirectory() as folder, Run.create(Path(folder) / "run", "", {}) as run:
            plan = self._plan(problem, how, seed)
            budget = BudgetConfig(evaluations=how.evaluations)
            with suppress(BudgetSpent):
                Search(run, problem.space, strategy, budget, plan, note, steps).search(InlinePool(problem.worker))
        return meter.curve(self.name, seed)

    def measured(self, problem: Problem) -> Measured:
        """Return the strategy's settings for a problem."""
        each = max(1, self.items // len(problem.weights))
        settings: StrategyConfig = TypeAdapter(AnyStrategy).validate_python(dict(self.strategy))
        fewest = min(each, settings.items_per_step or each) * len(problem.weights)
        return Measured(settings, each, self.fresh, -(-problem.checkpoints[-1] // fewest))

    def built(self, resolved: StrategyConfig, problem: Problem, seed: int) -> Strategy:
        """Return the strategy at its start."""
        return resolved.build(problem.space, seed)

    def _plan(self, problem: Problem, how: Measured, seed: int) -> EvaluationPlan:
        objectives = Objectives(problem.weights, apart=self.apart)
        places = positions_by_task(problem.search_items)
        if how.fresh:
            inputs = {
                task: estimator_inputs(task, [problem.search_items[at] for at in places[task]], [], None, "mean")
                for task in problem.weights
            }
            return EstimatedPlan(problem.search_items, inputs, objectives, "mean", how.each, seed, rotate=True)
        return FixedItemsPlan(random_items(problem, how.each, seed), objectives)


@dataclass(frozen=True)
class Default(Ours):
    """What a search does whose file names no strategy: it begins with founders and follows `strategy: auto`."""

    name: str = "default"
    strategy: Mapping[str, Any] = field(default_factory=lambda: {"kind": "auto"})

    @property
    def settings(self) -> str:
        """What its results depend on, besides the program."""
        return f"auto: {ITEMS} items, at most {MOST_STEPS} steps, then sigma {SIGMA_AFTER}"

    def measured(self, problem: Problem) -> Measured:
        """Return what `auto` means for a problem whose loss has derivatives."""
        counts = Counter(task_of(item) for item in problem.search_items)
        evaluations = -(-problem.checkpoints[-1] // (ITEMS * len(problem.weights)))
        file = SearchConfig.model_validate(
            {
                "models": {"base": "base", **{f"expert{at}": f"expert{at}" for at in range(len(problem.experts))}},
                "fitness": {"tasks": list(problem.weights)},
                "budget": evaluations,
                "strategy": dict(self.strategy),
            }
        )
        chosen = choose(file, problem.space, None, counts).config
        subset = chosen.fitness.subset
        assert subset.items != "all"
        return Measured(chosen.strategy, subset.items, subset.rotates(), evaluations)

    def built(self, resolved: StrategyConfig, problem: Problem, seed: int) -> Strategy:
        """Return the strategy behind the founders."""
        return Founded(problem.space, seed, resolved, founders(problem))


def founders(problem: Problem) -> list[Genotype]:
    """Return the base, the experts, their mean, task arithmetic with 0.3 and the start, each point once."""
    ones = np.ones(problem.space.dimension)
    points = [0.0 * ones, *problem.experts, ones / len(problem.experts), 0.3 * ones, np.array(problem.space.start)]
    return [np.array(point) for point in dict.fromkeys(tuple(point.tolist()) for point in points)]


def random_items(problem: Problem, each: int, seed: int) -> tuple[str, ...]:
    """Return random search items, this many of each task."""
    rng = generator(seed, 0)
    chosen = []
    for places in positions_by_task(problem.search_items).values():
        picked = rng.choice(len(places), min(each, len(places)), replace=False)
        chosen += [problem.search_items[places[at]] for at in sorted(picked)]
    return tuple(chosen)
