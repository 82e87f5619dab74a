"""The factor of task arithmetic chosen without right answers, beside the choice by right answers on the same items.

Each factor's merge answers all search items and all held-out items once. A seed draws the items that a choice may look
at; the choices are AdaMMS's (`least_change`), the largest certainty, and the best score.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evomerge.config.search_file import SearchConfig
from evomerge.search.problem import Problem
from evomerge.search.scoring_workers import local_worker
from evomerge.strategies.least_change import different
from evomerge.workers.base import Request
from experiments.data_flow.edits import MODELS, settings
from fitness.estimation.subset import generator
from fitness.results import Evaluation
from search_spaces.recipes.baselines import task_arithmetic_recipe

FACTORS = tuple(round(0.1 * step, 1) for step in range(1, 16))
ITEMS = 100
TASKS = {"generated": "zoo_target_gen", "choices": "zoo_target_mc"}
DEPTH = 6


def line(kind: str, factors: Sequence[float], seeds: int, items: int) -> dict[str, Any]:
    """Return the held-out score of every factor, and what each way chooses, by seed.

    Parameters
    ----------
    kind
        A key of `TASKS`.
    factors
        Of the task vectors, ascending and evenly spaced.
    seeds
        How many draws of items.
    items
        How many search items a choice may look at.
    """
    searched, held_out = _answered(TASKS[kind], factors)
    certain = _answered(TASKS[kind], factors, "choice_certainty")[0] if kind == "choices" else []
    scores = [float(np.mean(one.scores)) for one in held_out]
    rows = []
    for seed in range(seeds):
        drawn = generator(seed, 0).choice(len(searched[0].items), items, replace=False)
        by_label = [float(np.mean(one.scores[drawn])) for one in searched]
        answers = [{one.items[at]: one.answers[at] for at in drawn} for one in searched]
        changes = _changes(answers)
        inside = range(1, len(factors) - 1)
        row: dict[str, Any] = {"seed": seed}
        row["right answers"] = factors[int(np.argmax(by_label))]
        row["least change"] = factors[min(inside, key=lambda at: changes[at])]
        if certain:
            row["certainty"] = factors[int(np.argmax([float(np.mean(one.scores[drawn])) for one in certain]))]
        rows.append(row)
    return {"factors": list(factors), "held_out": scores, "choices": rows}


def _changes(answers: Sequence[Mapping[str, str]]) -> NDArray[np.float64]:
    """Return the mean share of different answers to the two neighbours, float64[N]; infinite at the ends."""
    steps = [different(dict(one), dict(other)) for one, other in itertools.pairwise(answers)]
    inner = [(left + right) / 2 for left, right in itertools.pairwise(steps)]
    return np.array([np.inf, *inner, np.inf])


def _answered(
    task: str, factors: Sequence[float], metric: str | None = None
) -> tuple[list[Evaluation], list[Evaluation]]:
    """Return each merge's answers to all search items and to all held-out items."""
    given = settings(task, "all", strategy={"kind": "random"})
    if metric is not None:
        given["fitness"]["tasks"] = [{"task": task, "metric": metric}]
    problem = Problem(SearchConfig.model_validate(given), scan=False)
    worker = local_worker(problem).worker
    found: tuple[list[Evaluation], list[Evaluation]] = [], []
    for factor in factors:
        recipe = task_arithmetic_recipe(MODELS, DEPTH, factor, out_dtype="float32")
        for side, items in zip(found, (problem.search_items, problem.held_out_items), strict=True):
            side.append(worker.evaluate(Request(recipe, tuple(items), want_answers=True)))
    return found
