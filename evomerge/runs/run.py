"""A run: the directory that holds everything about a search, and the event log that is its checkpoint.

Every proposed candidate and every told evaluation is one event, in order, each committed on its own, so a
process that is killed at any moment loses at most the candidates in flight. Resuming replays the log through the
strategy (`evomerge.search.loop`); nothing is pickled, and a run directory from somebody else cannot execute code.
"""

from __future__ import annotations

import json
import math
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any, Literal

import numpy as np
from filelock import FileLock, Timeout

from evomerge.files.atomic import FileError, PlaceError, atomic_folder, write_text
from evomerge.strategies.base import Candidate, Genotype
from fitness.results import Evaluation

SCHEMA_VERSION = 2
_APPLICATION_ID = 0x45564F4D  # "EVOM"
_SCHEMA = f"""
BEGIN;
PRAGMA application_id = {_APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
CREATE TABLE item_sets (id INTEGER PRIMARY KEY, items TEXT NOT NULL UNIQUE);
CREATE TABLE events (
    seq INTEGER PRIMARY KEY,
    kind TEXT NOT NULL CHECK (kind IN ('asked', 'told', 'reference')),
    candidate INTEGER,          -- id of the candidate; NULL for reference scores
    at REAL NOT NULL,           -- seconds since the epoch
    data TEXT NOT NULL,         -- JSON
    genotype BLOB,              -- asked: float64, little-endian
    item_set INTEGER REFERENCES item_sets (id),
    scores BLOB                 -- told, reference: float32, little-endian, one per item of the set
);
COMMIT;
"""

MAX_CELL = 20_000_000  # bytes; a network of two million weights evolved from scratch is below
# What a log from somebody else may not contain: other tables, views or triggers, and cells that would fill the memory.
_FOREIGN = f"""
SELECT 'the ' || type || ' ' || name FROM sqlite_master
WHERE type NOT IN ('table', 'index') OR tbl_name NOT IN ('events', 'item_sets')
UNION ALL
SELECT 'more than {MAX_CELL} bytes in one event' FROM events
WHERE max(length(data), coalesce(length(genotype), 0), coalesce(length(scores), 0)) > {MAX_CELL}
UNION ALL
SELECT 'more than {MAX_CELL} bytes in one item set' FROM item_sets WHERE length(items) > {MAX_CELL}
"""


class RunError(ValueError):
    """A run directory that cannot be used as asked; the message says what to do instead."""


class LogError(RuntimeError):
    """An event log that is damaged or cannot be written; the message says what is kept and what to do."""


Purpose = Literal["parent", "confirm", "held_out", "vote"]


@dataclass(frozen=True, eq=False)
class Asked:
    """A candidate was proposed; `recipe` is the hash of what its genotype decodes to."""

    candidate: Candidate
    recipe: str


@dataclass(frozen=True, eq=False)
class Told:
    """A candidate's evaluation was told to the strategy.

    `cached` if an equal recipe had been scored before; `elapsed` is the seconds of searching up to here,
    summed over all sessions.
    """

    candidate: int
    evaluation: Evaluation
    cached: bool
    elapsed: float


@dataclass(frozen=True, eq=False)
class ReferenceScore:
    """A recipe that is scored beside the candidates, and for what.

    `purpose`: a source on all search items before the search (`parent`), a finalist on all search items after it
    (`confirm`), any row of the final table on the held-out items (`held_out`), or a member of an ensemble on these,
    with its answers (`vote`).
    """

    purpose: Purpose
    recipe: str
    evaluation: Evaluation


Event = Asked | Told | ReferenceScore
_KINDS = {Asked: "asked", Told: "told", ReferenceScore: "reference"}


