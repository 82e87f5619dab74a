"""`evomerge status` and `evomerge runs`: read-only, also while a search writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from evomerge.cli.printing import console, duration, grid, print_held_out
from evomerge.cli.progress import best_so_far
from evomerge.config.errors import ConfigError
from evomerge.config.load import load
from evomerge.config.search_file import BudgetConfig
from evomerge.runs.history import RunHistory
from evomerge.runs.result import Result
from evomerge.runs.run import LogError, Run, RunError, in_use, is_run


def status(path: Path, as_json: bool) -> None:
    """Print the state of a run."""
    summary, history, result = _summary(path)
    if as_json:
        print(json.dumps(summary, indent=1))
        return
    out = console()
    out.print(
        f"{path}: {summary['state']}, {summary['evaluations']}/{summary['budget']} evaluations "
        f"({history.failed} failed, {history.cached} repeated), {history.item_evaluations} item evaluations"
    )
    if history.best is not None:
        out.print(f"best search score {best_so_far(history)} (candidate {history.best})")
    if history.elapsed:
        parts = ", ".join(f"{name} {100 * value / history.elapsed:.1f} %" for name, value in history.seconds.items())
        out.print(f"searched for {duration(history.elapsed)}: {parts}")
    if summary["remaining_seconds"]:
        out.print(f"about {duration(summary['remaining_seconds'])} remain")
    if result is not None:
        out.print(
            f"found recipe {result.best}: search score {result.search_score:.3f}, "
            f"{result.selection_bias:+.3f} above its held-out score (selection bias)"
        )
        print_held_out(out, result)
        if result.verdict is not None:
            out.print(result.verdict.sentence, soft_wrap=True)


def runs(folder: Path, as_json: bool) -> None:
    """Print one line per run in a folder; a damaged one does not hide the others."""
    if not folder.is_dir():
        raise RunError(f"{folder}: no such folder; name the folder with your run directories")
    found = sorted(path for path in folder.iterdir() if is_run(path))
    summaries = [_summary_or_reason(path) for path in found]
    if as_json:
        print(json.dumps(summaries, indent=1))
        return
    rows = [[s["run"], s["state"], f"{s.get('evaluations', '?')}/{s.get('budget', '?')}", _score(s)] for s in summaries]
    console().print(grid(["run", "state", "evaluations", "score"], rows))


def _score(summary: dict[str, Any]) -> str:
    """Return the held-out score of a finished run, else the best search score so far, with its error."""
    if summary.get("held_out"):
        row = summary["held_out"][0]
        return f"{row['score']:.3f} ({row['low']:.3f} .. {row['high']:.3f}) held out"
    best = summary.get("best")
    return f"{best['score']:.3f} +- {best['standard_error']:.3f} searching" if best else "-"


def _summary_or_reason(path: Path) -> dict[str, Any]:
    try:
        return _summary(path)[0]
    except (RunError, LogError, ConfigError) as error:
        return {"run": str(path), "state": "damaged", "reason": str(error)}


def _summary(path: Path) -> tuple[dict[str, Any], RunHistory, Result | None]:
    with Run.read(path) as run:
        history = RunHistory(run.events())
    budget = load(path / "config.yaml").budget
    file = path / "result.json"
    result = Result.read(file) if file.is_file() else None
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
        "item_evaluations": history.item_evaluations,
        "best": best,
        "elapsed_seconds": history.elapsed,
        "remaining_seconds": None if result is not None else _remaining(history, budget),
        "seconds": history.seconds,
        "overhead_share": history.seconds["overhead"] / history.elapsed if history.elapsed else None,
        "selection_bias": result.selection_bias if result is not None else None,
        "held_out": json.loads(result.to_json())["held_out"] if result is not None else None,
    }
    return summary, history, result


def _remaining(history: RunHistory, budget: BudgetConfig) -> float | None:
    """Return the seconds until the budget is spent, at the rate so far; None before the first evaluation."""
    done = history.evaluations
    if not done:
        return None
    seconds = history.elapsed / done * max(0, budget.evaluations - done)
    return seconds if budget.hours is None else max(0.0, min(seconds, budget.hours * 3600 - history.elapsed))
