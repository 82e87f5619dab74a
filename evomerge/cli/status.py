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
from evomerge.runs.history import Ledger
from evomerge.runs.result import Result
from evomerge.runs.run import LogError, Run, RunError, in_use, is_run


def status(path: Path, as_json: bool) -> None:
    """Print where a run stands."""
    summary, ledger, result = _summary(path)
    if as_json:
        print(json.dumps(summary, indent=1))
        return
    out = console()
    out.print(
        f"{path}: {summary['state']}, {summary['evaluations']}/{summary['budget']} evaluations "
        f"({ledger.failed} failed, {ledger.cached} repeated), {ledger.item_evaluations} item evaluations"
    )
    if ledger.best is not None:
        out.print(f"best search score {best_so_far(ledger)} (candidate {ledger.best})")
    if ledger.elapsed:
        parts = ", ".join(f"{name} {100 * value / ledger.elapsed:.1f} %" for name, value in ledger.seconds.items())
        out.print(f"searched for {duration(ledger.elapsed)}: {parts}")
    if summary["remaining_seconds"]:
        out.print(f"about {duration(summary['remaining_seconds'])} remain")
    if result is not None:
        out.print(
            f"found recipe {result.best}: search score {result.search_score:.3f}, "
            f"optimism {result.optimism:+.3f} over its held-out score"
        )
        print_held_out(out, result.held_out)


def runs(folder: Path, as_json: bool) -> None:
    """Print one line per run in a folder; a damaged one does not hide the others."""
    if not folder.is_dir():
        raise RunError(f"{folder}: there is no such folder; name the one that holds your run directories")
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


def _summary(path: Path) -> tuple[dict[str, Any], Ledger, Result | None]:
    with Run.read(path) as run:
        ledger = Ledger(run.events())
    budget = load(path / "config.yaml").budget
    file = path / "result.json"
    result = Result.read(file) if file.is_file() else None
    searching = in_use(path)
    best = None
    if ledger.best is not None:
        evaluation = ledger.evaluation(ledger.best)
        best = {
            "candidate": ledger.best,
            "recipe": ledger.asked[ledger.best].recipe,
            "score": evaluation.value,
            "standard_error": evaluation.standard_error,
        }
    summary = {
        "run": str(path),
        "state": "searching" if searching else "finished" if result is not None else "stopped",
        "evaluations": len(ledger.told),
        "budget": budget.evaluations,
        "failed": ledger.failed,
        "cached": ledger.cached,
        "item_evaluations": ledger.item_evaluations,
        "best": best,
        "elapsed_seconds": ledger.elapsed,
        "remaining_seconds": None if result is not None else _remaining(ledger, budget),
        "seconds": ledger.seconds,
        "overhead_share": ledger.seconds["overhead"] / ledger.elapsed if ledger.elapsed else None,
        "optimism": result.optimism if result is not None else None,
        "held_out": json.loads(result.to_json())["held_out"] if result is not None else None,
    }
    return summary, ledger, result


def _remaining(ledger: Ledger, budget: BudgetConfig) -> float | None:
    """Return the seconds until the budget is spent, at the rate so far; None before the first evaluation."""
    done = len(ledger.told)
    if not done:
        return None
    seconds = ledger.elapsed / done * max(0, budget.evaluations - done)
    return seconds if budget.hours is None else max(0.0, min(seconds, budget.hours * 3600 - ledger.elapsed))