class Run:
    """One run directory. `create` and `open` take the writer's lock; `read` does not and never writes."""

    def __init__(self, path: Path, connection: sqlite3.Connection, lock: FileLock | None) -> None:
        self.path = path
        self._db = connection
        self._lock = lock
        self._item_sets: dict[tuple[str, ...], int] = {}

    @classmethod
    def create(cls, path: Path, config_yaml: str, environment: Mapping[str, Any]) -> Run:
        """Make a new run directory.

        Raises
        ------
        RunError
            If `path` exists and is not an empty folder, or cannot be made.
        """
        try:
            with atomic_folder(path, elsewhere="name a writable place with --run") as temporary:
                (temporary / "config.yaml").write_text(config_yaml, encoding="utf-8")
                text = json.dumps(environment, indent=1) + "\n"
                (temporary / "environment.json").write_text(text, encoding="utf-8")
                with closing(_connect(temporary / "events.sqlite")) as connection:
                    connection.executescript(_SCHEMA)
        except PlaceError:
            raise _exists(path) from None
        except FileError as error:
            if is_run(path):  # another process was quicker
                raise _exists(path) from None
            raise RunError(str(error)) from error
        except sqlite3.Error as error:
            raise RunError(f"{path}: cannot make a run here ({error}); name a writable place with --run") from error
        return cls.open(path)

    @classmethod
    def open(cls, path: Path) -> Run:
        """Open an existing run for writing.

        Raises
        ------
        RunError
            If it is not a run directory, is in use, or has another version.
        LogError
            If the log is damaged.
        """
        require_run(path)
        lock = _acquire(path)
        try:
            return cls(path, _checked(path, read_only=False), lock)
        except (RunError, LogError):
            lock.release()
            raise

    @classmethod
    def read(cls, path: Path) -> Run:
        """Open an existing run for reading only, also while another process searches. Raises as `open` does."""
        require_run(path)
        return cls(path, _checked(path, read_only=True), None)

    def close(self) -> None:
        """Close the log and release the lock."""
        self._db.close()
        if self._lock is not None:
            self._lock.release()

    def environment(self) -> dict[str, Any]:
        """Return what `environment.json` holds.

        Raises
        ------
        LogError
            If it is missing or damaged.
        """
        file = self.path / "environment.json"
        try:
            if file.stat().st_size > MAX_CELL:
                raise ValueError(f"it is larger than {MAX_CELL:,} bytes")
            environment: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            return environment
        except (OSError, ValueError, RecursionError) as error:
            raise LogError(f"{file} cannot be read ({error}); restore it from a backup, or start a new run") from None

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def record(self, event: Event) -> None:
        """Append one event, in a transaction of its own.

        Raises
        ------
        LogError
            If it cannot be written (disk full); what was recorded before is kept.
        """
        candidate, data, genotype, evaluation = _fields(event)
        item_set = scores = None
        try:
            self._db.execute("BEGIN IMMEDIATE")
            if evaluation is not None:
                item_set = self._item_set(evaluation.items)
                scores = np.asarray(evaluation.scores, dtype="<f4").tobytes()
            self._db.execute(
                "INSERT INTO events (kind, candidate, at, data, genotype, item_set, scores) VALUES (?,?,?,?,?,?,?)",
                (_KINDS[type(event)], candidate, time.time(), json.dumps(data), genotype, item_set, scores),
            )
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise LogError(
                f"{self.path / 'events.sqlite'}: cannot write ({error}); all before is kept: "
                f"make room, then `evomerge resume {quote(str(self.path))}`"
            ) from error

    def events(self) -> Iterator[Event]:
        """Yield all events in the order in which they happened."""
        try:
            items = {
                identity: tuple(json.loads(text))
                for identity, text in self._db.execute("SELECT id, items FROM item_sets")
            }
            rows = self._db.execute("SELECT kind, candidate, data, genotype, item_set, scores FROM events ORDER BY seq")
            asked: set[int] = set()
            for kind, candidate, data, genotype, item_set, scores in rows:
                event = _event(kind, candidate, json.loads(data), genotype, items.get(item_set, ()), scores)
                if isinstance(event, Asked):
                    asked.add(candidate)
                elif isinstance(event, Told) and candidate not in asked:
                    raise ValueError(f"candidate {candidate} was told and never asked")
                yield event
        except (sqlite3.Error, KeyError, TypeError, ValueError, RecursionError) as error:
            raise _damaged(self.path, error) from error

    def count(self) -> int:
        """Return how many events there are."""
        try:
            (count,) = self._db.execute("SELECT COUNT(*) FROM events").fetchone()
            return int(count)
        except sqlite3.Error as error:
            raise _damaged(self.path, error) from error

    def write(self, name: str, text: str) -> None:
        """Replace one of the run's text files in one step."""
        write_text(self.path / name, text)

    def _item_set(self, items: tuple[str, ...]) -> int:
        if items not in self._item_sets:
            text = json.dumps(items)
            self._db.execute("INSERT OR IGNORE INTO item_sets (items) VALUES (?)", (text,))
            (identity,) = self._db.execute("SELECT id FROM item_sets WHERE items = ?", (text,)).fetchone()
            self._item_sets[items] = identity
        return self._item_sets[items]


def _exists(path: Path) -> RunError:
    name = quote(str(path))
    return RunError(f"{path} exists already; continue it with `evomerge resume {name}`, or name another with --run")


def is_run(path: Path) -> bool:
    """Return whether `path` looks like a run directory."""
    return (path / "events.sqlite").is_file()


def require_run(path: Path) -> None:
    """Raise RunError unless `path` is a run directory."""
    if not is_run(path):
        raise RunError(
            f"{path} is not a run directory (it has no events.sqlite); `evomerge runs` lists the run directories"
        )


def _acquire(path: Path) -> FileLock:
    lock = FileLock(path / ".lock")
    try:
        lock.acquire(timeout=0.5)  # `status` holds it for an instant
    except Timeout:
        raise RunError(
            f"{path} is in use by another evomerge process; watch it with `evomerge status {quote(str(path))}`, "
            "or stop that one first"
        ) from None
    except OSError as error:
        raise RunError(f"{path}: cannot be written to ({error.strerror}); copy the run to a writable place") from None
    return lock


