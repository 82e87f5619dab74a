"""`evomerge status` and `evomerge runs`: read-only, also while a search writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from evomerge.commands.output import console, duration, grid, print_held_out
from evomerge.config import load
from evomerge.ledger import Ledger
from evomerge.progress import best_so_far
from evomerge.result import Result
from evomerge.run import Run, is_run


def status(path: Path, as_json: bool) -> None:
    """Print where a run stands."""
    summary, ledger, result = _summary(path)
    if as_json:
        print(json.dumps(summary, indent=1))
        return
    out = console()
    seconds = ledger.seconds
    out.print(
        f"{path}: {summary['state']}, {summary['evaluations']}/{summary['budget']} evaluations "
        f"({ledger.failed} failed, {ledger.cached} repeated), {ledger.item_evaluations} item evaluations"
    )
    out.print(f"best {best_so_far(ledger)} (candidate {ledger.best})")
    if ledger.elapsed:
        parts = ", ".join(f"{name} {100 * value / ledger.elapsed:.1f} %" for name, value in seconds.items())
        out.print(f"searched for {duration(ledger.elapsed)}: {parts}")
        if summary["remaining_seconds"]:
            out.print(f"about {duration(summary['remaining_seconds'])} remain")
    if result is not None:
        out.print(f"optimism: search score {result.search_score:.3f}, {result.optimism:+.3f} above held-out")
        print_held_out(out, result.held_out)


def runs(folder: Path, as_json: bool) -> None:
    """Print one line per run in a folder."""
    found = sorted(path for path in folder.iterdir() if is_run(path)) if folder.is_dir() else []
    summaries = [_summary(path)[0] for path in found]
    if as_json:
        print(json.dumps(summaries, indent=1))
        return
    rows = [
        [s["run"], s["state"], f"{s['evaluations']}/{s['budget']}", f"{s['best']['score']:.3f}" if s["best"] else "-"]
        for s in summaries
    ]
    console().print(grid(["run", "state", "evaluations", "best"], rows))


def _summary(path: Path) -> tuple[dict[str, Any], Ledger, Result | None]:
    with Run.read(path) as run:
        ledger = Ledger(run.events())
    budget = load(path / "config.yaml").budget.evaluations
    file = path / "result.json"
    result = Result.from_json(file.read_text(encoding="utf-8")) if file.is_file() else None
    done = len(ledger.told)
    best = None
    if ledger.best is not None:
        evaluation = ledger.evaluation(ledger.best)
        best = {
            "candidate": ledger.best,
            "recipe": ledger.asked[ledger.best].recipe,
            "score": evaluation.fitness,
            "standard_error": evaluation.standard_errors[0],
        }
    summary = {
        "run": str(path),
        "state": "finished" if result is not None else "searching" if _in_use(path) else "stopped",
        "evaluations": done,
        "budget": budget,
        "failed": ledger.failed,
        "cached": ledger.cached,
        "item_evaluations": ledger.item_evaluations,
        "best": best,
        "elapsed_seconds": ledger.elapsed,
        "remaining_seconds": ledger.elapsed / done * (budget - done) if done else None,
        "seconds": ledger.seconds,
        "overhead_share": ledger.seconds["overhead"] / ledger.elapsed if ledger.elapsed else None,
        "optimism": result.optimism if result is not None else None,
    }
    return summary, ledger, result


def _in_use(path: Path) -> bool:
    lock = FileLock(path / ".lock")
    try:
        with lock.acquire(timeout=0):
            return False
    except Timeout:
        return True
