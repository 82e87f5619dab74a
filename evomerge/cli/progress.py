"""Progress of a search: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from evomerge.config.search_file import BudgetConfig
from evomerge.runs.history import Ledger

PLAIN_INTERVAL = 10.0
"""Seconds between two lines where the output is no terminal."""


class SearchProgress:
    """Shows evaluations, rate, the best score so far with its standard error, and the time that remains."""

    def __init__(self, console: Console, budget: BudgetConfig, done: int) -> None:
        self._console = console
        self._budget = budget
        self._done_before = done
        self._started = self._printed = time.monotonic()
        self._bar: Progress | None = None
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("searching"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}  best {task.fields[best]}"),
                TimeRemainingColumn(),
                console=console,
            )
            self._task = self._bar.add_task("", total=budget.evaluations, completed=done, rate="", best="-")

    def __enter__(self) -> SearchProgress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, ledger: Ledger) -> None:
        """Show where the search stands."""
        done = len(ledger.told)
        now = time.monotonic()
        per_second = (done - self._done_before) / max(now - self._started, 1e-9)
        rate = f"{per_second:.1f}/s" if per_second >= 1 else f"{60 * per_second:.1f}/min"
        if self._bar is not None:
            self._bar.update(self._task, completed=done, rate=rate, best=best_so_far(ledger))
        elif now - self._printed >= PLAIN_INTERVAL or done == self._budget.evaluations:
            self._printed = now
            remaining = (self._budget.evaluations - done) / max(per_second, 1e-9)
            self._console.print(
                f"{done}/{self._budget.evaluations} evaluations, {rate}, best {best_so_far(ledger)}, "
                f"about {remaining:.0f} s remain"
            )


def best_so_far(ledger: Ledger) -> str:
    """Return the best score with its standard error, or a dash."""
    if ledger.best is None:
        return "-"
    evaluation = ledger.evaluation(ledger.best)
    below = ", below a floor" if evaluation.violation else ""
    return f"{evaluation.value:.3f} +- {evaluation.standard_error:.3f}{below}"
