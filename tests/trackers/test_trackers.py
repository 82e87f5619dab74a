"""Trackers: what they are told, and that one that fails is dropped and ends nothing."""

import csv
import sys
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from pydantic import BaseModel, ConfigDict

import evomerge.trackers
from evomerge.extras import MissingExtraError
from evomerge.runs.history import RunHistory
from evomerge.runs.result import Result
from evomerge.runs.run import Asked, Told
from evomerge.strategies import Candidate
from evomerge.trackers.base import TRACKERS, TrackerGroup, check_trackers, register_tracker
from evomerge.trackers.csv_tracker import COLUMNS, CsvConfig
from fitness.results import Evaluation, no_seconds

SETTINGS = ConfigDict(frozen=True, extra="forbid")
RESULT = Result([], "abc", 1, 2, {}, 0.5, 0.1)


class Recording:
    """Notes its calls; raises at one of them."""

    def __init__(self, raises_at=None):
        self.calls, self.raises_at = [], raises_at

    def note(self, name, *arguments):
        self.calls.append((name, *arguments))
        if name == self.raises_at:
            raise ConnectionError("the server\nis away")

    def start(self, run, config):
        self.note("start", run, config)

    def told(self, history, told):
        self.note("told", told.candidate)

    def end(self, result):
        self.note("end", result)


class Config:
    """A tracker's settings."""

    def __init__(self, kind, tracker):
        self.kind, self.tracker = kind, tracker

    def build(self):
        if isinstance(self.tracker, Exception):
            raise self.tracker
        return self.tracker


def told(identity=0, evaluation=None):
    scores = np.array([1, 0], np.float32)
    ok = Evaluation("ok", (0.5,), (0.125,), ("t/test/0", "t/test/1"), scores, no_seconds())
    return Told(identity, evaluation or ok, False, 1.5)


def history(*events):
    asked = [Asked(Candidate(event.candidate, np.zeros(1), "sample", 3), "hash") for event in events]
    return RunHistory([*asked, *events])


def follow(group):
    group.start(Path("run"), {"seed": 0})
    group.told(history(told()), told())
    group.told(history(told()), told())
    group.end(RESULT)


def test_a_tracker_follows_the_search():
    tracker, warnings = Recording(), []
    follow(TrackerGroup([Config("mine", tracker)], warnings.append))
    assert tracker.calls == [("start", Path("run"), {"seed": 0}), ("told", 0), ("told", 0), ("end", RESULT)]
    assert not warnings


@pytest.mark.parametrize(("at", "calls"), [("start", 1), ("told", 2), ("end", 4)])
def test_one_that_raises_is_dropped_with_one_warning_and_the_others_go_on(at, calls, caplog):
    bad, good, warnings = Recording(at), Recording(), []
    with caplog.at_level("WARNING", "evomerge"):
        follow(TrackerGroup([Config("bad", bad), Config("good", good)], warnings.append))
    assert (len(bad.calls), len(good.calls)) == (calls, 4)
    line = "tracker bad: ConnectionError: the server is away; the search continues without it"
    assert warnings == caplog.messages == [line]


def test_one_that_cannot_be_built_is_dropped_too():
    good, warnings = Recording(), []
    follow(TrackerGroup([Config("bad", ImportError("no module named wandb")), Config("good", good)], warnings.append))
    assert len(good.calls) == 4
    assert warnings == ["tracker bad: ImportError: no module named wandb; the search continues without it"]


def test_ctrl_c_in_a_tracker_is_not_swallowed():
    class Interrupted(Recording):
        def start(self, run, config):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        TrackerGroup([Config("mine", Interrupted())], print).start(Path("run"), {})


def test_a_tracker_needs_a_kind_and_a_way_to_be_built():
    class NoKind(BaseModel):
        model_config = SETTINGS

        def build(self):
            return Recording()

    class NoBuild(BaseModel):
        model_config = SETTINGS
        kind: Literal["nobuild"] = "nobuild"

    class Taken(BaseModel):
        model_config = SETTINGS
        kind: Literal["csv"] = "csv"

        def build(self):
            return Recording()

    for config, words in ((NoKind, "has no kind"), (NoBuild, "needs a method `build`"), (Taken, "'csv' is taken")):
        with pytest.raises(ValueError, match=words):
            register_tracker(config)
    assert "nobuild" not in TRACKERS


