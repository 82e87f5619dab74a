"""Problems without language models: a space of real genes, and a worker that scores genotypes by a formula."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from evomerge.workers.base import Request
from fitness.items import positions_by_task
from fitness.objectives import Objectives, means
from fitness.results import Evaluation
from search_spaces.recipes.parameter_values import constant
from search_spaces.recipes.recipe import Recipe, Slice, Source
from search_spaces.spaces.genes import Real
from search_spaces.spaces.space import Genotype, SearchSpace

Array = NDArray[np.float64]

LOW, HIGH = -0.5, 2.0
"""Range of every weight, as in the zoo's search files."""


class Items(Protocol):
    """What a problem says about a genotype and items, I of them."""

    def scores(self, genotype: Genotype, items: Sequence[int]) -> Array:
        """Return the answers' scores, float64[I]."""

    def losses(self, genotype: Genotype, items: Sequence[int]) -> tuple[Array, Array]:
        """Return the losses, float64[I], and their derivatives by the genes, float64[I, G]."""


class WeightsSpace(SearchSpace):
    """A weight from -0.5 to 2 for each group of tensors and each expert; the models need not exist.

    Its recipes are task arithmetic with one layer for each group.

    Parameters
    ----------
    groups, experts
        There are groups x experts genes; those of one group stand together.
    start
        Where every weight begins.
    """

    def __init__(self, groups: int, experts: int, start: float) -> None:
        self.groups, self.experts = groups, experts
        self.genes = tuple(
            Real(f"expert{expert}.weight[group {group}]", LOW, HIGH, start)
            for group in range(groups)
            for expert in range(experts)
        )

    def decode(self, genotype: Genotype) -> Recipe:
        """Return base + sum of weight x task vector, group by group."""
        table = self.settled(self._checked(genotype)).reshape(self.groups, self.experts)
        slices = tuple(
            Slice(
                (
                    *(
                        Source(f"/models/{expert}", (group, group + 1), (("weight", constant(float(weight))),))
                        for expert, weight in enumerate(row)
                    ),
                    Source("/models/base", (group, group + 1)),
                )
            )
            for group, row in enumerate(table)
        )
        return Recipe("task_arithmetic", slices, "/models/base")

    def encode(self, recipe: Recipe) -> Genotype:
        """Return the weights that `decode` has written down."""
        weights = [dict(source.parameters)["weight"][0].value for part in recipe.slices for source in part.sources[:-1]]
        return np.array(weights, dtype=np.float64)


class NumericWorker:
    """Scores the recipes of such a space: a worker of a search without models.

    Parameters
    ----------
    space
        Turns recipes back into genotypes.
    weights
        Task name to its weight.
    ids
        Ids of all search items; the position of an id is the item's number.
    items
        Gives scores and losses.
    """

    place = "cpu"

    def __init__(self, space: WeightsSpace, weights: dict[str, float], ids: Sequence[str], items: Items) -> None:
        self._space = space
        self._weights = weights
        self._number = {identity: number for number, identity in enumerate(ids)}
        self._items = items

    def evaluate(self, request: Request) -> Evaluation:
        """Score a recipe, or return the items' losses and the derivatives of their weighted mean by the genes."""
        started = time.perf_counter()
        numbers = [self._number[item] for item in request.items]
        if request.gradient_at is not None:
            return self._step(np.array(request.gradient_at), numbers, request.items)
        scores = self._items.scores(self._space.encode(request.recipe), numbers)
        seconds = {"merge": 0.0, "score": time.perf_counter() - started, "wait": 0.0}
        answered = Evaluation("ok", items=request.items, scores=scores.astype(np.float32), seconds=seconds)
        return Objectives(self._weights).judge(answered, means(answered))

    def _step(self, genotype: Genotype, numbers: Sequence[int], ids: tuple[str, ...]) -> Evaluation:
        losses, derivatives = self._items.losses(genotype, numbers)
        total, gradient = 0.0, np.zeros(genotype.size)
        for task, places in positions_by_task(ids).items():
            share = self._weights[task] / sum(self._weights.values())
            total += share * float(losses[places].mean())
            gradient += share * derivatives[places].mean(axis=0)
        return Evaluation(
            "step",
            objectives=(-total,),
            standard_errors=(float(losses.std(ddof=1) / np.sqrt(losses.size)),),
            items=ids,
            scores=(-losses).astype(np.float32),
            seconds={"merge": 0.0, "score": 0.0, "wait": 0.0},
            gradient=tuple(gradient.tolist()),
        )
