import math
import shutil
import sqlite3
from dataclasses import replace

import numpy as np
import pytest

from evomerge.runs import log_file
from evomerge.runs.environment import to_json
from evomerge.runs.run import SCHEMA_VERSION, Asked, LogError, ReferenceScore, Run, RunError, Told, check_new
from evomerge.strategies import Candidate
from fitness.results import Evaluation

SECONDS = {"merge": 0.1, "score": 0.2, "wait": 0.0}


def evaluation(value=0.25, items=("t/test/0", "t/test/1")):
    scores = np.array([0.0, 0.5], np.float32)
    return Evaluation("ok", (value,), (0.125,), items, scores, SECONDS)


def some_events():
    genotype = np.array([0.1, -0.3, 1 / 3])
    return [
        Asked(Candidate(0, genotype, "sample", 0), "aaaa"),
        Told(0, evaluation(), False, 1.5),
        Asked(Candidate(1, genotype + 1, "mean", 2), "bbbb"),
        Told(1, Evaluation.failed("out of memory", SECONDS), False, 2.0),
        Asked(Candidate(2, genotype, "sample", 2), "cccc"),
        Told(2, replace(evaluation(), shares=(0.25, 0.75), violation=0.125, objectives=(0.5, 0.25)), False, 2.5),
        ReferenceScore("held_out", "aaaa", evaluation(items=("t/test/7", "t/test/9"))),
    ]


@pytest.fixture
def run(tmp_path):
    with Run.create(tmp_path / "run", "seed: 0\n", {"evomerge": "0"}) as run:
        yield run


def assert_same_evaluation(a, b):
    assert (a.status, a.items, a.reason, dict(a.seconds)) == (b.status, b.items, b.reason, dict(b.seconds))
    assert (a.shares, a.violation) == (b.shares, b.violation)
    np.testing.assert_array_equal(a.objectives, b.objectives)
    np.testing.assert_array_equal(a.standard_errors, b.standard_errors)
    assert a.scores.dtype == np.float32 and np.array_equal(a.scores, b.scores)


def test_events_come_back_as_they_were(run):
    recorded = some_events()
    for event in recorded:
        run.record(event)
    for a, b in zip(recorded, run.events(), strict=True):
        assert type(a) is type(b)
        if isinstance(a, Asked):
            assert (a.candidate.id, a.candidate.kind, a.candidate.generation, a.recipe) == (
                b.candidate.id,
                b.candidate.kind,
                b.candidate.generation,
                b.recipe,
            )
            assert np.array_equal(a.candidate.genotype, b.candidate.genotype)  # to the last bit
            continue
        assert_same_evaluation(a.evaluation, b.evaluation)
        if isinstance(a, Told):
            assert (a.candidate, a.cached, a.elapsed) == (b.candidate, b.cached, b.elapsed)
        else:
            assert (a.purpose, a.recipe) == (b.purpose, b.recipe)


def test_not_a_number_survives(run):
    run.record(Asked(Candidate(0, np.zeros(1), "sample", 0), "aaaa"))
    run.record(Told(0, evaluation(value=math.nan), False, 0.0))
    _, event = run.events()
    assert math.isnan(event.evaluation.objectives[0])


def test_an_item_set_is_stored_once(run):
    for _ in range(10):
        run.record(Told(0, evaluation(), False, 0.0))
    (count,) = run._db.execute("SELECT COUNT(*) FROM item_sets").fetchone()
    assert count == 1


def test_a_second_writer_is_refused_and_a_reader_is_not(run):
    run.record(some_events()[0])
    with pytest.raises(RunError, match="in use by another evomerge process; watch it with"):
        Run.open(run.path)
    with Run.read(run.path) as reader:
        assert len(list(reader.events())) == 1


def test_the_lock_is_free_after_closing(run):
    run.close()
    Run.open(run.path).close()


def test_an_existing_folder_is_not_overwritten(run):
    with pytest.raises(RunError, match="exists already; continue it with `evomerge resume"):
        Run.create(run.path, "", {})


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(RunError, match="is not a run directory"):
        Run.open(tmp_path)


def test_another_version_is_refused(run):
    run.close()
    with sqlite3.connect(run.path / "events.sqlite") as db:
        db.execute(f"PRAGMA user_version={SCHEMA_VERSION + 1}")
    with pytest.raises(RunError, match=f"format version {SCHEMA_VERSION + 1}, this evomerge reads {SCHEMA_VERSION}"):
        Run.open(run.path)


