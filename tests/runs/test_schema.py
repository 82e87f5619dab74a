"""The run database as it is on disk: whoever changes it raises `SCHEMA_VERSION` and this page together."""

import json

import numpy as np

from evomerge.runs.run import SCHEMA_VERSION, Asked, ReferenceScore, Run, Told
from evomerge.strategies import Candidate
from fitness.results import Evaluation

VERSION = 3
TABLES = {
    "item_sets": "CREATE TABLE item_sets (id INTEGER PRIMARY KEY, items TEXT NOT NULL UNIQUE)",
    "events": """CREATE TABLE events (
    seq INTEGER PRIMARY KEY,
    kind TEXT NOT NULL CHECK (kind IN ('asked', 'told', 'reference')),
    candidate INTEGER,          -- id of the candidate; NULL for reference scores
    at REAL NOT NULL,           -- seconds since the epoch
    data TEXT NOT NULL,         -- JSON
    genotype BLOB,              -- asked: float64, little-endian
    item_set INTEGER REFERENCES item_sets (id),
    scores BLOB,                -- told, reference: float32, little-endian, one per item of the set
    checksum BLOB NOT NULL      -- SHA-256 over the checksum before and this row
)""",
    "log_end": """CREATE TABLE log_end (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    events INTEGER NOT NULL,    -- how many there are
    checksum BLOB NOT NULL      -- of the last one
)""",
}
EVALUATION = {
    "status": "ok",
    "objectives": [0.5],
    "standard_errors": [None],
    "seconds": {"merge": 1.0, "score": 2.0, "wait": 0.0},
    "reason": "",
    "shares": [],
    "violation": 0.0,
}
ROWS = [
    ("asked", 0, {"kind": "sample", "generation": 3, "recipe": "hash"}),
    ("told", 0, {"cached": False, "elapsed": 1.5, "evaluation": EVALUATION}),
    ("reference", None, {"purpose": "vote", "recipe": "hash", "evaluation": EVALUATION | {"answers": ["a", "b"]}}),
]


def test_the_schema_is_the_one_of_its_version(tmp_path):
    assert SCHEMA_VERSION == VERSION
    with Run.create(tmp_path / "run", "seed: 0\n", {}) as run:
        assert run._db.execute("PRAGMA user_version").fetchone() == (VERSION,)
        assert run._db.execute("PRAGMA application_id").fetchone() == (0x45564F4D,)
        assert dict(run._db.execute("SELECT name, sql FROM sqlite_master WHERE type = 'table'")) == TABLES
        assert not run._db.execute("SELECT name FROM sqlite_master WHERE type NOT IN ('table', 'index')").fetchall()


def test_the_events_are_those_of_the_version(tmp_path):
    scores = np.array([1.0, 0.5], np.float32)
    items = ("t/test/0", "t/test/1")
    seconds = {"merge": 1.0, "score": 2.0, "wait": 0.0}
    evaluation = Evaluation("ok", (0.5,), (float("nan"),), items, scores, seconds)
    voter = Evaluation("ok", (0.5,), (float("nan"),), items, scores, seconds, answers=("a", "b"))
    genotype = np.array([0.1, -2.0])
    with Run.create(tmp_path / "run", "seed: 0\n", {}) as run:
        run.record(Asked(Candidate(0, genotype, "sample", 3), "hash"))
        run.record(Told(0, evaluation, False, 1.5))
        run.record(ReferenceScore("vote", "hash", voter))
        rows = run._db.execute("SELECT kind, candidate, data FROM events ORDER BY seq").fetchall()
        blobs = run._db.execute("SELECT genotype, item_set, scores FROM events ORDER BY seq").fetchall()
        sets = run._db.execute("SELECT id, items FROM item_sets").fetchall()
        last = run._db.execute("SELECT checksum FROM events ORDER BY seq DESC LIMIT 1").fetchone()
        assert run._db.execute("SELECT events, checksum FROM log_end").fetchall() == [(3, *last)]
    assert [(kind, candidate, json.loads(data)) for kind, candidate, data in rows] == ROWS
    assert blobs[0] == (genotype.astype("<f8").tobytes(), None, None)
    assert blobs[1] == blobs[2] == (None, 1, scores.astype("<f4").tobytes())
    assert sets == [(1, json.dumps(items))]
