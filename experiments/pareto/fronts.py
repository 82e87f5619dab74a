"""Two searches for a front at equal cost: NSGA-II once, or CMA-ES once per weight of a weighted sum."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from evomerge.config.load import load
from evomerge.search.problem import Problem
from evomerge.search.scoring_workers import local_worker
from evomerge.strategies import CmaEsConfig, Evaluated, MapConfig, Nsga2Config, RandomConfig
from evomerge.workers.base import Request
from evomerge.workers.inline import MergeWorker
from fitness.objectives import Objectives, means
from fitness.pareto import crowding, hypervolume, ranks
from fitness.results import Evaluation
from search_spaces.spaces.space import Genotype

SEARCH_FILE = Path(__file__).parent.parent / "zoo" / "cma_es.yaml"
TASKS = ("zoo_target_gen", "zoo_short_en")
"""What no model was taught, and what the base knows and loses by learning it."""
CORNER = (0.0, 0.0)
WEIGHTS = (0.1, 0.3, 0.5, 0.7, 0.9)
FRONT = 8
GENES = {
    "parts": "space.layers_per_group=6",
    "models": "space={method: task_arithmetic, groups: model, weight: {low: -0.5, high: 2.0, start: 0.7}}",
}
CONFIGS = {"nsga2": Nsga2Config(), "map": MapConfig(), "random": RandomConfig()}

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Job:
    """One search for a front.

    Attributes
    ----------
    way
        `nsga2`, `map`, `weighted_sums` or `random`.
    evaluations
        In all; weighted sums share them evenly.
    items, held_out_items
        Per task.
    genes
        `parts`: a weight for each expert and part of the model, nine; `models`: one for each expert, three.
    """

    way: str
    seed: int
    evaluations: int
    items: int
    held_out_items: int
    genes: Literal["parts", "models"] = "parts"


@dataclass(frozen=True)
class Front:
    """What a search for a front has found.

    Attributes
    ----------
    held_out
        Held-out scores of up to eight members of the front, float[N][2].
    hypervolume
        Between them and the origin: 1 is both tasks solved.
    """

    way: str
    seed: int
    evaluations: int
    held_out: list[list[float]]
    hypervolume: float
    seconds: float


@cache
def problem(genes: str) -> Problem:
    """Open the zoo's models and the two tasks."""
    tasks = "[{task: " + "}, {task: ".join(TASKS) + "}]"
    settings = [GENES[genes], f"fitness.tasks={tasks}", "fitness.batch_size=400"]
    return Problem(load(SEARCH_FILE, settings), scan=False)


@cache
def worker(genes: str) -> MergeWorker:
    """Build the worker of `problem`; it has the search items prepared."""
    opened = problem(genes)
    built = local_worker(opened).worker
    built.prepare(opened.space.decode(opened.space.start), opened.search_items)
    return built


def search(job: Job) -> Front:
    """Search once, on one thread; the members of the front are chosen by their scores in the search."""
    torch.set_num_threads(1)
    started = time.process_time()
    opened = problem(job.genes)
    items = opened.suite.pool.subset(job.items, job.seed)
    if job.way == "weighted_sums":
        share = job.evaluations // len(WEIGHTS)
        told = [pair for weight in WEIGHTS for pair in _run(CmaEsConfig(), job, share, items, weight)]
    else:
        told = _run(CONFIGS[job.way], job, job.evaluations, items, None)
    points = np.array([evaluation.objectives for _, evaluation in told])
    front = np.flatnonzero(ranks(points) == 0)
    front = front[np.argsort(-crowding(points[front]), kind="stable")[:FRONT]]
    asked = _first_of_each(opened.held_out_items, job.held_out_items)
    held_out = [list(_score(told[at][0], asked, job.genes).objectives) for at in front]
    volume = hypervolume(held_out, CORNER)
    return Front(job.way, job.seed, job.evaluations, held_out, volume, time.process_time() - started)


def _run(
    config: Any, job: Job, evaluations: int, items: Sequence[str], weight: float | None
) -> list[tuple[Genotype, Evaluation]]:
    """Ask and tell; with a weight, the strategy is told a weighted sum, in which it is the first task's weight."""
    space = problem(job.genes).space
    noise = 0.5 / (len(items) / 2) ** 0.5
    strategy = config.resolved(space, noise=noise, evaluations=evaluations).build(space, job.seed)
    found: list[tuple[Genotype, Evaluation]] = []
    while len(found) < evaluations:
        (candidate,) = strategy.ask(1)
        evaluation = _score(candidate.genotype, items, job.genes)
        found.append((candidate.genotype, evaluation))
        if weight is not None:
            value = weight * evaluation.objectives[0] + (1 - weight) * evaluation.objectives[1]
            evaluation = replace(evaluation, objectives=(value,), standard_errors=(noise,), shares=())
        strategy.tell([Evaluated(candidate.id, evaluation)])
    return found


def _score(genotype: Genotype, items: Sequence[str], genes: str) -> Evaluation:
    opened = problem(genes)
    evaluation = worker(genes).evaluate(Request(opened.space.decode(genotype), tuple(items)))
    if evaluation.status != "ok":
        raise RuntimeError(f"a candidate cannot be scored: {evaluation.reason}")
    return Objectives(opened.suite.weights, apart=True).judge(evaluation, means(evaluation))


def _first_of_each(items: Sequence[str], count: int) -> tuple[str, ...]:
    """Return the first items of each task; they alternate between operations and languages."""
    from fitness.items import task_of

    return tuple(item for task in TASKS for item in [one for one in items if task_of(one) == task][:count])
