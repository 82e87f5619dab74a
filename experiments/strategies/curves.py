"""One search in this process, and how good its guess was along the way."""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evomerge.config.load import load
from evomerge.config.search_file import BudgetConfig
from evomerge.runs.history import RunHistory
from evomerge.runs.run import Run, Told
from evomerge.search.loop import Search
from evomerge.search.problem import Problem
from evomerge.search.scoring_workers import local_worker
from evomerge.workers.base import Request
from evomerge.workers.inline import InlinePool, MergeWorker
from experiments.strategies.contenders import Contender, FreshItems
from fitness.estimation.evaluation_plan import FixedItemsPlan
from fitness.objectives import Objectives
from search_spaces.recipes.recipe import Recipe
from search_spaces.spaces.space import Genotype

EXPERIMENTS = Path(__file__).parent.parent
SEARCH_FILE = EXPERIMENTS / "zoo" / "cma_es.yaml"
KNOWN = EXPERIMENTS / "zoo" / "found_weights.json"


@dataclass(frozen=True)
class Curve:
    """Held-out score of a search's guess, 0 to 1, after a number of item evaluations.

    The guess is what the strategy recommends (a distribution's mean), else the best candidate so far: what a
    search that ended there would offer before its finalists are confirmed.
    """

    contender: str
    seed: int
    spent: list[int]
    held_out: list[float]
    evaluations: int
    seconds: float


@cache
def problem(*changes: str) -> Problem:
    """Open `zoo/cma_es.yaml`'s models, task and space (a weight per expert and layer, 24 genes), with these changes."""
    return Problem(load(SEARCH_FILE, ["fitness.batch_size=300", *changes]), scan=False)


@cache
def worker(*changes: str) -> MergeWorker:
    """Build the worker of `problem`; it has the search items prepared."""
    opened = problem(*changes)
    built = local_worker(opened).worker
    built.prepare(opened.space.decode(opened.space.start), opened.search_items)
    return built


def held_out(recipe: Recipe, count: int) -> float:
    """Score a recipe on `zoo/cma_es.yaml`'s first `count` held-out items, where operations and languages alternate."""
    opened = problem()
    evaluation = worker().evaluate(Request(recipe, tuple(opened.held_out_items[:count])))
    if evaluation.status != "ok":
        raise RuntimeError(f"a guess cannot be scored: {evaluation.reason}")
    return evaluation.fitness


def known(count: int) -> float:
    """Score the best weights known in `zoo/cma_es.yaml`'s space, found by a long search when the zoo was made."""
    layers = json.loads(KNOWN.read_text(encoding="utf-8"))["per layer"].values()
    return held_out(problem().space.decode(np.array([weight for layer in layers for weight in layer])), count)


@dataclass(frozen=True)
class Job:
    """One search; `spent`: item evaluations at which the guess is scored, the last of them is the budget."""

    contender: Contender
    seed: int
    spent: tuple[int, ...]
    held_out_items: int


def search(job: Job) -> Curve:
    """Search once, on one thread."""
    torch.set_num_threads(1)
    contender, seed, spent = job.contender, job.seed, job.spent
    started = time.process_time()
    opened = problem(*contender.changes)
    space = opened.space
    evaluations = -(-spent[-1] // contender.items)
    noise = 0.5 / contender.items**0.5
    settings = strategy_config(contender.strategy)
    strategy = settings.resolved(space, noise=noise, evaluations=evaluations).build(space, seed)
    objectives = Objectives(opened.suite.weights)
    if contender.fresh:
        plan: FixedItemsPlan = FreshItems(opened.search_items, contender.items, objectives, seed)
    else:
        plan = FixedItemsPlan(opened.suite.pool.subset(contender.items // len(opened.suite.weights), seed), objectives)
    guesses: list[Genotype] = []

    def note(history: RunHistory, told: Told) -> None:
        asked = len(history.told) * contender.items  # repeated recipes cost nothing, and count all the same
        while len(guesses) < len(spent) and asked >= spent[len(guesses)]:
            guess = strategy.recommend()
            best = history.asked[history.ranking()[0]].candidate.genotype if history.best is not None else space.start
            guesses.append(np.array(best if guess is None else guess))

    with tempfile.TemporaryDirectory() as folder, Run.create(Path(folder) / "run", "", {}) as run:
        state = Search(run, space, strategy, BudgetConfig(evaluations=evaluations), plan, note)
        state.search(InlinePool(worker(*contender.changes)))
    scores = [held_out(space.decode(guess), job.held_out_items) for guess in guesses]
    return Curve(contender.name, seed, list(spent[: len(scores)]), scores, evaluations, time.process_time() - started)


def strategy_config(values: Any) -> Any:
    """Return the settings that a `strategy` part of a search file stands for."""
    from pydantic import TypeAdapter

    from evomerge.strategies import AnyStrategy

    return TypeAdapter(AnyStrategy).validate_python(dict(values))
