"""The comparison of two versions' events: it sees every change of an event but its times."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import experiments.same_events.__main__ as experiment
from evomerge.runs.run import Asked, ReferenceScore, Run, Told
from evomerge.strategies.base import Candidate
from experiments.same_events.__main__ import compare, events
from fitness.results import Evaluation

EVALUATION = Evaluation("ok", (0.5,), (0.1,), ("t/test/0", "t/test/1"), np.array([1, 0], np.float32), {"score": 0.2})
CANDIDATE = Candidate(0, np.array([0.25, 1.5]), "sample", 0)


def recorded(folder: Path, candidate: Candidate, evaluation: Evaluation, elapsed: float) -> list[str]:
    with Run.create(folder, "", {}) as run:
        run.record(Asked(candidate, "aaaa"))
        run.record(Told(0, evaluation, False, elapsed))
    return list(events(folder / "events.sqlite"))


@pytest.fixture
def before(tmp_path: Path) -> list[str]:
    return recorded(tmp_path / "before", CANDIDATE, EVALUATION, 1.0)


def test_times_do_not_count(before: list[str], tmp_path: Path) -> None:
    later = replace(EVALUATION, seconds={"score": 0.9})
    assert compare("some", before, recorded(tmp_path / "after", CANDIDATE, later, 7.0))


@pytest.mark.parametrize(
    ("candidate", "evaluation", "event"),
    [
        (replace(CANDIDATE, genotype=np.nextafter(CANDIDATE.genotype, 9.0)), EVALUATION, 0),
        (CANDIDATE, replace(EVALUATION, scores=np.array([0, 1], np.float32)), 1),
        (CANDIDATE, replace(EVALUATION, items=("t/test/0", "t/test/2")), 1),
        (CANDIDATE, replace(EVALUATION, objectives=(0.25,)), 1),
    ],
)
def test_all_else_does(
    before: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    candidate: Candidate,
    evaluation: Evaluation,
    event: int,
) -> None:
    assert not compare("some", before, recorded(tmp_path / "after", candidate, evaluation, 1.0))
    assert f"first difference, event {event}:" in capsys.readouterr().out


def test_a_missing_event_is_seen(before: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert not compare("some", before, before[:1])
    assert "some: 2 events, DIFFERENT, 1 now" in capsys.readouterr().out


def test_renamed_keys_are_the_same(before: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    old = [line.replace('"objectives"', '"aims"') for line in before]
    assert not compare("some", old, before)
    monkeypatch.setattr(experiment, "RENAMED", {"aims": "objectives"})
    assert compare("some", old, before)


def test_only_further_rows_of_the_final_table_may_follow(before: list[str], tmp_path: Path) -> None:
    path = tmp_path / "run"
    after = recorded(path, CANDIDATE, EVALUATION, 1.0)
    with Run.open(path) as run:
        run.record(ReferenceScore("held_out", "bbbb", EVALUATION))
    assert compare("some", before, list(events(path / "events.sqlite")))
    assert not compare("some", before, [*after, before[0]])
