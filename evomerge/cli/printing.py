"""How tables and numbers look on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from evomerge.files.messages import as_line, printable
from evomerge.runs.report.commands import commands
from evomerge.runs.report.contents import config_of
from evomerge.runs.result import Result
from fitness.estimation.intervals import p_text

PLAIN_WIDTH = 140
LONGEST_CELL = 120
"""Characters of a table's cell."""


class PrintableConsole(Console):
    """A console that shows foreign texts as they are: see `evomerge.files.messages.printable`."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Print texts, each as one line, and tables."""
        super().print(*(as_line(each) if isinstance(each, str) else each for each in objects), **options)


def console(stderr: bool = False) -> Console:
    """Return a console; if the output is not a terminal, a plain one that is wide enough for tables."""
    out = PrintableConsole(stderr=stderr, highlight=False, markup=False, emoji=False)
    return out if out.is_terminal else PrintableConsole(stderr=stderr, highlight=False, markup=False, width=PLAIN_WIDTH)


@contextmanager
def only_json(as_json: bool) -> Iterator[None]:
    """Send what others print (a user's functions, code of tasks) to standard error, where the output is JSON."""
    with redirect_stdout(sys.stderr) if as_json else nullcontext():
        yield


def grid(columns: Sequence[str], rows: Sequence[Sequence[str]], *, words: bool = False) -> Table:
    """Make a table whose first column is left-aligned; the others are right-aligned, or left if they hold words."""
    table = Table(box=None, pad_edge=False)
    for position, column in enumerate(columns):
        table.add_column(column, justify="right" if position and not words else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(printable(cell, LONGEST_CELL) for cell in row))
    return table


def print_held_out(out: Console, result: Result) -> None:
    """Print the final table, and what its numbers do not say."""
    rows = result.held_out
    tasks = dict.fromkeys(row.task for row in rows)
    cells = [
        [
            row.name,
            row.task,
            f"{row.score:.3f}",
            row.interval,
            str(row.items),
            p_text(row.p_value),
        ]
        for task in tasks
        for row in rows
        if row.task == task
    ]
    out.print("held-out scores (p: the found recipe against the best source or baseline, other rows against it)")
    out.print(grid(["model", "task", "score", "95 % interval", "items", "p"], cells))
    for note in result.notes:
        out.print(note, soft_wrap=True)


def print_next(out: Console, run: Path) -> None:
    """Print what a user does with a finished run: the page to look at, and the commands that follow."""
    lines = ["next:"]
    if (run / "report.html").is_file():
        lines.append(f"  open {run / 'report.html'} in a browser")
    lines += [f"  {command}" for command in commands(run, config_of(run))]
    for line in lines:
        out.print(line, soft_wrap=True)


def size(count: float) -> str:
    """Return a number of bytes in a readable unit."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def duration(seconds: float) -> str:
    """Return seconds in a readable unit."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def rate(per_second: float) -> str:
    """Return a rate in a readable unit."""
    return f"{per_second:.1f}/s" if per_second >= 1 else f"{60 * per_second:.1f}/min"
