"""Progress of a search: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from evomerge.cli.printing import duration
from evomerge.runs.history import RunHistory

if TYPE_CHECKING:
    from evomerge.search.api import Progress

PLAIN_INTERVAL = 10.0
"""Seconds between two lines if the output is not a terminal."""


class SearchProgress:
    """Shows messages, then evaluations, rate, the best score so far with its standard error, and the time left."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._started = self._printed = 0.0
        self._bar: Bar | None = None

    def __enter__(self) -> SearchProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def message(self, text: str) -> None:
        """Print a sentence; the live line ends where the next phase begins."""
        self._stop()
        self._console.print(text, soft_wrap=True)

    def __call__(self, state: Progress) -> None:
        """Show how far the search is; the first call starts the live line."""
        done, total, now = state.history.evaluations, state.budget.evaluations, time.monotonic()
        if not self._started:
            self._started = self._printed = now
            self._begin(total, done)
            return
        per_second = (done - state.done_before) / max(now - self._started, 1e-9)
        rate = f"{per_second:.1f}/s" if per_second >= 1 else f"{60 * per_second:.1f}/min"
        best = best_so_far(state.history)
        if self._bar is not None:
            self._bar.update(self._task, completed=done, rate=rate, best=best)
        elif now - self._printed >= PLAIN_INTERVAL or done == total:
            self._printed = now
            seconds = (total - done) / max(per_second, 1e-9)
            remaining = f", about {duration(seconds)} remain" if done < total else ""
            self._console.print(f"{done}/{total} evaluations, {rate}, best {best}{remaining}")

    def _begin(self, total: int, done: int) -> None:
        if not self._console.is_terminal:
            return
        self._bar = Bar(
            TextColumn("searching"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}  best {task.fields[best]}"),
            TimeRemainingColumn(),
            console=self._console,
        )
        self._task = self._bar.add_task("", total=total, completed=done, rate="", best="-")
        self._bar.start()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def best_so_far(history: RunHistory) -> str:
    """Return the best score with its standard error, or a dash."""
    if history.best is None:
        return "-"
    evaluation = history.evaluation(history.best)
    below = ", violates a constraint" if evaluation.violation else ""
    return f"{evaluation.value:.3f} +- {evaluation.standard_error:.3f}{below}"
