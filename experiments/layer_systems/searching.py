"""One search on the zoo with a few thousand answers, and the held-out score of what it would hand over."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from evomerge.config.search_file import SearchConfig
from evomerge.search.problem import Problem
from evomerge.search.scoring_workers import local_worker
from evomerge.strategies import AnyStrategy, Evaluated, StrategyConfig
from evomerge.strategies.founded import Founded
from evomerge.workers.base import Request, Worker
from experiments.data_flow.edits import settings
from fitness.estimation.subset import generator
from fitness.items import positions_by_task, task_of
from fitness.results import Evaluation
from search_spaces.recipes.recipe import Recipe
from search_spaces.spaces.space import Genotype

FIRST = 10
"""Items that a race by halving begins with."""
FINALISTS, CONFIRMED = 5, 200
"""So many of the best candidates are asked so many search items in the end, and so is the strategy's own guess."""


@dataclass
class Searched:
    """A problem of the zoo with its models in memory; equal recipes are scored once.

    Parameters
    ----------
    space
        The search file's section.
    tasks
        What candidates are asked. The score is the mean of the tasks' scores.
    models
        Name to folder; the zoo's four if empty.
    """

    space: Mapping[str, Any]
    tasks: Sequence[str]
    models: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.problem = Problem(SearchConfig.model_validate(self.settings()), scan=False)
        self.worker: Worker = local_worker(self.problem).worker
        self._known: dict[tuple[str, tuple[str, ...]], Evaluation] = {}

    def settings(self) -> dict[str, Any]:
        """Return the search file."""
        given = {"models": dict(self.models)} if self.models else {}
        return settings(self.tasks, "all", space=dict(self.space), strategy={"kind": "random"}, **given)

    def confirming(self) -> tuple[str, ...]:
        """Return the search items that finalists are asked, as many of each task."""
        items, each = self.problem.search_items, CONFIRMED // len(self.tasks)
        return tuple(item for task in self.tasks for item in [one for one in items if task_of(one) == task][:each])

    def mean(self, items: tuple[str, ...], scores: NDArray[np.float32]) -> float:
        """Return the score of a recipe that has these on the items: the mean of the tasks' means."""
        return float(np.mean([scores[places].mean() for places in positions_by_task(items).values()]))

    def scored(self, recipe: Recipe, items: tuple[str, ...]) -> Evaluation:
        """Return the recipe's scores on some items."""
        key = recipe.hash, items
        if key not in self._known:
            evaluation = self.worker.evaluate(Request(recipe, items))
            if evaluation.status != "ok":
                raise RuntimeError(f"a recipe cannot be scored: {evaluation.reason}")
            mean = self.mean(items, evaluation.scores)
            error = float(np.std(evaluation.scores)) / len(items) ** 0.5
            self._known[key] = Evaluation("ok", (mean,), (error,), items, evaluation.scores, evaluation.seconds)
        return self._known[key]

    def held_out(self, recipe: Recipe) -> float:
        """Return the recipe's score on all held-out items, 0 to 1."""
        return self.scored(recipe, tuple(self.problem.held_out_items)).fitness

    def founder(self) -> float:
        """Return the held-out score of the recipe without a search that is best on the items of finalists, 0 to 1."""
        recipes = [self.problem.space.decode(founder.genotype) for founder in self.problem.founders]
        return self.held_out(max(recipes, key=lambda recipe: self.scored(recipe, self.confirming()).fitness))

    def run(self, strategy: Mapping[str, Any], *, seed: int, **size: Any) -> dict[str, Any]:
        """Search once, as `best` does; return the winner's held-out score and layers, and the number of candidates."""
        winner, candidates = self.best(strategy, seed=seed, **size)
        layers = winner.num_layers or self.problem.layout.num_layers
        return {"seed": seed, "score": self.held_out(winner), "candidates": candidates, "layers": layers}

    def best(
        self,
        strategy: Mapping[str, Any],
        *,
        seed: int,
        evaluations: int,
        items: int,
        halving: bool = False,
        founders: Sequence[Genotype] | None = None,
    ) -> tuple[Recipe, int]:
        """Search once; return the best finalist, and the number of candidates.

        Parameters
        ----------
        strategy
            The search file's section.
        seed
            Of the strategy, and of the items that every candidate is asked.
        evaluations
            Candidates besides the founders.
        items
            How many search items a candidate is asked.
        halving
            Ask candidates of a generation few items first and the better half of them more, `FIRST` at first and all of
            four times `items` in the end, until as many answers are given as without.
        founders
            What the strategy is told first; by default the alternatives that need no search.
        """
        problem, space = self.problem, self.problem.space
        config: StrategyConfig = TypeAdapter(AnyStrategy).validate_python(dict(strategy))
        resolved = config.resolved(space, noise=0.5 / items**0.5, evaluations=evaluations)
        first = [founder.genotype for founder in problem.founders] if founders is None else founders
        searcher = Founded(space, seed, resolved, list({genotype.tobytes(): genotype for genotype in first}.values()))
        most = 4 * items if halving else items
        places = generator(seed, 0).choice(len(problem.search_items), most, replace=False)
        asked = tuple(problem.search_items[at] for at in (places if halving else np.sort(places)))
        found: dict[str, tuple[float, Recipe]] = {}
        left, counted = evaluations * items, 0
        while left > 0:
            proposed = searcher.ask(searcher.population if halving else 1)
            if not proposed:
                break  # a strategy that ends by itself
            recipes = {candidate.id: space.decode(candidate.genotype) for candidate in proposed}
            known = {candidate.id for candidate in proposed if candidate.kind in ("founder", "again")}
            scores, spent = self._raced(recipes, asked, known) if halving else self._asked(recipes, asked, known)
            left -= spent
            counted += len(recipes) - len(known)
            for identity, evaluation in scores.items():
                if len(evaluation.items) == len(asked):
                    found[recipes[identity].hash] = evaluation.fitness, recipes[identity]
            searcher.tell([Evaluated(identity, evaluation) for identity, evaluation in scores.items()])
        best = sorted(found.values(), key=lambda pair: -pair[0])[:FINALISTS]
        finalists = [recipe for _, recipe in best]
        guess = searcher.recommend()
        if guess is not None:
            finalists.append(space.decode(space.settled(guess)))
        confirmed = self.confirming()
        return max(finalists, key=lambda recipe: self.scored(recipe, confirmed).fitness), counted

    def _asked(
        self, recipes: Mapping[int, Recipe], items: tuple[str, ...], known: Collection[int]
    ) -> tuple[dict[int, Evaluation], int]:
        """Return the scores of recipes on the items, and how many answers of others than `known` these are."""
        scores = {identity: self.scored(recipe, items) for identity, recipe in recipes.items()}
        return scores, len(items) * len(recipes.keys() - set(known))

    def _raced(
        self, recipes: Mapping[int, Recipe], items: tuple[str, ...], known: Collection[int]
    ) -> tuple[dict[int, Evaluation], int]:
        """The same, with the better half asked twice as many items each time; `known` recipes are asked all."""
        scores, _ = self._asked({identity: recipes[identity] for identity in known}, items, ())
        racing = [identity for identity in recipes if identity not in scores]
        answers = count = 0
        while racing:
            before, count = count, min(len(items), max(FIRST, 2 * count))
            answers += (count - before) * len(racing)
            scores |= {identity: self.scored(recipes[identity], items[:count]) for identity in racing}
            if count == len(items):
                break
            racing = sorted(racing, key=lambda identity: -scores[identity].fitness)[: (len(racing) + 1) // 2]
        return scores, answers