@pytest.mark.parametrize("keep", [0, 50, 3000, 9000])
def test_a_truncated_log_is_reported(run, keep):
    for event in some_events() * 20:
        run.record(event)
    run.close()
    file = run.path / "events.sqlite"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(LogError, match=r"events\.sqlite is damaged .* restore it from a backup"):
        Run.open(run.path)


def test_a_log_that_is_no_database(run):
    run.close()
    (run.path / "events.sqlite").write_bytes(b"something else entirely" * 100)
    with pytest.raises(LogError, match="is damaged"):
        Run.read(run.path)


def test_a_foreign_database_is_refused(run):
    run.close()
    (run.path / "events.sqlite").unlink()
    with sqlite3.connect(run.path / "events.sqlite") as db:
        db.execute("CREATE TABLE events (a)")
    with pytest.raises(LogError, match="not written by evomerge"):
        Run.open(run.path)


def test_a_full_disk_keeps_what_was_recorded(run):
    events = some_events()
    run.record(events[0])
    (pages,) = run._db.execute("PRAGMA page_count").fetchone()
    run._db.execute(f"PRAGMA max_page_count={pages}")
    with pytest.raises(LogError, match=r"cannot write .*full.*; everything before is kept"):
        for _ in range(1000):
            run.record(events[1])
    run._db.execute("PRAGMA max_page_count=100000")
    run.record(events[2])
    kinds = [type(event) for event in run.events()]
    assert kinds[0] is Asked and kinds[-1] is Asked


@pytest.mark.parametrize("change", ["removed", "moved", "replaced"])
def test_a_run_that_is_no_longer_there_records_nothing(run, tmp_path, change):
    run.record(some_events()[0])
    (shutil.rmtree if change == "removed" else lambda path: path.rename(tmp_path / "elsewhere"))(run.path)
    if change == "replaced":
        shutil.copytree(tmp_path / "elsewhere", run.path)
    with pytest.raises(LogError, match=r"was moved, removed or replaced during the search; put it back, then `evomerg"):
        run.record(some_events()[1])
    if change == "moved":
        (tmp_path / "elsewhere").rename(run.path)
        run.record(some_events()[1])
        assert run.count() == 2


@pytest.mark.parametrize(
    "refused", ["database or disk is full", "unable to open database file", "attempt to write a readonly database"]
)
def test_a_log_that_the_disk_refuses_is_not_called_damaged(run, monkeypatch, refused):
    def refuse(*_):
        raise sqlite3.OperationalError(refused)

    run.close()
    with monkeypatch.context() as patch:
        patch.setattr(log_file, "connect", refuse)
        for opened in (Run.open, Run.read):
            with pytest.raises(LogError, match=rf"cannot be used \({refused}\); what it holds is kept: check the perm"):
                opened(run.path)
    Run.open(run.path).close()


def test_an_uncommitted_event_is_not_seen(run):
    run._db.execute("BEGIN IMMEDIATE")
    run._db.execute("INSERT INTO events (kind, at, data, checksum) VALUES ('reference', 0, '{}', x'00')")
    with Run.read(run.path) as reader:
        assert list(reader.events()) == []
    run._db.execute("ROLLBACK")


def test_a_clock_that_goes_back_changes_no_order(run, monkeypatch):
    clock = iter([2000.0, 1000.0, 3000.0])
    monkeypatch.setattr("evomerge.runs.run.time.time", lambda: next(clock))
    events = [Asked(Candidate(identity, np.zeros(1), "sample", 0), "aaaa") for identity in range(3)]
    for event in events:
        run.record(event)
    assert [event.candidate.id for event in run.events()] == [0, 1, 2]


def test_a_copied_run_goes_on(run, tmp_path):
    for event in some_events():
        run.record(event)
    run.close()
    shutil.copytree(run.path, tmp_path / "copy")
    with Run.open(tmp_path / "copy") as copy:
        copy.record(some_events()[0])
        assert copy.count() == len(some_events()) + 1
    with Run.read(run.path) as original:
        assert original.count() == len(some_events())


def test_a_name_that_is_no_text_is_refused_before_the_work(tmp_path):
    with pytest.raises(RunError, match="is not text in UTF-8, as recipes are"):
        check_new(tmp_path / "r\udcfcn")


def test_an_environment_with_keys_of_another_version_says_which_one_reads_it(run):
    file = run.path / "environment.json"
    file.write_text(to_json({"evomerge": "9.9", "temperature": 3}))
    with pytest.raises(LogError, match=r"\(temperature: Extra inputs .*\); use evomerge 9.9, which wrote it \(this is"):
        run.environment()
