"""Untrusted run directories: event logs and search files count as data, whatever is in them."""

import json
import sqlite3

import numpy as np
import pytest

from evomerge.config.errors import ConfigError
from evomerge.config.load import load_recorded
from evomerge.runs.history import RunHistory
from evomerge.runs.run import Asked, LogError, Run, RunError, Told
from evomerge.strategies import Candidate
from fitness.results import Evaluation
from tests.logs import reseal

SECONDS = {"merge": 0.1, "score": 0.2, "wait": 0.0}


@pytest.fixture
def run(tmp_path):
    """Return a run directory with one evaluated candidate."""
    path = tmp_path / "run"
    with Run.create(path, "seed: 0\n", {"evomerge": "0"}) as run:
        run.record(Asked(Candidate(0, np.zeros(3), "sample", 0), "aaaa"))
        scores = np.ones(2, np.float32)
        run.record(Told(0, Evaluation("ok", (1.0,), (0.0,), ("t/0", "t/1"), scores, SECONDS), False, 1.0))
    return path


STATEMENTS = {
    "genotype of odd length": "UPDATE events SET genotype = x'00112233' WHERE kind = 'asked'",
    "genotype missing": "UPDATE events SET genotype = NULL WHERE kind = 'asked'",
    "scores of odd length": "UPDATE events SET scores = x'001122' WHERE kind = 'told'",
    "more scores than items": "UPDATE events SET scores = zeroblob(400) WHERE kind = 'told'",
    "data is no JSON": "UPDATE events SET data = 'cos' WHERE kind = 'told'",
    "data is a list": "UPDATE events SET data = '[]' WHERE kind = 'told'",
    "data nested": "UPDATE events SET data = replace(hex(zeroblob(50000)), '0', '[') WHERE kind = 'told'",
    "unknown field": "UPDATE events SET data = replace(data, 'objectives', 'subclasses') WHERE kind = 'told'",
    "items are no JSON": "UPDATE item_sets SET items = 'x'",
    "items are a number": "UPDATE item_sets SET items = '3'",
    "told before asked": "UPDATE events SET candidate = 7 WHERE kind = 'told'",
    "huge event": "UPDATE events SET data = hex(zeroblob(40000000)) WHERE kind = 'told'",
    "huge genotype": "UPDATE events SET genotype = zeroblob(400000000) WHERE kind = 'asked'",
    "dropped table": "DROP TABLE item_sets",
    "view for a table": "ALTER TABLE events RENAME TO e; CREATE VIEW events AS SELECT * FROM e, e AS f, e AS g",
    "trigger": "CREATE TRIGGER evil AFTER INSERT ON events BEGIN DELETE FROM events; END",
    "other application": "PRAGMA application_id = 1",
}


@pytest.mark.parametrize("statement", STATEMENTS.values(), ids=STATEMENTS)
def test_logs_that_were_tampered_with(statement, run, refused):
    connection = sqlite3.connect(run / "events.sqlite")
    connection.executescript(statement)
    connection.close()
    with refused(LogError, "events.sqlite"), Run.read(run) as opened:
        RunHistory(opened.events())


@pytest.mark.parametrize("statement", list(STATEMENTS.values())[:11], ids=list(STATEMENTS)[:11])
def test_logs_whose_checksums_were_computed_again(statement, run, refused):
    connection = sqlite3.connect(run / "events.sqlite")
    connection.executescript(statement)
    reseal(connection)
    connection.commit()
    connection.close()
    with refused(LogError, "events.sqlite"), Run.read(run) as opened:
        RunHistory(opened.events())


def test_a_schema_that_is_code(run, refused):
    connection = sqlite3.connect(run / "events.sqlite")
    connection.execute("PRAGMA writable_schema = ON")
    connection.execute("UPDATE sqlite_master SET sql = 'CREATE TABLE events (evil' WHERE name = 'events'")
    connection.commit()
    connection.close()
    with refused(LogError, "events.sqlite"), Run.read(run):
        pass


def test_a_log_that_is_a_link_to_a_device(run, refused):
    (run / "events.sqlite").unlink()
    (run / "events.sqlite").symlink_to("/dev/zero")
    with refused(RunError, "not a run directory"), Run.read(run):
        pass


def test_tasks_that_come_with_a_run(run, refused):
    tasks = run / "tasks"
    tasks.mkdir()
    (tasks / "evil.yaml").write_text("task: evil\nprocess_docs: !function evil.run\n")
    (run / "config.yaml").write_text(
        "models: {base: ./base, expert: ./expert}\nfitness: {tasks: [{task: evil}], include_path: [tasks]}\n"
    )
    with refused(ConfigError, "inside the run directory", "code"):
        load_recorded(run)


def test_an_environment_that_is_no_json(run, refused):
    for text in ("", "{", "[" * 100_000, json.dumps({"a": "x" * 30_000_000})):
        (run / "environment.json").write_text(text)
        with refused(LogError, "environment.json"), Run.read(run) as opened:
            opened.environment()
