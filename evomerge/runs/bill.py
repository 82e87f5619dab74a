"""The bill of a search: how many answers each of its stages asks, as expected before it and as counted after it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import ConfigDict, TypeAdapter

from evomerge.runs.event_rows import first_mistake
from evomerge.runs.history import STAGES, RunHistory, StageCost
from evomerge.runs.run import LogError

BILL = "bill.json"
"""Name of the file in a run directory that holds what the search was expected to ask."""
TIMED = ("founders", "steps", "candidates")
"""Stages whose time is the search's (`RunHistory.elapsed`), and which use all workers."""
ENOUGH = 5
"""Candidates of a search after which its own rate says more than the expectation."""


@dataclass(frozen=True)
class Line:
    """What one stage is expected to ask.

    Attributes
    ----------
    requests
        Models built and scored, or gradient steps.
    answers
        Items asked, over all these models.
    low, high
        The range of `answers` where they depend on scores, which are not known before; equal where they do not.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    requests: float
    answers: float
    low: int
    high: int


@dataclass(frozen=True)
class Bill:
    """What a search is expected to ask, stage by stage.

    Attributes
    ----------
    evaluations
        The budget that it is for.
    lines
        By the name of the stage, in the order of `evomerge.runs.history.STAGES`.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    evaluations: int
    lines: Mapping[str, Line]

    @property
    def answers(self) -> float:
        """Items asked in all."""
        return sum(line.answers for line in self.lines.values())

    @property
    def is_exact(self) -> bool:
        """Whether nothing of it depends on scores."""
        return all(line.low == line.high for line in self.lines.values())

    def to_json(self) -> str:
        """Return the text of `bill.json`."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def read(cls, folder: str | Path) -> Bill | None:
        """Return the bill of a run directory; None: it has none.

        Raises
        ------
        LogError
            If the file is damaged.
        """
        file = Path(folder) / BILL
        if not file.is_file():
            return None
        try:
            return _BILL.validate_json(file.read_bytes(), strict=True)
        except (OSError, ValueError) as error:
            raise LogError(
                f"{file} cannot be read ({first_mistake(error)}); remove it, and resume the run to write it again"
            ) from None

    def remaining(self, history: RunHistory) -> dict[str, Line]:
        """Return what each stage has still to ask, after what the history holds."""
        at = STAGES.index(history.stage) if history.stage else -1
        return {name: self._left(name, history, STAGES.index(name) < at) for name in self.lines}

    def remaining_seconds(self, history: RunHistory, hours: float | None = None) -> float | None:
        """Return how long the rest of the search takes at the rates so far; None: nothing has been scored yet.

        Parameters
        ----------
        history
            What the search has done.
        hours
            After how many the search for candidates ends; None: when the evaluations are made.
        """
        scored = [cost for name, cost in history.stages.items() if name != "steps" and cost.requests]
        steps = history.stages["steps"]
        merged = sum(cost.requests for cost in scored)
        if not merged and not steps.requests:
            return None
        merge = sum(cost.merge for cost in scored) / max(merged, 1)
        answer = sum(cost.score for cost in scored) / max(sum(cost.answers for cost in scored), 1)
        step = steps.seconds / steps.requests if steps.requests else merge + answer
        searching, apart = 0.0, 0.0
        for name, line in self.remaining(history).items():
            if name == "steps":
                searching += line.requests * step
            elif name in TIMED:
                searching += line.requests * merge + line.answers * answer
            else:
                apart += line.requests * merge + line.answers * answer
        if history.evaluations >= ENOUGH:
            busy = sum(history.stages[name].seconds for name in TIMED)
            searching *= history.elapsed / max(busy, 1e-9)  # several workers, and what is neither merging nor scoring
        if hours is not None:
            searching = max(0.0, min(searching, hours * 3600 - history.elapsed))
        return searching + apart

    def _left(self, name: str, history: RunHistory, over: bool) -> Line:
        line, asked = self.lines[name], history.stages[name]
        if over:
            return Line(0, 0, 0, 0)
        if name == "candidates" and history.evaluations >= ENOUGH:
            # Races, repeats and failures: what candidates have asked so far says most about the next.
            told = history.evaluations - asked_steps(history)
            steps = max(0.0, self.lines["steps"].requests - asked_steps(history))
            left = max(0.0, self.evaluations - history.evaluations - steps)
            if told >= ENOUGH:
                answers = left * asked.answers / told
                return Line(left * asked.requests / told, answers, round(answers), round(answers))
        answers = max(0.0, line.answers - asked.answers)
        low, high = max(0, line.low - asked.answers), max(0, line.high - asked.answers)
        return Line(max(0.0, line.requests - asked.requests), answers, low, high)


def asked_steps(history: RunHistory) -> int:
    """Return how many gradient steps have been computed."""
    return history.stages["steps"].requests


_BILL = TypeAdapter(Bill)


def settled(bill: Bill | None, costs: Mapping[str, StageCost]) -> dict[str, dict[str, float]]:
    """Return for each stage what was asked, what was expected if there is a bill, and the seconds."""
    table = {}
    for name, cost in costs.items():
        row: dict[str, float] = {"models": cost.requests, "answers": cost.answers, "seconds": round(cost.seconds, 3)}
        if bill is not None and name in bill.lines:
            line = bill.lines[name]
            row |= {"expected": line.answers, "low": line.low, "high": line.high}
        table[name] = row
    return table
