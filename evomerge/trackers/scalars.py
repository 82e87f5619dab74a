"""Trackers of scalars: which numbers follow from a search, and a tracker that writes them to a store.

An experiment tracker differs from another one only in its store: a class with the four methods of `ScalarStore`. A
number's step is how many evaluations the search has made, so that a resumed run and its replay name the same steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

from evomerge.files.atomic import write_text
from evomerge.runs.history import RunHistory
from evomerge.runs.result import Result
from evomerge.runs.run import Told
from fitness.items import positions_by_task

FILES = ("best.yaml", "result.json", "report.html")
"""What a tracker keeps of a finished run, if it keeps files."""
IDENTITY = "tracking_id"
"""Name of the file in a run directory that holds the name under which trackers know the run."""


class ScalarStore(Protocol):
    """Where a tracker of scalars writes them: one experiment of a tracking program, and one run in it."""

    def open(self, run: Path, config: Mapping[str, Any]) -> Mapping[str, int]:
        """Begin or continue the records of a run directory; return the last step of each scalar that they hold."""

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Write finite numbers by name, all of one step; steps never fall."""

    def keep(self, files: Sequence[Path]) -> None:
        """Keep files of the run beside the numbers; called once in a session that ends with a result."""

    def close(self, finished: bool) -> None:
        """Write what is left, and mark the records as finished or stopped."""


class ScalarTracker:
    """A `Tracker` that writes the numbers of a search to a store, each once however often the run is resumed.

    Parameters
    ----------
    store
        Not opened yet.
    """

    def __init__(self, store: ScalarStore) -> None:
        self._store = store
        self._last: dict[str, int] = {}
        self._step = 0

    def start(self, run: Path, config: Mapping[str, Any]) -> int:
        """Open the store; the last step that it holds may not be whole, so that it is told again."""
        self._run = run
        self._last = dict(self._store.open(run, config))
        self._step = max(self._last.values(), default=0)
        return max(self._step - 1, 0)

    def told(self, history: RunHistory, told: Told) -> None:
        """Write the numbers of an evaluation."""
        self._write(len(history.told), evaluation_scalars(history, told))

    def end(self, result: Result | None) -> None:
        """Write the final table and keep the run's files, if the search has a result."""
        if result is not None:
            self._write(self._step, result_scalars(result))
            self._store.keep([file for name in FILES if (file := self._run / name).is_file()])
        self._store.close(result is not None)

    def _write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Write the numbers that the store does not hold from an earlier session."""
        self._step = step
        new = {
            name: float(value)
            for name, value in scalars.items()
            if math.isfinite(value) and step > self._last.get(name, -1)
        }
        if new:
            self._store.write(step, new)


def evaluation_scalars(history: RunHistory, told: Told) -> dict[str, float]:
    """Return the numbers of an evaluation that was just told, by name; not all of them are finite.

    Those of the candidate (`score`, `standard_error`, `violation`, `objective/NUMBER`, `task/NAME`; `loss` for a step
    by gradients; `seconds/STAGE`), those of the search so far (`best`, `evaluations`, `failed`, `repeated`, `items`,
    `elapsed`), and which candidate it is (`candidate`, `generation`).
    """
    evaluation, asked = told.evaluation, history.asked[told.candidate].candidate
    found: dict[str, float] = {
        "candidate": told.candidate,
        "generation": asked.generation,
        "evaluations": history.evaluations,
        "failed": history.failed,
        "repeated": history.cached,
        "items": history.item_evaluations,
        "elapsed": told.elapsed,
    }
    found |= {f"seconds/{stage}": seconds for stage, seconds in evaluation.seconds.items()}
    if history.best is not None:
        found["best"] = history.evaluation(history.best).value
    if evaluation.status == "step" and evaluation.objectives:
        found["loss"] = -evaluation.value
    if evaluation.has_scores and evaluation.objectives:
        found |= {"score": evaluation.value, "violation": evaluation.violation}
        found["standard_error"] = evaluation.standard_error
        if len(evaluation.objectives) > 1:
            found |= {f"objective/{number}": value for number, value in enumerate(evaluation.objectives, start=1)}
    if evaluation.has_scores:
        places = positions_by_task(evaluation.items)
        found |= {f"task/{task}": float(evaluation.scores[at].mean()) for task, at in places.items()}
    return found


def result_scalars(result: Result) -> dict[str, float]:
    """Return the numbers of a finished search: the final table, as `held_out/TASK/ROW/...`, and its costs."""
    found: dict[str, float] = {
        "final/search_score": result.search_score,
        "final/selection_bias": result.selection_bias,
        "final/items": result.item_evaluations,
    }
    found |= {f"final/seconds/{stage}": seconds for stage, seconds in result.seconds.items()}
    for row in result.held_out:
        values = asdict(row)
        numbers = ("score", "low", "high", "p_value", "items", "cut", "truncated", "unscored")
        found |= {f"held_out/{row.task}/{row.name}/{name}": values[name] for name in numbers}
    return found


def flat(values: Any, name: str = "") -> Iterator[tuple[str, str | int | float | bool]]:
    """Yield settings by their dotted names; a list counts as a section with numbers, what is not set is left out."""
    if isinstance(values, Mapping | list | tuple):
        pairs = values.items() if isinstance(values, Mapping) else enumerate(values)
        for key, value in pairs:
            yield from flat(value, f"{name}.{key}" if name else str(key))
    elif values is not None:
        yield name, values if isinstance(values, str | int | float | bool) else str(values)


def identity(run: Path) -> str:
    """Return the name under which trackers know a run, 16 hex digits; it is chosen once, and moves with the run."""
    file = run / IDENTITY
    if not file.is_file():
        write_text(file, f"{uuid4().hex[:16]}\n")
    return file.read_text(encoding="utf-8").strip()
