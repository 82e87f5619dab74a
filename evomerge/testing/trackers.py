"""The conformance suite of trackers: what a search does to one, and what it may rely on.

Subclass `TrackerSuite` and give `config`; give `points` as well where the tracker keeps scalars that can be read back::

    class TestMine(TrackerSuite):
        def config(self):
            return MineConfig()

        def points(self, run):
            return read_back(run)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evomerge.runs.history import RunHistory
from evomerge.runs.result import Result, Row
from evomerge.runs.run import Asked, Event, Told
from evomerge.strategies.base import Candidate
from evomerge.trackers.base import TrackerConfig, TrackerGroup, check_trackers
from evomerge.trackers.scalars import evaluation_scalars, result_scalars
from fitness.results import Evaluation

ITEMS = ("task one/test/0", "task one/test/1", "日本|語/test/0")
CONFIG: dict[str, Any] = {
    "models": {"base": "a", "日本 model": "b"},
    "budget": {"evaluations": 6, "hours": None},
    "space": {"method": ["ties", "linear"]},
    "trackers": [],
    "seed": 0,
}
RESULT = Result(
    [
        Row("found", "found", "task one", 0.75, 0.5, 0.9, 8, 0.01),
        Row("task arithmetic 0.3", "task_arithmetic", "task one", 0.5, 0.25, 0.75, 8, math.nan, truncated=2),
    ],
    best="hash",
    evaluations=6,
    item_evaluations=18,
    seconds={"merge": 1.0, "overhead": 0.25},
    search_score=0.875,
    selection_bias=0.125,
)
Points = dict[tuple[str, int], list[float]]
"""What was read back: the values by a scalar's name and step, of which there should be one."""


def events() -> list[Event]:
    """Return six evaluations: scored ones with one objective and with several, one failed, and a gradient step."""
    seconds = {"merge": 0.5, "score": 1.25, "wait": 0.0}
    scores = np.array([1.0, 0.0, 0.5], np.float32)
    several = Evaluation("ok", (0.5, 0.25), (0.125, 0.25), ITEMS, scores, seconds, shares=(0.5, 0.5))
    outcomes = [
        Evaluation("ok", (0.5,), (0.125,), ITEMS, scores, seconds),
        Evaluation.failed("out of memory", seconds),
        Evaluation("ok", (0.75,), (math.inf,), ITEMS[:1], scores[:1], seconds),
        several,
        Evaluation("step", (-2.5,), (0.1,), ITEMS[:1], np.array([-2.5], np.float32), seconds, gradient=(0.5,)),
        Evaluation("stopped", (0.25,), (0.25,), ITEMS[1:], scores[1:], seconds),
    ]
    kinds = ["sample", "sample", "sample", "sample", "gradient", "sample"]
    found: list[Event] = []
    for number, (evaluation, kind) in enumerate(zip(outcomes, kinds, strict=True)):
        found.append(Asked(Candidate(number, np.zeros(1), kind, number // 2), f"hash {number}"))  # type: ignore[arg-type]
        found.append(Told(number, evaluation, False, 1.5 * (number + 1)))
    return found


def expected(recorded: Sequence[Event], result: Result | None = None) -> dict[tuple[str, int], float]:
    """Return the finite scalars of some events, and of a result after them, by name and step."""
    history = RunHistory()
    found: dict[tuple[str, int], float] = {}
    for event in recorded:
        history.add(event)
        if isinstance(event, Told):
            step = len(history.told)
            found |= {(name, step): value for name, value in evaluation_scalars(history, event).items()}
    if result is not None:
        found |= {(name, len(history.told)): value for name, value in result_scalars(result).items()}
    return {key: value for key, value in found.items() if math.isfinite(value)}


class TrackerSuite:
    """What every tracker does.

    Attributes
    ----------
    keeps_points
        Whether `points` reads back the scalars of `evomerge.trackers.scalars`.
    relative
        Relative error of the scalars that are read back.
    """

    keeps_points = False
    relative = 0.0

    def config(self) -> TrackerConfig:
        """Return the tracker's settings."""
        raise NotImplementedError

    def points(self, run: Path) -> Points:
        """Return what the tracker has written about a run directory, read back."""
        raise NotImplementedError

    def named(self, name: str) -> str:
        """Return the name under which the tracker keeps a scalar."""
        return name

    @pytest.fixture
    def run(self, tmp_path: Path) -> Iterator[Path]:
        """Return a run directory with the files that a search leaves."""
        folder = tmp_path / "a run"
        folder.mkdir()
        for name in ("best.yaml", "result.json", "report.html"):
            (folder / name).write_text(f"text of {name}\n", encoding="utf-8")
        yield folder

    def session(self, run: Path, recorded: Sequence[Event], new: Sequence[Event], result: Result | None) -> None:
        """Follow one session: events that are recorded, new ones, and its end; a tracker that raises is an error."""
        group = TrackerGroup([self.config()], pytest.fail)
        group.start(run, CONFIG, recorded)
        history = RunHistory(recorded)
        for event in new:
            history.add(event)
            if isinstance(event, Told):
                group.told(history, event)
        group.end(result)

    def check_points(self, run: Path, wanted: dict[tuple[str, int], float]) -> None:
        """Check that each scalar is there once, with its value, and that there is nothing else."""
        if not self.keeps_points:
            return
        found = self.points(run)
        assert {key for key, values in found.items() if len(values) > 1} == set(), "doubled points"
        assert set(found) == {(self.named(name), step) for name, step in wanted}
        for (name, step), value in wanted.items():
            assert found[self.named(name), step][0] == pytest.approx(value, rel=self.relative, abs=0), (name, step)

    def test_it_can_be_used_here(self) -> None:
        """What the tracker needs is installed."""
        check_trackers([self.config()])

    def test_it_follows_a_whole_search(self, run: Path) -> None:
        """Evaluations of all kinds, the final table and the run's files."""
        before = {file.name: file.read_bytes() for file in run.iterdir()}
        self.session(run, [], events(), RESULT)
        assert {name: (run / name).read_bytes() for name in before} == before, "the run's own files have changed"
        self.check_points(run, expected(events(), RESULT))

    def test_a_resumed_run_goes_on_without_doubled_points(self, run: Path) -> None:
        """A session that is stopped, another, one with nothing new, and a search that is extended."""
        whole = events()
        self.session(run, [], whole[:4], None)
        self.session(run, whole[:4], whole[4:8], RESULT)
        self.session(run, whole[:8], [], RESULT)
        self.session(run, whole[:8], whole[8:], None)
        self.session(run, whole, [], None)
        self.check_points(run, expected(whole[:8], RESULT) | expected(whole))

    def test_what_a_killed_process_recorded_is_told_later(self, run: Path) -> None:
        """The log was ahead of the tracker: the missing evaluations come when the run is resumed."""
        whole = events()
        self.session(run, [], whole[:4], None)
        self.session(run, whole[:10], whole[10:], RESULT)
        self.check_points(run, expected(whole, RESULT))

    def test_a_session_without_evaluations_ends(self, run: Path) -> None:
        """Stopped before the first candidate."""
        self.session(run, [], [], None)
        self.check_points(run, {})