def in_use(path: Path) -> bool:
    """Return whether another process has a run open for writing."""
    lock = FileLock(path / ".lock")
    try:
        with lock.acquire(timeout=0):
            return False
    except Timeout:
        return True
    except OSError:  # a read-only folder
        return False


def _connect(file: Path, read_only: bool = False) -> sqlite3.Connection:
    mode = "mode=ro" if read_only else "mode=rwc"
    if read_only and not os.access(file.parent, os.W_OK) and not file.with_name(f"{file.name}-wal").exists():
        mode = "immutable=1"  # reading a log in WAL mode otherwise makes files beside it
    connection = sqlite3.connect(f"{file.resolve().as_uri()}?{mode}", uri=True, isolation_level=None, timeout=10)
    connection.execute("PRAGMA trusted_schema=OFF")
    connection.execute("PRAGMA cell_size_check=ON")
    if not read_only:
        # WAL with NORMAL: a killed process loses nothing, a power cut at most the last events, never the file.
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
    return connection


def _checked(path: Path, read_only: bool) -> sqlite3.Connection:
    """Connect to an existing log and check that it is intact and has our version."""
    file = path / "events.sqlite"
    try:
        connection = _connect(file, read_only)
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        foreign = connection.execute(_FOREIGN).fetchone() if application == _APPLICATION_ID else None
    except sqlite3.Error as error:
        raise _damaged(path, error) from error
    if application != _APPLICATION_ID or verdict != "ok":
        connection.close()
        raise _damaged(path, verdict if verdict != "ok" else "not written by evomerge")
    if foreign is not None:
        connection.close()
        raise _damaged(path, f"it holds {foreign[0]}, which evomerge does not write")
    if version != SCHEMA_VERSION:
        connection.close()
        raise RunError(
            f"{file} has format version {version}, this evomerge reads {SCHEMA_VERSION}; "
            "use the evomerge version named in environment.json, or start a new run"
        )
    return connection


def _damaged(path: Path, reason: object) -> LogError:
    file = path / "events.sqlite"
    return LogError(
        f"{file} is damaged ({reason}); restore it from a backup, or save what is left with "
        f"`sqlite3 {file} .recover`; best.yaml beside it is not affected"
    )


def _fields(event: Event) -> tuple[int | None, dict[str, Any], bytes | None, Evaluation | None]:
    if isinstance(event, Asked):
        candidate = event.candidate
        data = {"kind": candidate.kind, "generation": candidate.generation, "recipe": event.recipe}
        return candidate.id, data, np.asarray(candidate.genotype, dtype="<f8").tobytes(), None
    if isinstance(event, Told):
        data = {"cached": event.cached, "elapsed": event.elapsed} | _evaluation_data(event.evaluation)
        return event.candidate, data, None, event.evaluation
    data = {"purpose": event.purpose, "recipe": event.recipe} | _evaluation_data(event.evaluation)
    return None, data, None, event.evaluation


def _evaluation_data(evaluation: Evaluation) -> dict[str, Any]:
    data = {name: value for name, value in vars(evaluation).items() if name not in ("items", "scores")}
    data["seconds"] = dict(evaluation.seconds)
    for key in ("answers", "gradient"):  # most have none
        if not data[key]:
            del data[key]
    for key in ("objectives", "standard_errors"):  # JSON has no NaN
        data[key] = [value if math.isfinite(value) else None for value in data[key]]
    return {"evaluation": data}


def _event(
    kind: str, candidate: int, data: dict[str, Any], genotype: bytes, items: tuple[str, ...], scores: bytes
) -> Event:
    if kind == "asked":
        genes: Genotype = np.frombuffer(genotype, dtype="<f8").astype(np.float64)
        return Asked(Candidate(candidate, genes, data["kind"], data["generation"]), data["recipe"])
    fields = data["evaluation"]
    if len(scores) != 4 * len(items):
        raise ValueError(f"candidate {candidate} has scores for other items than it was asked")
    for key in ("objectives", "standard_errors"):
        fields[key] = tuple(math.nan if value is None else value for value in fields[key])
    fields["shares"] = tuple(fields.get("shares", ()))
    fields["gradient"] = tuple(fields.get("gradient", ()))
    fields["answers"] = answers = tuple(fields.get("answers", ()))
    if len(answers) not in (0, len(items)) or not all(isinstance(answer, str) for answer in answers):
        raise ValueError("a member of an ensemble has answers to other items than it was asked")
    evaluation = Evaluation(items=items, scores=np.frombuffer(scores, dtype="<f4").astype(np.float32), **fields)
    if kind == "told":
        return Told(candidate, evaluation, data["cached"], data["elapsed"])
    return ReferenceScore(data["purpose"], data["recipe"], evaluation)
