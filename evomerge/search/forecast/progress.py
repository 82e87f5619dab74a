"""How far a search is: the phase that it is in, and what is left of all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from evomerge.config.search_file import BudgetConfig
from evomerge.runs.bill import Bill
from evomerge.runs.history import RunHistory

OPENING = "opening"
"""The phase before the stages: models and tasks are opened, and workers started."""
EVALUATIONS = ("steps", "candidates")
"""Stages whose progress counts evaluations, as the budget does; the others count answers."""


@dataclass(frozen=True)
class Progress:
    """How far a search is."""

    history: RunHistory
    """Counts, times and the best candidate of the run, all sessions together."""
    budget: BudgetConfig
    """When the search ends."""
    done_before: int
    """Evaluations that earlier sessions of the run have made."""
    phase: str = "candidates"
    """`opening`, or one of `evomerge.runs.history.STAGES`."""
    what: str = ""
    """While opening: what is opened now."""
    bill: Bill | None = None
    """What the whole search is expected to ask; None: not known."""

    @property
    def unit(self) -> str:
        """What `done` and `total` count."""
        if self.phase == OPENING:
            return "steps"
        return "evaluations" if self.phase in EVALUATIONS else "answers"

    @property
    def done(self) -> float:
        """How much of the phase is done."""
        if self.phase in EVALUATIONS:
            return self.history.evaluations
        return 0 if self.phase == OPENING else self.history.stages[self.phase].answers

    @property
    def total(self) -> float | None:
        """How much the phase takes; None: not known."""
        if self.phase in EVALUATIONS:
            return self.budget.evaluations
        if self.bill is None or self.phase == OPENING:
            return None
        return self.done + self.bill.remaining(self.history)[self.phase].answers

    @property
    def remaining_seconds(self) -> float | None:
        """How long the rest of the search takes, all phases together; None: nothing has been scored yet."""
        return None if self.bill is None else self.bill.remaining_seconds(self.history, self.budget.hours)


Notify = Callable[[Progress], None]


class ProgressReports:
    """Calls a function with how far a search is.

    Parameters
    ----------
    notify
        The function; None: not wanted.
    budget
        When the search ends.

    Attributes
    ----------
    history
        The search's; there is none before its run is opened.
    bill
        What it is expected to ask; None until that is known.
    """

    def __init__(self, notify: Notify | None, budget: BudgetConfig) -> None:
        self._notify = notify
        self.budget = budget
        self.history = RunHistory()
        self.bill: Bill | None = None
        self._before = 0

    def opening(self, what: str) -> None:
        """Report what is opened next."""
        self._report(OPENING, what)

    def follow(self, history: RunHistory) -> None:
        """Report about this history from now on."""
        self.history, self._before = history, history.evaluations

    def search(self) -> None:
        """Report that the search for candidates begins, or continues."""
        steps = 0.0 if self.bill is None else self.bill.lines["steps"].requests
        if not self.history.evaluations:
            self.enter("founders")
        else:
            self.enter("steps" if self.history.stages["steps"].requests < steps else "candidates")

    def enter(self, phase: str) -> None:
        """Report that a phase begins."""
        self.history.enter(phase)
        self._report(phase)

    def __call__(self) -> None:
        """Report that something has been scored."""
        if self.history.stage is not None:
            self._report(self.history.stage)

    def _report(self, phase: str, what: str = "") -> None:
        if self._notify is not None:
            self._notify(Progress(self.history, self.budget, self._before, phase, what, self.bill))
