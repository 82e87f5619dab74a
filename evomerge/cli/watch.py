"""`evomerge status RUN --watch`: a dashboard of a run while another process searches."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from evomerge.cli.printing import console, duration
from evomerge.cli.status import print_summary, summarised
from evomerge.files.messages import counted, printable

INTERVAL = 2.0
"""Seconds between two looks at a run."""
PLAIN_INTERVAL = 10.0
"""Seconds between two lines if the output is not a terminal."""
WIDEST = 80
"""Characters of the dashboard."""


def watch(path: Path, sleep: Callable[[float], None] = time.sleep) -> None:
    """Show a run until nothing searches in it any more, then print its state.

    Parameters
    ----------
    path
        The run directory.
    sleep
        Waits for some seconds.
    """
    out = console()
    if out.is_terminal:
        with Live(console=out, auto_refresh=False, transient=True) as live:
            for summary in _looks(path, INTERVAL, sleep):
                live.update(dashboard(summary, min(WIDEST, out.width)), refresh=True)
    else:
        for summary in _looks(path, PLAIN_INTERVAL, sleep):
            out.print(line(summary), soft_wrap=True)
    print_summary(out, path)


def _looks(path: Path, interval: float, sleep: Callable[[float], None]) -> Iterator[dict[str, Any]]:
    """Yield the run's summary again and again, as long as something searches in it."""
    while True:
        summary = summarised(path)[0]
        if summary["state"] != "searching":
            return
        yield summary
        sleep(interval)


def line(summary: dict[str, Any]) -> str:
    """Return a run's state on one line."""
    parts = [
        f"{summary['stage'] or 'opening'}: {summary['evaluations']}/{counted(summary['budget'], 'evaluation')}",
        f"{_answers(summary)} answers",
        f"best {_best(summary)}",
    ]
    if summary["failed"]:
        parts.append(f"{summary['failed']} failed")
    if summary["remaining_seconds"] is not None:
        parts.append(f"{duration(summary['remaining_seconds'])} left")
    return ", ".join(parts)


def dashboard(summary: dict[str, Any], width: int) -> Group:
    """Return what the terminal shows of a run."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    generation = summary["generation"]
    rows = [
        ("phase", summary["stage"] or "opening"),
        ("evaluations", f"{summary['evaluations']} of {summary['budget']}"),
        ("answers", _answers(summary)),
        ("time", f"{duration(summary['elapsed_seconds'])} searched, {_left(summary)}"),
        ("best", _best(summary)),
        ("generation", "-" if generation is None else _generation(generation)),
        ("workers", f"{counted(summary['in_flight'], 'candidate')} in flight{_shares(summary)}"),
        ("failures", _failures(summary)),
        ("repeated", f"{counted(summary['cached'], 'candidate')} with known scores"),
    ]
    for name, text in rows:
        table.add_row(name, printable(text, 200))
    done, total = summary["item_evaluations"], summary["expected_answers"] or summary["item_evaluations"] or 1
    bar = Table.grid()  # a bar alone ends no line
    bar.add_row(ProgressBar(total=max(total, done), completed=done, width=width - 2))
    return Group(Text(printable(summary["run"], width - 2)), bar, table)


def _answers(summary: dict[str, Any]) -> str:
    expected = summary["expected_answers"]
    return f"{summary['item_evaluations']:,}" + (f" of about {expected:,.0f}" if expected else "")


def _best(summary: dict[str, Any]) -> str:
    best = summary["best"]
    if best is None:
        return "-"
    return f"{best['score']:.3f} +- {best['standard_error']:.3f} (candidate {best['candidate']})"


def _left(summary: dict[str, Any]) -> str:
    seconds = summary["remaining_seconds"]
    return "time left unknown" if seconds is None else f"about {duration(seconds)} left"


def _generation(generation: dict[str, Any]) -> str:
    mean = generation["mean"]
    score = "" if mean is None else f", mean {mean:.3f}"
    return f"{generation['number']}: {generation['told']} of {generation['asked']} scored{score}"


def _shares(summary: dict[str, Any]) -> str:
    elapsed = summary["elapsed_seconds"]
    if not elapsed:
        return ""
    shares = (f"{name} {100 * seconds / elapsed:.0f} %" for name, seconds in summary["seconds"].items())
    return f"; {', '.join(shares)}"


def _failures(summary: dict[str, Any]) -> str:
    last = summary["last_failure"]
    return f"{summary['failed']}" + (f", the last: {last}" if last else "")
