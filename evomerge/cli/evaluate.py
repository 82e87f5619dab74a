"""`evomerge evaluate`: full scores of models and of recipes' models, with confidence intervals and paired tests."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError
from rich.console import Console

from evomerge.cli.merging import open_recipe
from evomerge.cli.printing import console, grid, only_json
from evomerge.config.errors import ConfigError
from evomerge.config.keyed import keyed
from evomerge.config.load import load_recorded, located
from evomerge.files.references import named_twice
from evomerge.merging.checks import preflight
from evomerge.merging.sources.open_sources import open_source, typed
from evomerge.merging.sources.source import Source
from evomerge.runs.environment import Environment
from evomerge.runs.result import ALL_TASKS, FLAWED, scores_p_value, weighted_mean
from evomerge.runs.run import Run, RunError, require_run
from evomerge.search.environment import text_hash
from evomerge.search.task_trust import check_for
from evomerge.workers.base import WorkerSettings
from evomerge.workers.start import WorkerInputs, build_worker
from fitness.config import FitnessConfig, Split, TaskConfig
from fitness.estimation.intervals import holm, interval, p_text, weighted_interval
from fitness.functions.opening import AnyEvaluator, Suite, load_suite
from fitness.items import positions_by_task
from fitness.objectives import by_task
from fitness.results import ItemScores
from fitness.scoring.engine_config import TransformersEngine
from fitness.tasks.identity import difference
from fitness.tasks.suite import TaskSuite
from search_spaces.recipes.baselines import source_recipe
from search_spaces.recipes.recipe import Recipe


@dataclass(frozen=True)
class Asking:
    """How models are asked, where the tasks or the run do not decide; None: as they say. Meanings are lm-eval's.

    Attributes
    ----------
    num_fewshot
        Examples before each question.
    limit
        The first so many items of each task; below 1 that part of them.
    apply_chat_template
        Whether prompts are formatted with the tokenizer's chat template.
    allow_code
        Whether tasks may run programs that the models write, in a sandbox.
    """

    num_fewshot: int | None = None
    limit: float | None = None
    apply_chat_template: bool = False
    allow_code: bool = False

    def first(self, items: Sequence[str]) -> tuple[str, ...]:
        """Return the items that are asked, in the order of all items.

        Raises
        ------
        ConfigError
            If the limit is not a number of items, nor a part of them.
        """
        limit = self.limit
        if limit is None:
            return tuple(items)
        if not limit > 0 or math.isinf(limit) or (limit > 1 and limit != int(limit)):
            raise ConfigError(f"--limit {limit:g}: write a number of items per task, or a share of them such as 0.1")
        kept: set[int] = set()
        for places in positions_by_task(items).values():
            kept |= set(places[: math.ceil(len(places) * limit) if limit < 1 else int(limit)])
        return tuple(item for at, item in enumerate(items) if at in kept)


@dataclass(frozen=True)
class Questions:
    """What models are asked, and how they are run; `recorded`: how a run asked it, if it is to be asked like that."""

    suite: Suite
    items: tuple[str, ...]
    fitness: FitnessConfig
    workers: WorkerSettings
    recorded: Environment | None = None


@dataclass(frozen=True)
class Scored:
    """One model's scores, and its rows of the table."""

    model: str
    evaluation: ItemScores
    rows: list[dict[str, Any]]

    @property
    def scores(self) -> dict[str, np.ndarray]:
        """Task name to its scores, float32[I]."""
        return by_task(self.evaluation)

    def to_json(self) -> dict[str, Any]:
        """Return the values for scripts."""
        pairs = zip(self.evaluation.items, self.evaluation.scores, strict=True)
        return {"model": self.model, "tasks": self.rows, "scores": {item: float(score) for item, score in pairs}}