NEW_FILE = """
from typing import Literal

from pydantic import BaseModel, ConfigDict

from evomerge.trackers.base import register_tracker


@register_tracker
class Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: Literal["brand_new"] = "brand_new"

    def build(self):
        pass
"""


def test_a_new_file_is_all_that_a_tracker_takes(tmp_path, monkeypatch):
    (tmp_path / "brand_new_tracker.py").write_text(NEW_FILE)
    (tmp_path / "something_else.py").write_text("raise AssertionError('this is no tracker')")
    monkeypatch.setattr(evomerge.trackers, "__path__", [*evomerge.trackers.__path__, str(tmp_path)])
    before = list(TRACKERS)
    monkeypatch.setattr(TRACKERS, "_values", dict(TRACKERS._values))
    monkeypatch.setattr(TRACKERS, "_origins", dict(TRACKERS._origins))
    exec(compile(Path(evomerge.trackers.__file__).read_text(), "trackers", "exec"), vars(evomerge.trackers))
    assert list(TRACKERS) == [*before, "brand_new"]


def test_recorded_evaluations_are_told_to_those_who_want_them_only():
    """A tracker that holds one of two evaluations is told the second; its history has just the events before."""

    class Catching(Recording):
        def __init__(self, held):
            super().__init__()
            self.held = held

        def start(self, run, config):
            return self.held

        def told(self, history, told):
            self.note("told", told.candidate, len(history.told))

    trackers = {held: Catching(held) for held in (None, 0, 1, 2)}
    group = TrackerGroup([Config("mine", tracker) for tracker in trackers.values()], print)
    asked = [Asked(Candidate(one, np.zeros(1), "sample", 0), "hash") for one in (0, 1)]
    group.start(Path("run"), {}, [asked[0], told(0), asked[1], told(1)])
    calls = {held: tracker.calls for held, tracker in trackers.items()}
    both = [("told", 0, 1), ("told", 1, 2)]
    assert calls == {None: [], 0: both, 1: both[1:], 2: []}


@pytest.mark.parametrize("kind", ["tensorboard", "wandb", "mlflow"])
def test_a_missing_package_is_named_with_its_extra(kind, monkeypatch):
    monkeypatch.setitem(sys.modules, kind, None)
    with pytest.raises(MissingExtraError, match=rf"trackers: kind {kind} needs the package {kind}.*evomerge\[{kind}\]"):
        check_trackers([TRACKERS[kind]()])


def test_a_torn_row_of_the_csv_tracker_is_written_again(tmp_path):
    history_ = history(told(0), told(1))
    for number in range(2):
        group = TrackerGroup([CsvConfig()], pytest.fail)
        group.start(tmp_path, {}, [*history_.asked.values(), *history_.told.values()])
        text = (tmp_path / "evaluations.csv").read_text()
        assert len(text.splitlines()) == 3
        if number == 0:
            (tmp_path / "evaluations.csv").write_text(text[:-4])
    assert list(csv.reader(text.splitlines()))[2][0] == "1"


def test_the_csv_tracker_writes_a_row_for_each_evaluation_and_goes_on_in_the_file(tmp_path):
    failed = told(1, Evaluation.failed("out of memory", no_seconds()))
    for event in (told(0), failed):  # two sessions
        tracker = CsvConfig().build()
        tracker.start(tmp_path, {})
        tracker.told(history(told(0), failed), event)
        tracker.end(RESULT)
    with (tmp_path / "evaluations.csv").open() as file:
        rows = list(csv.reader(file))
    assert rows == [
        list(COLUMNS),
        ["0", "3", "hash", "ok", "0.5", "0.125", "2", "0", "1.5"],
        ["1", "3", "hash", "failed", "", "", "0", "0", "1.5"],
    ]


@pytest.mark.parametrize("name", ["../x.csv", "a/b.csv", "result.json"])
def test_the_csv_file_lies_in_the_run_directory(name):
    with pytest.raises(ValueError, match=r"is not a file name; write letters, digits, - and _ that ends"):
        CsvConfig(file=name)
