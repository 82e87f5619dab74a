"""`evomerge fit-items`: item parameters from other models' answers to the same items."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from evomerge.cli.printing import console, grid
from evomerge.config.errors import ConfigError
from evomerge.files.atomic import atomic_file
from evomerge.runs.history import RunHistory
from evomerge.runs.run import OF_HELD_OUT_ITEMS, Run, is_run
from fitness.estimation.irt import item_fit
from fitness.estimation.item_banks import (
    ItemBanks,
    Responses,
    by_task,
    fit_item_banks,
    from_run,
    read_csv,
    read_matrix,
    read_samples,
)

MISFIT = 1.3  # of infit: above, an item measures something else


def fit_items(
    sources: Sequence[Path],
    output: Path,
    *,
    task: str | None,
    split: str,
    metric: str | None,
    filter_name: str | None,
    dimensions: int | None,
    as_json: bool,
) -> None:
    """Fit item parameters and write them beside the answers they come from."""
    if output.suffix != ".npz":
        raise ConfigError(f"-o {output}: name a file that ends in .npz")
    if not output.resolve().parent.is_dir():
        raise ConfigError(f"-o {output}: the folder {output.parent} does not exist; create it, or name another")
    try:
        responses = _read(sources, task, split, metric, filter_name)
        fitted = {name: fit_item_banks(found, dimensions=dimensions) for name, found in responses.items()}
    except (ValueError, OSError) as error:
        raise ConfigError(str(error)) from None
    banks = ItemBanks(responses, fitted)
    with atomic_file(output) as temporary, temporary.open("wb") as file:
        banks.save(file)
    summary = [_summary(name, banks) for name in responses]
    if as_json:
        print(json.dumps({"item_bank": str(output), "tasks": summary}, indent=1))
        return
    out = console()
    out.print(grid(["task", "models", "items", "answered", "dimensions", "misfits"], [_cells(row) for row in summary]))
    out.print(f"wrote {output}; use it with", soft_wrap=True)
    used = {"fitness": {"subset": {"items": 30, "item_bank": str(output.resolve())}}}
    text = yaml.safe_dump(used, default_flow_style=True, sort_keys=False, width=10_000, allow_unicode=True)
    out.print(f"  {text.strip()[1:-1]}", soft_wrap=True)


def _read(
    sources: Sequence[Path], task: str | None, split: str, metric: str | None, filter_name: str | None
) -> Mapping[str, Responses]:
    """Read one run, one matrix, or sample logs and folders of them."""
    missing = next((path for path in sources if not path.exists()), None)
    if missing is not None:
        raise ConfigError(f"{missing}: no such file or folder; give lm-eval's sample logs, a matrix, or a run")
    first = sources[0]
    if is_run(first) or first.suffix in (".npz", ".csv"):
        if len(sources) > 1:
            raise ConfigError(f"{sources[1]}: a run or a matrix must be the only source; remove the others")
        if is_run(first):
            with Run.read(first) as run:
                return by_task(_answers(run))
        return by_task(read_csv(first) if first.suffix == ".csv" else read_matrix(first), task, split)
    found = read_samples(sources, metric, filter_name, split)
    if task is None:
        return found
    if task not in found:
        raise ConfigError(f"--task {task}: the logs are about {', '.join(found)}; name one of them")
    return {task: found[task]}


def _answers(run: Run) -> Responses:
    """Read what a run's sources, candidates and finalists answered, the held-out items left out."""
    history = RunHistory(run.events())
    answers = {
        f"{purpose} {recipe}": (evaluation.items, evaluation.scores)
        for (purpose, recipe), evaluation in history.reference_scores.items()
        if purpose not in OF_HELD_OUT_ITEMS
    }
    for identity, told in history.told.items():
        if told.evaluation.has_scores and not told.cached:
            answers[f"candidate {identity}"] = (told.evaluation.items, told.evaluation.scores)
    return from_run(answers)


def _summary(task: str, item_banks: ItemBanks) -> dict[str, Any]:
    responses, banks = item_banks.responses[task], item_banks.banks[task]
    misfit_I = item_fit(banks[0], responses.scores).infit > MISFIT
    return {
        "task": task,
        "models": len(responses.models),
        "items": len(responses.items),
        "answered": float(1 - np.isnan(responses.scores).mean()),
        "dimensions": [bank.dimensions for bank in banks],
        "misfits": int(misfit_I.sum()),
    }


def _cells(row: Mapping[str, Any]) -> list[str]:
    dimensions = " and ".join(map(str, row["dimensions"]))
    return [
        row["task"],
        str(row["models"]),
        str(row["items"]),
        f"{100 * row['answered']:.0f} %",
        dimensions,
        str(row["misfits"]),
    ]
