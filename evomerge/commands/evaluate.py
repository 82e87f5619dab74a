"""`evomerge evaluate`: full scores of one model, or of a recipe's model, with confidence intervals."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from evomerge.commands.merge import open_recipe
from evomerge.commands.output import console, grid
from evomerge.merging.checkpoints import Checkpoint
from evomerge.merging.engine import MergeEngine
from evomerge.problem import torch_device
from fitness.config import FitnessConfig, TaskConfig
from fitness.objectives import by_task
from fitness.scoring import Evaluator
from fitness.statistics import interval
from fitness.tasks import TaskSuite
from search_spaces.baselines import source_recipe
from search_spaces.recipe import Recipe


def evaluate(
    model: str,
    tasks: Sequence[str],
    include_path: Sequence[Path],
    split: Literal["auto", "train", "validation", "test"],
    batch_size: int,
    device: str,
    as_json: bool,
) -> None:
    """Score a model on all items of a split of each task."""
    config = FitnessConfig(
        tasks=tuple(TaskConfig(task=task) for task in tasks),
        include_path=tuple(str(path.resolve()) for path in include_path),
        batch_size=batch_size,
    )
    suite = TaskSuite.whole(config, split)
    engine, recipe = _open(model, torch_device(device))
    base = engine.checkpoints[recipe.base_model or recipe.models[0]]
    evaluator = Evaluator(suite, base.tokenizer(), batch_size=batch_size, device=torch_device(device))
    scored = evaluator.score(engine.apply(recipe), suite.pool.subset("all", seed=0))
    rows = []
    for task, scores in by_task(scored).items():
        low, high = interval(scores)
        rows.append({"task": task, "score": float(scores.mean()), "low": low, "high": high, "items": len(scores)})
    if as_json:
        per_item = {item: float(score) for item, score in zip(scored.items, scored.scores, strict=True)}
        print(json.dumps({"model": model, "tasks": rows, "scores": per_item}, indent=1))
    else:
        columns = ["task", "score", "95 % interval", "items"]
        console().print(grid(columns, [_cells(row) for row in rows]))


def _open(model: str, device: str) -> tuple[MergeEngine, Recipe]:
    if Path(model).suffix in (".yaml", ".yml"):
        return open_recipe(Path(model), device)
    checkpoint = Checkpoint.open(model)
    engine = MergeEngine({checkpoint.reference: checkpoint}, base=checkpoint.reference, device=device)
    dtype = str(checkpoint.dtype).removeprefix("torch.")
    return engine, source_recipe(checkpoint.reference, checkpoint.layout, out_dtype=dtype)


def _cells(row: dict[str, Any]) -> list[str]:
    return [row["task"], f"{row['score']:.3f}", f"{row['low']:.3f} .. {row['high']:.3f}", str(row["items"])]