def of_tasks(
    tasks: Sequence[str], include_path: Sequence[Path], split: Split | None, asking: Asking = Asking()
) -> Questions:
    """Return all items of a split of each task, asked as the tasks say and `asking` adds."""
    if not tasks or not all(tasks):
        raise ConfigError("--tasks: name at least one lm-eval task, or a run with --like")
    try:
        fitness = FitnessConfig(
            tasks=tuple(TaskConfig(task=task) for task in tasks),
            include_path=tuple(str(path.resolve()) for path in include_path),
            num_fewshot=asking.num_fewshot,
            apply_chat_template=asking.apply_chat_template,
            allow_code=asking.allow_code,
        )
    except ValidationError as error:
        raise ConfigError(f"--tasks: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None
    suite = TaskSuite.whole(fitness, split or "auto")
    return Questions(suite, asking.first(suite.pool.subset("all", seed=0)), fitness, WorkerSettings())


def of_run(run: Path, trust_tasks: bool = False, asking: Asking = Asking()) -> Questions:
    """Return a run's held-out items, asked as the run asked them; its tasks run only code that is trusted."""
    for option, value in (
        ("--num-fewshot", asking.num_fewshot),
        ("--apply-chat-template", asking.apply_chat_template or None),
        ("--allow-code", asking.allow_code or None),
    ):
        if value is not None:
            raise ConfigError(
                f"{option}: with --like the run decides how items are asked; leave it out, or use --tasks"
            )
    require_run(run)
    config = load_recorded(run)
    with Run.read(run) as opened:
        recorded = opened.environment()
    seen = frozenset(recorded.earlier.split())
    if config.fitness.kind == "python" and config.fitness.function_items is None:
        raise RunError(f"--like {run}: its function scores a model as a whole, and no items are held out; use --tasks")
    with located(run / "config.yaml"), keyed(config):
        suite = load_suite(config.fitness, config.seed, check_for(run, trust_tasks), seen)
    items = asking.first(suite.pool.held_out_ids())
    return Questions(suite, items, config.fitness, config.workers.settings(), recorded)


def evaluate(
    models: Sequence[str],
    questions: Questions,
    device: str | None,
    as_json: bool,
    batch_size: int | None = None,
    *,
    allow_unrelated: bool = False,
) -> None:
    """Score models and recipes on the same items; several are compared with each other by paired tests."""
    twice = named_twice(models)
    if twice is not None:
        raise ConfigError(f"evaluate: {twice}; name each model once")
    size = batch_size or questions.fitness.batch_size
    with only_json(as_json):
        scored = [_scored(model, questions, device, size, allow_unrelated) for model in models]
    weights = {task: questions.suite.weights[task] for task in scored[0].scores}
    if len(scored) == 1:
        _print_one(scored[0], as_json)
        return
    if len(weights) > 1:
        for one in scored:
            one.rows.append(_overall(one, weights))
    compared = comparisons({one.model: one.scores for one in scored}, weights)
    if as_json:
        found = {"models": [one.to_json() for one in scored], "comparisons": compared}
        print(json.dumps(found, indent=1))
        return
    out = console()
    rows = sorted((row | {"model": one.model} for one in scored for row in one.rows), key=_by_task(scored[0]))
    names = _short_names(models)
    out.print(grid(["model", *COLUMNS], [[names[row["model"]], *_cells(row)] for row in rows]))
    out.print("\npaired tests (difference: first minus second; p: Holm's correction over the pairs of a task)")
    cells = [
        [
            f"{names[one['first']]} - {names[one['second']]}",
            one["task"],
            f"{one['difference']:+.3f}",
            p_text(one["p_value"]),
        ]
        for one in compared
    ]
    out.print(grid(["models", "task", "difference", "p"], cells))
    for one in scored:
        _print_flaws(one, out, prefix=f"{names[one.model]}: ")


def comparisons(scores: Mapping[str, Mapping[str, np.ndarray]], weights: Mapping[str, float]) -> list[dict[str, Any]]:
    """Compare every two models on each task, and on the weighted mean of several.

    Parameters
    ----------
    scores
        Model to task to scores, float32[I], of the same items.
    weights
        Task name to its weight in the mean.

    Returns
    -------
    list of dict
        `task`, `first`, `second`, `difference` of the mean scores, `p_value` after Holm's correction over the pairs.
    """
    found = []
    for task in [*weights, ALL_TASKS] if len(weights) > 1 else list(weights):
        use = weights if task == ALL_TASKS else {task: 1.0}
        pairs = list(combinations(scores, 2))
        tests = [scores_p_value(scores[one], scores[other], use) for one, other in pairs]
        for (one, other), p_value in zip(pairs, holm(tests), strict=True):
            difference = weighted_mean(scores[one], use) - weighted_mean(scores[other], use)
            found.append({"task": task, "first": one, "second": other, "difference": difference, "p_value": p_value})
    return found


def _short_names(models: Sequence[str]) -> dict[str, str]:
    """Return the last parts of the models' paths, so that tables fit a terminal; whole ones where these are equal."""
    last = {model: Path(model).name for model in models}
    return last if len(set(last.values())) == len(last) else {model: model for model in models}


COLUMNS = ("task", "score", "95 % interval", "items")


def _scored(model: str, questions: Questions, device: str | None, batch_size: int, allow_unrelated: bool) -> Scored:
    checkpoints, base, recipe = _open(model, allow_unrelated)
    template = checkpoints[base].tokenizer.chat_template()
    if questions.suite.apply_chat_template and questions.recorded is None and not template:
        raise ConfigError(f"--apply-chat-template: the tokenizer of {model} has no chat template; leave it out")
    workers = questions.workers if device is None else replace(questions.workers, device=device)
    fitness = questions.fitness
    inputs = WorkerInputs(checkpoints, base, questions.suite, batch_size, fitness.max_length, engine=fitness.engine)
    worker = build_worker(inputs, workers)
    if questions.recorded is not None:
        _check_asked_alike(questions.recorded, questions, worker.evaluator, template)
    if not isinstance(fitness.engine, TransformersEngine):
        worker.prepare(recipe, questions.items)
    scored = worker.evaluator.score(worker.engine.apply(recipe, unquantized=True), questions.items, want_answers=True)
    worker.close()
    rows = []
    for task, scores in by_task(scored).items():
        low, high = interval(scores)
        counts = {kind: scored.flaws.get(kind, {}).get(task, 0) for kind in FLAWED}
        score = float(scores.mean())
        rows.append({"task": task, "score": score, "low": low, "high": high, "items": len(scores)} | counts)
    return Scored(model, scored, rows)


def _overall(one: Scored, weights: Mapping[str, float]) -> dict[str, Any]:
    """Return the row of the weighted mean of all tasks."""
    scores = one.scores
    low, high = weighted_interval([(scores[task], weight) for task, weight in weights.items()])
    counts = {kind: sum(row[kind] for row in one.rows) for kind in FLAWED}
    items = sum(row["items"] for row in one.rows)
    score = weighted_mean(scores, weights)
    return {"task": ALL_TASKS, "score": score, "low": low, "high": high, "items": items} | counts


def _by_task(first: Scored) -> Callable[[Mapping[str, Any]], int]:
    """Return the key that puts the models' rows of one task together."""
    order = {row["task"]: number for number, row in enumerate(first.rows)}
    return lambda row: order[row["task"]]


def _print_one(one: Scored, as_json: bool) -> None:
    if as_json:
        print(json.dumps(one.to_json(), indent=1))
        return
    out = console()
    out.print(grid(COLUMNS, [_cells(row) for row in one.rows]))
    _print_flaws(one, out)


def _print_flaws(one: Scored, out: Console, prefix: str = "") -> None:
    for row in one.rows:
        for kind, meaning in FLAWED.items():
            if row[kind] and row["task"] != ALL_TASKS:
                out.print(f"{prefix}{row['task']}: {row[kind]} of {row['items']} {meaning}", soft_wrap=True)


def _check_asked_alike(
    recorded: Environment, questions: Questions, evaluator: AnyEvaluator, template: str | None
) -> None:
    """Refuse to ask other questions than the run did; say so if the model's own chat template puts them otherwise.

    Raises
    ------
    RunError
        If the tasks, or the settings that decide how they are asked, have changed since the run.
    """
    own_template = recorded.chat_template not in ("", text_hash(template))
    found = questions.suite.identity(evaluator.requests, frozenset(questions.items))
    said = difference(recorded.items, found, sides=("held_out",), prompts=not own_template)
    limit = recorded.config.get("fitness", {}).get("max_length")
    if said is None and limit != questions.fitness.max_length:
        said = f"max_length was {limit} and is {questions.fitness.max_length}"
    if said is not None:
        raise RunError(f"--like: {said} since the run began, so scores are not comparable; put it back, or use --tasks")
    if own_template:
        print("warning: the model has another chat template than the run's base, and is asked with it", file=sys.stderr)


def _open(model: str, allow_unrelated: bool) -> tuple[dict[str, Source], str, Recipe]:
    if Path(model).suffix in (".yaml", ".yml"):
        return open_recipe(Path(model), allow_unrelated=allow_unrelated)
    checkpoint = open_source(typed(model))
    preflight.check({model: checkpoint}, model)
    dtype = str(checkpoint.dtype).removeprefix("torch.")
    recipe = source_recipe(checkpoint.reference, checkpoint.layout, out_dtype=dtype)
    return {checkpoint.reference: checkpoint}, checkpoint.reference, recipe


def _cells(row: dict[str, Any]) -> list[str]:
    return [row["task"], f"{row['score']:.3f}", f"{row['low']:.3f} .. {row['high']:.3f}", str(row["items"])]
