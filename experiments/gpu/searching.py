"""Searches on the device: speed and memory, and what happens when memory, numbers or the process fail."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

import evomerge
from evomerge.config.load import load
from evomerge.runs.result import Result
from evomerge.search.api import Progress, resume_search
from evomerge.search.problem import Problem
from evomerge.search.scoring_workers import local_worker
from evomerge.workers.base import Request
from evomerge.workers.inline import MergeWorker
from experiments.gpu.merging import METHODS
from experiments.gpu.setting import Setting
from experiments.merge_speed.cases import recipe
from search_spaces.recipes import mergekit_yaml

NO_REPORT = ("altair", "vl_convert")
"""Packages that only draw the report, too large to be carried. It is drawn last, after the result is written."""


def search(setting: Setting) -> dict[str, Any]:
    """Search over the measured model; compare memory with what `evomerge plan` says."""
    sizes, device = setting.sizes, setting.device
    file = _search_file(setting, "search", setting.models, sizes.items, sizes.evaluations)
    planned = local_worker(Problem(load(file)))
    footprint, placement = planned.footprint, planned.placement.placement
    del planned
    before = device.allocated()
    (result, seconds), peak = device.peak(lambda: device.timed(lambda: _searched(file, setting.folder / "run")))
    candidates = result.stages["candidates"]
    return {
        "evaluations": result.evaluations,
        "answers": result.item_evaluations,
        "seconds": seconds,
        "parts": result.seconds,
        "tokens_per_second": candidates["answers"] * sizes.width / candidates["seconds"],
        "placement": placement,
        "allocated_before": before,
        "peak_bytes": peak,
        "planned_bytes": footprint.peak_bytes,
    }


def out_of_memory(setting: Setting) -> dict[str, Any]:
    """Score with a batch that does not fit; the worker is to halve it until it does, and to stay usable."""
    worker, start = _ready(setting, "hungry", batch_size=16)
    plain, same = _ready(setting, "likelihood", batch_size=16)
    found, expected = worker.evaluate(start), plain.evaluate(same)
    if found.status != "ok":
        raise RuntimeError(f"the candidate failed: {found.reason}")
    return {
        "batch_before": 16,
        "batch_after": worker.evaluator.batch_size,
        "differs": float(np.abs(found.scores - expected.scores).max()),
        "next": worker.evaluate(start).status,
    }


def not_finite(setting: Setting) -> dict[str, Any]:
    """Score a candidate whose weights overflow, and then a sound one: the first fails with a reason."""
    worker, start = _ready(setting, "likelihood", batch_size=setting.sizes.rows)
    broken = recipe(METHODS[1], setting.small, 2, 0)
    for model in broken["models"]:
        model["parameters"]["weight"] = 1e41  # no float32 number
    failed = worker.evaluate(replace(start, recipe=mergekit_yaml.build(broken)))
    sound = worker.evaluate(start)
    if failed.status != "failed" or sound.status != "ok":
        raise RuntimeError(f"the broken candidate is {failed.status}, the next {sound.status}: {sound.reason}")
    return {"reason": failed.reason, "next": sound.status}


def resume(setting: Setting) -> dict[str, Any]:
    """Stop a search in the middle, resume it, and compare with one that was not stopped."""
    evaluations = 12
    file = _search_file(setting, "resume", setting.small, setting.sizes.items, evaluations)
    whole = _searched(file, setting.folder / "whole")
    stopped_at = _stopped(file, setting.folder / "stopped", evaluations // 2)
    try:
        resumed = resume_search(setting.folder / "stopped")
    except ModuleNotFoundError as missing:
        resumed = _without_report(missing, setting.folder / "stopped")
    return {
        "stopped_at": stopped_at,
        "evaluations": resumed.evaluations,
        "same_recipe": resumed.best == whole.best,
        "differs": abs(resumed.search_score - whole.search_score),
    }


def _stopped(file: Path, run: Path, after: int) -> int:
    """Begin a search and interrupt it; return how many evaluations it had made."""

    def interrupt(progress: Progress) -> None:
        if progress.history.evaluations >= after:
            raise KeyboardInterrupt

    try:
        evomerge.search(file, run, interrupt)
    except KeyboardInterrupt:
        return after
    raise RuntimeError("the search was not interrupted")


def _searched(file: Path, run: Path) -> Result:
    try:
        return evomerge.search(file, run)
    except ModuleNotFoundError as missing:
        return _without_report(missing, run)


def _without_report(missing: ModuleNotFoundError, run: Path) -> Result:
    """Return a run's result where only its report could not be drawn."""
    if missing.name not in NO_REPORT:
        raise missing
    return Result.read(run / "result.json")


def _ready(setting: Setting, function: str, *, batch_size: int) -> tuple[MergeWorker, Request]:
    """Return a worker over small models, and the request that scores the start point on all search items."""
    problem = Problem(load(_search_file(setting, function, setting.small, 32, 4, function, batch_size)))
    start = Request(problem.space.decode(problem.space.start), tuple(problem.search_items))
    return local_worker(problem).ready(), start


def _search_file(
    setting: Setting,
    name: str,
    paths: list[str],
    items: int,
    evaluations: int,
    function: str = "likelihood",
    batch_size: int | None = None,
) -> Path:
    """Write a search file, and items of tokens that every model knows."""
    listed = setting.folder / f"{name}.jsonl"
    rows = [[token % 1_000 for token in row] for row in setting.tokens(items, setting.sizes.width)]
    listed.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = {
        "models": {Path(path).name: path for path in paths},
        "space": {"kind": "layer_coefficients", "method": "task_arithmetic", "layers_per_group": 2},
        "strategy": {"kind": "cma_es"},
        "out_dtype": "bfloat16",
        "fitness": {
            "kind": "python",
            "function": f"{Path(__file__).with_name('likelihood.py')}:{function}",
            "function_items": str(listed),
            "held_out": 0.5,
            "batch_size": batch_size or setting.sizes.rows,
        },
        "budget": {"evaluations": evaluations},
        "workers": {"kind": "inline", "device": setting.device.name},
    }
    file = setting.folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    return file
