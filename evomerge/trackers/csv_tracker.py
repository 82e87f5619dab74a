"""The `csv` tracker: one line per evaluation in a table that other programs read."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, field_validator

from evomerge.runs.history import RunHistory
from evomerge.runs.result import Result
from evomerge.runs.run import Told
from evomerge.trackers.base import name_in_run, register_tracker

COLUMNS = ("candidate", "generation", "recipe", "status", "score", "standard_error", "items", "repeated", "elapsed")


@register_tracker
class CsvConfig(BaseModel):
    """A table of all evaluations in the run directory, for plots and spreadsheets."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: Literal["csv"] = "csv"
    file: str = "evaluations.csv"
    """Name of the file in the run directory."""

    @field_validator("file")
    @classmethod
    def _in_the_run(cls, name: str) -> str:
        return name_in_run(name, ".csv")

    def build(self) -> CsvTracker:
        """Return the tracker."""
        return CsvTracker(self.file)


class CsvTracker:
    """Appends one row per evaluation; a resumed run continues in the same file.

    Parameters
    ----------
    name
        Name of the file in the run directory.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def start(self, run: Path, config: Mapping[str, Any]) -> int:
        """Write the header, if there is no file yet; return how many evaluations the file has, a torn one left out."""
        self._file = run / self._name
        lines = self._file.read_bytes().splitlines(keepends=True) if self._file.exists() else []
        if lines and not lines[-1].endswith(b"\n"):  # the process was killed while it wrote
            with self._file.open("r+b") as file:
                file.truncate(sum(map(len, lines[:-1])))
            lines.pop()
        if not lines:
            self._append(COLUMNS)
        return max(0, len(lines) - 1)

    def told(self, history: RunHistory, told: Told) -> None:
        """Append an evaluation; a failed one has no score."""
        asked, evaluation = history.asked[told.candidate], told.evaluation
        ok = evaluation.status != "failed"
        score, error = (evaluation.value, evaluation.standard_error) if ok else ("", "")
        row = (told.candidate, asked.candidate.generation, asked.recipe, evaluation.status, score, error)
        self._append((*row, len(evaluation.items), int(told.cached), round(told.elapsed, 3)))

    def end(self, result: Result | None) -> None:
        """Nothing is left to write: the result has a file of its own."""

    def _append(self, row: tuple[Any, ...]) -> None:
        with self._file.open("a", encoding="utf-8", newline="") as file:
            csv.writer(file).writerow(row)
