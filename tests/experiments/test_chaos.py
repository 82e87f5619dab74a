"""The chaos experiment: that it runs with real kills, and that it notices what must not happen."""

import json
import os
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from evomerge.runs.run import Asked, ReferenceScore, Run, Told
from evomerge.strategies.base import Candidate
from experiments.scale.chaos import Failed, Lives, outcome, wrong_answers
from experiments.scale.processes import alive, busy_workers, descendants, shared_files
from fitness.results import Evaluation
from tests.logs import reseal

ROOT = Path(__file__).parent.parent.parent
ITEMS = ("t/test/0", "t/test/1")
SECONDS = {"merge": 0.1, "score": 0.2, "wait": 0.0}


def evaluation(*scores):
    return Evaluation("ok", (0.5,), (0.1,), ITEMS, np.array(scores, np.float32), SECONDS)


def events(count):
    for identity in range(count):
        yield Asked(Candidate(identity, np.full(2, float(identity)), "sample", 0), "aaaa")
        yield Told(identity, evaluation(1.0, 0.0), False, 1.0)


def record(path, recorded):
    with Run.create(path, "", {}) as run:
        for event in recorded:
            run.record(event)
    (path / "result.json").write_text('{"seconds": 1.0, "stages": {"steps": {"answers": 3, "seconds": 0.1}}}')
    return path


def test_scores_beside_the_candidates_count_too(tmp_path):
    finalist = ReferenceScore("confirm", "aaaa", evaluation(1.0, 0.0))
    whole = outcome(record(tmp_path / "whole", [*events(1), finalist]))
    other = replace(finalist, evaluation=evaluation(1.0, 1.0))
    assert outcome(record(tmp_path / "other", [*events(1), other])) != whole
    with pytest.raises(Failed, match="recorded twice"):
        outcome(record(tmp_path / "twice", [*events(1), finalist, finalist]))


def test_equal_runs_are_equal_and_others_are_not(tmp_path):
    whole = outcome(record(tmp_path / "whole", events(3)))
    assert outcome(record(tmp_path / "same", events(3))) == whole
    assert outcome(record(tmp_path / "shorter", events(2))) != whole
    *before, last = events(3)
    other = replace(last, evaluation=evaluation(1.0, 1.0))
    assert outcome(record(tmp_path / "other", [*before, other])) != whole


def test_two_answers_are_noticed(tmp_path):
    recorded = list(events(2))
    with pytest.raises(Failed, match="recorded twice"):
        outcome(record(tmp_path / "run", [*recorded, recorded[-1]]))


def test_a_lost_answer_is_noticed(tmp_path):
    with pytest.raises(Failed, match=r"without an answer: \[1\]"):
        outcome(record(tmp_path / "run", list(events(2))[:-1]))


@pytest.mark.parametrize(
    "damage",
    ["DELETE FROM events WHERE seq = (SELECT MAX(seq) FROM events)", "UPDATE events SET scores = zeroblob(8)"],
)
def test_recorded_events_that_vanish_or_change_are_noticed(tmp_path, damage):
    lives = Lives(tmp_path, "run")
    record(lives.run, events(2))
    lives.check_log()
    lives.check_log()
    with sqlite3.connect(lives.run / "events.sqlite") as database:
        database.execute(damage)
        reseal(database)
    with pytest.raises(Failed, match="have changed"):
        lives.check_log()


def test_wrong_answers_are_noticed(tmp_path):
    run = record(tmp_path / "run", events(3))
    problem = SimpleNamespace(space=SimpleNamespace(decode=lambda genotype: genotype[0]))
    same = SimpleNamespace(evaluate=lambda request: evaluation(1.0, 0.0))
    other = SimpleNamespace(evaluate=lambda request: evaluation(1.0, 1.0 if request.recipe == 2 else 0.0))
    assert wrong_answers(run, problem, same) == []
    assert wrong_answers(run, problem, other) == [2]


def test_processes_are_found_and_missed():
    code = "import subprocess as s; s.run(['python3', '-c', 'import time; time.sleep(60)', 'x'])"
    parent = subprocess.Popen([sys.executable, "-c", code])
    limit = time.monotonic() + 60
    while not (found := descendants(parent.pid)):
        assert time.monotonic() < limit
        time.sleep(0.05)
    assert alive(found[0]) and busy_workers(parent.pid) == []
    subprocess.run(["kill", "-9", str(found[0])], check=True)
    parent.wait()
    assert not alive(found[0]) and not alive(parent.pid) and descendants(parent.pid) == []


def test_a_file_that_a_killed_driver_leaves_in_shared_memory_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr("experiments.scale.chaos.ORPHANS", 0.3)
    monkeypatch.setattr("experiments.scale.processes.SHARED", (str(tmp_path),))
    lives, left = Lives(tmp_path, "run"), tmp_path / "left"
    left.write_text("")
    process = os.fork()
    if not process:
        os.open(left, os.O_RDONLY)
        time.sleep(60)
        os._exit(0)
    limit = time.monotonic() + 60
    while left not in shared_files(process):
        assert time.monotonic() < limit
        time.sleep(0.01)
    with pytest.raises(Failed, match=f"left by a killed driver: .*{left}"):
        lives.kill(process)


@pytest.mark.slow
def test_it_runs(tmp_path):
    command = [sys.executable, "-m", "experiments.scale.chaos", "--quick", "--out", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    rows = json.loads((tmp_path / "chaos.json").read_text())["searches"]
    assert [(row["strategy"], row["kills"]) for row in rows] == [("cma_es", 5), ("m2n2", 3)]
    assert rows[0]["equal"] and rows[1]["answered"] == rows[1]["evaluations"]
