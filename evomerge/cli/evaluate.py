"""`evomerge evaluate`: full scores of one model, or of a recipe's model, with confidence intervals."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from evomerge.cli.merge import open_recipe
from evomerge.cli.printing import console, grid
from evomerge.config.errors import ConfigError
from evomerge.config.load import load_recorded
from evomerge.merging.checks import preflight
from evomerge.merging.sources.open_sources import open_source, typed
from evomerge.merging.sources.source import Source
from evomerge.runs.environment import Environment
from evomerge.runs.result import FLAWED
from evomerge.runs.run import Run, RunError, require_run
from evomerge.search.environment import text_hash
from evomerge.search.task_trust import check_for
from evomerge.workers.base import WorkerSettings
from evomerge.workers.start import WorkerInputs, build_worker
from fitness.config import FitnessConfig, Split, TaskConfig
from fitness.estimation.intervals import interval
from fitness.functions.opening import AnyEvaluator, Suite, load_suite
from fitness.objectives import by_task
from fitness.tasks.identity import difference
from fitness.tasks.suite import TaskSuite
from search_spaces.recipes.baselines import source_recipe
from search_spaces.recipes.recipe import Recipe


@dataclass(frozen=True)
class Questions:
    """What a model is asked, and how it is run; `recorded`: how the run asked it, if it is to be asked like a run."""

    suite: Suite
    items: tuple[str, ...]
    fitness: FitnessConfig
    workers: WorkerSettings
    recorded: Environment | None = None


def of_tasks(tasks: Sequence[str], include_path: Sequence[Path], split: Split | None) -> Questions:
    """Return all items of a split of each task, asked as the tasks say."""
    if not tasks:
        raise ConfigError("--tasks: name at least one lm-eval task, or a run with --like")
    try:
        fitness = FitnessConfig(
            tasks=tuple(TaskConfig(task=task) for task in tasks),
            include_path=tuple(str(path.resolve()) for path in include_path),
        )
    except ValidationError as error:
        raise ConfigError(f"--tasks: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None
    suite = TaskSuite.whole(fitness, split or "auto")
    return Questions(suite, suite.pool.subset("all", seed=0), fitness, WorkerSettings())


def of_run(run: Path, trust_tasks: bool = False) -> Questions:
    """Return a run's held-out items, asked as the run asked them; its tasks run only code that is trusted."""
    require_run(run)
    config = load_recorded(run)
    with Run.read(run) as opened:
        recorded = opened.environment()
    seen = frozenset(recorded.earlier.split())
    if config.fitness.kind == "python" and config.fitness.items is None:
        raise RunError(f"--like {run}: its function scores a model as a whole, and no items are held out; use --tasks")
    suite = load_suite(config.fitness, config.seed, check_for(run, trust_tasks), seen)
    return Questions(suite, suite.pool.held_out_ids(), config.fitness, config.workers.settings(), recorded)


def evaluate(model: str, questions: Questions, device: str | None, as_json: bool) -> None:
    """Score a model."""
    checkpoints, base, recipe = _open(model)
    workers = questions.workers if device is None else replace(questions.workers, device=device)
    fitness = questions.fitness
    inputs = WorkerInputs(checkpoints, base, questions.suite, fitness.batch_size, fitness.max_length)
    worker = build_worker(inputs, workers)
    if questions.recorded is not None:
        _check_asked_alike(questions.recorded, questions, worker.evaluator, checkpoints[base].tokenizer.chat_template())
    scored = worker.evaluator.score(worker.engine.apply(recipe), questions.items)
    rows = []
    for task, scores in by_task(scored).items():
        low, high = interval(scores)
        counts = {kind: scored.flaws.get(kind, {}).get(task, 0) for kind in FLAWED}
        score = float(scores.mean())
        rows.append({"task": task, "score": score, "low": low, "high": high, "items": len(scores)} | counts)
    if as_json:
        per_item = {item: float(score) for item, score in zip(scored.items, scored.scores, strict=True)}
        print(json.dumps({"model": model, "tasks": rows, "scores": per_item}, indent=1))
    else:
        columns = ["task", "score", "95 % interval", "items"]
        console().print(grid(columns, [_cells(row) for row in rows]))
        for row in rows:
            for kind, meaning in FLAWED.items():
                if row[kind]:
                    console().print(f"{row['task']}: {row[kind]} of {row['items']} {meaning}", soft_wrap=True)


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
        raise RunError(f"--like: {said} since the run began, so scores would not compare; put it back, or use --tasks")
    if own_template:
        print("warning: the model has another chat template than the run's base, and is asked with it", file=sys.stderr)


def _open(model: str) -> tuple[dict[str, Source], str, Recipe]:
    if Path(model).suffix in (".yaml", ".yml"):
        return open_recipe(Path(model))
    checkpoint = open_source(typed(model))
    preflight.check({model: checkpoint}, model)
    dtype = str(checkpoint.dtype).removeprefix("torch.")
    recipe = source_recipe(checkpoint.reference, checkpoint.layout, out_dtype=dtype)
    return {checkpoint.reference: checkpoint}, checkpoint.reference, recipe


def _cells(row: dict[str, Any]) -> list[str]:
    return [row["task"], f"{row['score']:.3f}", f"{row['low']:.3f} .. {row['high']:.3f}", str(row["items"])]
