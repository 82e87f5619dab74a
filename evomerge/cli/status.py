"""`evomerge status` and `evomerge runs`: read-only, also while a search writes."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from shlex import quote
from statistics import fmean
from typing import Any

from rich.console import Console

from evomerge.cli.printing import console, duration, grid, print_held_out, print_next
from evomerge.cli.progress import best_so_far
from evomerge.config.errors import ConfigError
from evomerge.config.load import load
from evomerge.config.search_file import BudgetConfig
from evomerge.files.messages import counted
from evomerge.runs.bill import Bill
from evomerge.runs.history import RunHistory
from evomerge.runs.result import Result
from evomerge.runs.run import LogError, Run, RunError, in_use, is_run


def status(path: Path, as_json: bool) -> None:
    """Print the state of a run."""
    if as_json:
        print(json.dumps(summarised(path)[0], indent=1))
        return
    print_summary(console(), path)


def print_summary(out: Console, path: Path) -> None:
    """Print the state of a run for people."""
    summary, history, result = summarised(path)
    out.print(
        f"{path}: {summary['state']}, {summary['evaluations']}/{counted(summary['budget'], 'evaluation')} "
        f"({history.failed} failed, {history.cached} repeated), {counted(history.item_evaluations, 'item evaluation')}"
    )
    if history.best is not None:
        out.print(f"best search score {best_so_far(history)} (candidate {history.best})")
    if history.elapsed:
        parts = ", ".join(f"{name} {100 * value / history.elapsed:.1f} %" for name, value in history.seconds.items())
        out.print(f"searched for {duration(history.elapsed)}: {parts}")
    _print_stages(out, history, summary["expected"])
    if summary["remaining_seconds"]:
        out.print(f"about {duration(summary['remaining_seconds'])} remain")
    if result is not None:
        out.print(f"recipe of best.yaml: {result.best}")
        if result.selection:
            out.print(result.selection)
        print_held_out(out, result)
        if result.verdict is not None:
            out.print(result.verdict.sentence, soft_wrap=True)
        print_next(out, path)
    elif summary["state"] == "stopped":
        out.print(f"next: evomerge resume {quote(str(path))}", soft_wrap=True)


def _print_stages(out: Console, history: RunHistory, expected: Mapping[str, float]) -> None:
    """Print what each stage has asked, what it was expected to ask, and its seconds."""
    rows = [
        [name, f"{cost.answers:,}", f"{expected[name]:,.0f}" if name in expected else "", duration(cost.seconds)]
        for name, cost in history.stages.items()
        if cost.answers or expected.get(name)
    ]
    if rows:
        out.print(grid(["stage", "answers", "expected", "merging and scoring"], rows))


def runs(folder: Path, as_json: bool) -> None:
    """Print one line per run in a folder; a damaged one does not hide the others."""
    if not folder.is_dir():
        raise RunError(f"{folder}: no such folder; name the folder with your run directories")
    found = sorted(path for path in folder.iterdir() if _may_be_read(path) and is_run(path))
    summaries = [_summary_or_reason(path) for path in found]
    if as_json:
        print(json.dumps(summaries, indent=1))
        return
    rows = [[s["run"], s["state"], f"{s.get('evaluations', '?')}/{s.get('budget', '?')}", _score(s)] for s in summaries]
    console().print(grid(["run", "state", "evaluations", "score"], rows))


def _may_be_read(folder: Path) -> bool:
    return os.access(folder, os.X_OK)


def _score(summary: dict[str, Any]) -> str:
    """Return the held-out score of a finished run, else the best search score so far, with its error."""
    if summary.get("held_out"):
        row = summary["held_out"][0]
        return f"{row['score']:.3f} ({row['low']:.3f} .. {row['high']:.3f}) held out"
    best = summary.get("best")
    return f"{best['score']:.3f} +- {best['standard_error']:.3f} searching" if best else "-"


def _summary_or_reason(path: Path) -> dict[str, Any]:
    try:
        return summarised(path)[0]
    except (RunError, LogError, ConfigError) as error:
        return {"run": str(path), "state": "damaged", "reason": str(error)}


def summarised(path: Path) -> tuple[dict[str, Any], RunHistory, Result | None]:
    """Return the state of a run as plain data, its history, and its result if it has one.

    Raises
    ------
    RunError, LogError, ConfigError
        If it is not a run directory, or one of its files is damaged.
    """
    with Run.read(path) as run:
        history = RunHistory(run.events())
    budget = load(path / "config.yaml").budget
    file = path / "result.json"
    result = Result.read(file) if file.is_file() else None
    bill = Bill.read(path)
    searching = in_use(path)
    best = None
    if history.best is not None:
        evaluation = history.evaluation(history.best)
        best = {
            "candidate": history.best,
            "recipe": history.asked[history.best].recipe,
            "score": evaluation.value,
            "standard_error": evaluation.standard_error,
        }
    summary = {
        "run": str(path),
        "state": "searching" if searching else "finished" if result is not None else "stopped",
        "evaluations": history.evaluations,
        "budget": budget.evaluations,
        "failed": history.failed,
        "cached": history.cached,
        "stage": history.stage,
        "in_flight": len(history.open),
        "generation": _generation(history),
        "last_failure": _last_failure(history),
        "item_evaluations": history.item_evaluations,
        "expected_answers": None if bill is None else _in_all(bill, history),
        "expected": {} if bill is None else {name: line.answers for name, line in bill.lines.items()},
        "best": best,
        "elapsed_seconds": history.elapsed,
        "remaining_seconds": _remaining(history, budget, bill) if searching or result is None else None,
        "seconds": history.seconds,
        "overhead_share": history.seconds["overhead"] / history.elapsed if history.elapsed else None,
        "selection_bias": result.selection_bias if result is not None else None,
        "held_out": json.loads(result.to_json())["held_out"] if result is not None else None,
    }
    return summary, history, result


def _in_all(bill: Bill, history: RunHistory) -> float:
    """Return how many answers the whole search asks, from what it has asked and what is left."""
    return history.item_evaluations + sum(line.answers for line in bill.remaining(history).values())


def _generation(history: RunHistory) -> dict[str, Any] | None:
    """Return the number of the last generation, how many of it are asked and scored, and their mean score."""
    if not history.asked:
        return None
    number = max(asked.candidate.generation for asked in history.asked.values())
    told = history.results(number)
    scores = [one.evaluation.value for one in told if one.evaluation.status == "ok"]
    asked = sum(one.candidate.generation == number for one in history.asked.values())
    return {"number": number, "asked": asked, "told": len(told), "mean": fmean(scores) if scores else None}


def _last_failure(history: RunHistory) -> str | None:
    """Return why the last failed candidate failed."""
    failed = (told.evaluation.reason for told in reversed(history.told.values()) if told.evaluation.status == "failed")
    return next(failed, None)


def _remaining(history: RunHistory, budget: BudgetConfig, bill: Bill | None) -> float | None:
    """Return the seconds until the table is there, at the rates so far; None before the first score.

    For runs of older versions, which have no bill: until the budget is spent.
    """
    if bill is not None:
        return bill.remaining_seconds(history, budget.hours)
    done = history.evaluations
    if not done:
        return None
    seconds = history.elapsed / done * max(0, budget.evaluations - done)
    return seconds if budget.hours is None else max(0.0, min(seconds, budget.hours * 3600 - history.elapsed))
