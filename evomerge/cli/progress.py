"""Progress of a search: a live line for each phase on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from evomerge.cli.printing import duration, rate
from evomerge.runs.history import RunHistory

if TYPE_CHECKING:
    from evomerge.search.forecast.progress import Progress

PLAIN_INTERVAL = 10.0
"""Seconds between two lines of one phase if the output is not a terminal."""
BAR_WIDTH = 12
"""Characters; the line of a phase fits on 80."""


class SearchProgress:
    """Shows messages, and for the phase that runs: how much is done, the rate, the best score, and the time left."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._phase = ""
        self._began = self._printed = 0.0
        self._first = 0.0  # what was done when the phase began
        self._unsaid = ""
        self._bar: Bar | None = None

    def __enter__(self) -> SearchProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def message(self, text: str) -> None:
        """Print a sentence; on a terminal it stands above the live line."""
        self._say(time.monotonic())
        self._console.print(text, soft_wrap=True)

    def __call__(self, state: Progress) -> None:
        """Show how far the search is; the first call of a phase starts its line."""
        now = time.monotonic()
        if state.phase != self._phase:
            self._begin(state, now)
        text = self._text(state, now)
        if self._bar is not None:
            self._bar.update(self._task, total=state.total, completed=round(state.done), text=text)
        elif state.phase != "opening" and state.done > self._first:
            self._unsaid = f"{state.phase}: {text}"
            if now - self._printed >= PLAIN_INTERVAL:
                self._say(now)

    def _say(self, now: float) -> None:
        """Print the last state of the phase, where that has not been done."""
        if self._unsaid:
            self._console.print(self._unsaid, soft_wrap=True)
        self._unsaid, self._printed = "", now

    def _begin(self, state: Progress, now: float) -> None:
        self._stop()
        self._phase, self._began, self._printed, self._first = state.phase, now, now, state.done
        if not self._console.is_terminal:
            return
        self._bar = Bar(
            SpinnerColumn(),
            TextColumn(f"{state.phase:10}"),
            BarColumn(BAR_WIDTH),
            TextColumn("{task.fields[text]}"),
            TimeElapsedColumn(),
            console=self._console,
            transient=state.phase == "opening",
        )
        self._task = self._bar.add_task("", total=state.total, completed=round(state.done), text="")
        self._bar.start()

    def _text(self, state: Progress, now: float) -> str:
        """Return how much is done, the rate, the best score so far, and how long the rest of the search takes."""
        if state.phase == "opening":
            return state.what
        total = "" if state.total is None else f"/{state.total:.0f}"
        parts = [f"{state.done:.0f}{total} {state.unit}"]
        if state.done > self._first:
            parts.append(rate((state.done - self._first) / max(now - self._began, 1e-9)))
        if state.history.best is not None:
            parts.append(f"best {best_so_far(state.history)}")
        seconds = state.remaining_seconds
        if seconds is not None:
            parts.append(f"{duration(seconds)} left")
        return ", ".join(parts)

    def _stop(self) -> None:
        self._say(time.monotonic())
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
