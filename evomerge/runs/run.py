"""A run: the directory that holds everything about a search, and the event log that is its checkpoint.

Every proposed candidate and every told evaluation is one event, in order, each committed on its own, so a
process that is killed at any moment loses at most the candidates in flight. Resuming replays the log through the
strategy (`evomerge.search.loop`); nothing is pickled, and a run directory from somebody else cannot execute code.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any, Protocol

from filelock import FileLock, Timeout

from evomerge.files.atomic import FileError, PlaceError, atomic_folder, check_place, write_text
from evomerge.files.locks import is_locked
from evomerge.runs import frames, held_out
from evomerge.runs.environment import Environment, read, to_json
from evomerge.runs.event_rows import (
    FIRST_CHECKSUM,
    OF_HELD_OUT_ITEMS,
    Asked,
    Event,
    Purpose,
    ReferenceScore,
    Row,
    Told,
    event_of,
    first_mistake,
    items_checksum,
    items_of,
    items_text,
    row_of,
)
from evomerge.runs.held_out import HeldOut
from evomerge.runs.log_file import (
    ORIGIN,
    SCHEMA,
    SCHEMA_VERSION,
    LogError,
    RunError,
    checked,
    connect,
    damaged,
    is_run,
)

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "OF_HELD_OUT_ITEMS",
    "ORIGIN",
    "SCHEMA_VERSION",
    "Asked",
    "Event",
    "EventLog",
    "LogError",
    "Purpose",
    "ReferenceScore",
    "Run",
    "RunError",
    "Told",
    "is_run",
]

_ELSEWHERE = "name a writable place with --run"


class EventLog(Protocol):
    """Where a search records its events, and reads those of earlier sessions; a run directory is one."""

    @property
    def path(self) -> Path:
        """The directory, for messages."""

    @property
    def origin(self) -> str:
        """The comment of recipes that this run has found."""

    def record(self, event: Event) -> None:
        """Append one event."""

    def events(self) -> Iterator[Event]:
        """Yield all events in the order in which they happened."""

    def write(self, name: str, text: str) -> None:
        """Replace one of the run's text files."""


class Run:
    """One run directory. `create` and `open` take the writer's lock; `read` does not and never writes.

    Attributes
    ----------
    path
        The directory.
    incomplete
        Whether the log ended in an event that was not written whole, which is left out.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection, lock: FileLock | None, incomplete: bool) -> None:
        self.path = path
        self.incomplete = incomplete
        self._db = connection
        self._lock = lock
        self._item_sets: dict[tuple[str, ...], tuple[int, bytes]] = {}  # number and checksum
        self._file = self._file_now()

    @classmethod
    def create(cls, path: Path, config_yaml: str, environment: Environment | Mapping[str, Any]) -> Run:
        """Make a new run directory.

        Raises
        ------
        RunError
            If `path` exists and is not an empty folder, or cannot be made.
        """
        try:
            with atomic_folder(path, elsewhere=_ELSEWHERE) as temporary:
                (temporary / "config.yaml").write_text(config_yaml, encoding="utf-8")
                (temporary / "environment.json").write_text(to_json(environment), encoding="utf-8")
                with closing(connect(temporary / "events.sqlite")) as connection:
                    connection.executescript(SCHEMA)
                    connection.execute("INSERT INTO log_end VALUES (1, 0, ?)", (FIRST_CHECKSUM,))
                    connection.execute("COMMIT")
        except PlaceError:
            raise _exists(path) from None
        except FileError as error:
            if is_run(path):  # another process was quicker
                raise _exists(path) from None
            raise RunError(str(error)) from error
        except sqlite3.Error as error:
            raise RunError(f"{path}: cannot make a run here ({error}); {_ELSEWHERE}") from error
        return cls.open(path)

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """Open an existing run for writing.

        Raises
        ------
        RunError
            If it is not a run directory, is in use, or has another version.
        LogError
            If the log is damaged.
        """
        path = Path(path)
        require_run(path)
        lock = _acquire(path)
        try:
            connection, incomplete = checked(path, read_only=False)
            return cls(path, connection, lock, incomplete)
        except (RunError, LogError):
            lock.release()
            raise

    @classmethod
    def read(cls, path: str | Path) -> Run:
        """Open an existing run for reading only, also while another process searches. Raises as `open` does."""
        path = Path(path)
        require_run(path)
        connection, incomplete = checked(path, read_only=True)
        return cls(path, connection, None, incomplete)

    def close(self) -> None:
        """Close the log and release the lock."""
        self._db.close()
        if self._lock is not None:
            self._lock.release()

    def environment(self) -> Environment:
        """Return what `environment.json` holds.

        Raises
        ------
        LogError
            If it is missing or damaged.
        """
        return read(self.path / "environment.json")

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
        if self._file_now() != self._file:  # SQLite would go on writing to the file, which has no name any more
            raise LogError(
                f"{self.path}: the run directory was moved, removed or replaced during the search; put it back, then "
                f"`evomerge resume {quote(str(self.path))}`"
            )
        try:
            self._db.execute("BEGIN IMMEDIATE")
            number, checksum = (None, b"") if isinstance(event, Asked) else self._item_set(event.evaluation.items)
            row = row_of(event, time.time(), checksum)
            count, before = self._db.execute("SELECT events, checksum FROM log_end").fetchone()
            end = row.checksum(before)
            self._db.execute(
                "INSERT INTO events (kind, candidate, at, data, genotype, item_set, scores, checksum) "
                "VALUES (?,?,?,?,?,?,?,?)",
                (row.kind, row.candidate, row.at, row.data, row.genotype, number, row.scores, end),
            )
            self._db.execute("UPDATE log_end SET events = ?, checksum = ?", (count + 1, end))
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            self._item_sets.clear()  # a new item set may have been taken back
            raise LogError(
                f"{self.path / 'events.sqlite'}: cannot write ({error}); everything before is kept: "
                f"free some space, then `evomerge resume {quote(str(self.path))}`"
            ) from error

    def events(self) -> Iterator[Event]:
        """Yield all events in the order in which they happened.

        Raises
        ------
        LogError
            If one of them is not as it was recorded, or some are missing: as soon as that is found.
        """
        for _, event in self.timed_events():
            yield event

    def timed_events(self) -> Iterator[tuple[float, Event]]:
        """Yield all events with the seconds since the epoch when they happened; order and errors as of `events`."""
        try:
            yield from self._events()
        except (sqlite3.Error, TypeError, ValueError, RecursionError) as error:
            raise damaged(self.path, error if isinstance(error, sqlite3.Error) else first_mistake(error)) from error

    def _events(self) -> Iterator[tuple[float, Event]]:
        # One statement: the end of the log belongs to the same moment as its events, also while another process writes.
        rows = self._db.execute(
            "SELECT log_end.events, log_end.checksum, kind, candidate, at, data, genotype, item_set, scores, "
            "events.checksum FROM log_end LEFT JOIN events ORDER BY seq"
        )
        item_sets: dict[int | None, tuple[tuple[str, ...], bytes]] = {None: ((), b"")}
        asked: set[int | None] = set()
        before, count, end = FIRST_CHECKSUM, 0, (-1, b"")
        for *end_columns, kind, candidate, at, data, genotype, item_set, scores, checksum in rows:
            end = tuple(end_columns)
            if kind is None:
                break  # there are no events
            if item_set not in item_sets:
                item_sets[item_set] = self._read_items(item_set)
            items, items_sum = item_sets[item_set]
            row = Row(kind, candidate, at, data, genotype, items_sum, scores)
            count, before = count + 1, row.checksum(before)
            if before != checksum:
                raise ValueError(f"event {count} differs from its record, or does not follow the event before it")
            event = event_of(row, items)
            if isinstance(event, Asked):
                asked.add(candidate)
            elif isinstance(event, Told) and candidate not in asked:
                raise ValueError(f"candidate {candidate} was told and never asked")
            yield row.at, event
        if end != (count, before):
            raise ValueError(f"{end[0]} events were recorded, and {count} are there")

    def _read_items(self, number: int) -> tuple[tuple[str, ...], bytes]:
        """Return an item set and its checksum."""
        (text,) = self._db.execute("SELECT items FROM item_sets WHERE id = ?", (number,)).fetchone() or ("",)
        return items_of(text), items_checksum(text)

    @property
    def candidates(self) -> pd.DataFrame:
        """One row per candidate: scores, genes, times; see `evomerge.runs.frames.COLUMNS`. Raises as `events` does."""
        return frames.candidates(self.timed_events(), self.environment().genes)

    @property
    def items(self) -> pd.DataFrame:
        """One row per search item and held-out item; see `evomerge.runs.frames.COLUMNS`."""
        return frames.items(self.environment(), self._held_out())

    @property
    def answers(self) -> pd.DataFrame:
        """One row per item that a recipe was asked; see `evomerge.runs.frames.COLUMNS`. Raises as `events` does."""
        return frames.answers(self.timed_events(), self._held_out())

    def _held_out(self) -> HeldOut | None:
        return HeldOut.read(self.path) if (self.path / held_out.FILE).is_file() else None

    def count(self) -> int:
        """Return how many events there are."""
        try:
            (count,) = self._db.execute("SELECT COUNT(*) FROM events").fetchone()
            return int(count)
        except sqlite3.Error as error:
            raise damaged(self.path, error) from error

    @property
    def origin(self) -> str:
        """The comment of recipes that this run has found."""
        return origin_of(self.path)

    def write(self, name: str, text: str) -> None:
        """Replace one of the run's text files in one step.

        Raises
        ------
        FileError
            If the disk or the folder refuses; the events are kept.
        """
        resume = f"move the run to another disk, then `evomerge resume {quote(str(self.path))}`; all scores are kept"
        write_text(self.path / name, text, elsewhere=resume)

    def _file_now(self) -> tuple[int, int] | None:
        """Return device and inode of the event log; None if there is none at its path."""
        try:
            status = (self.path / "events.sqlite").stat()
        except OSError:
            return None
        return status.st_dev, status.st_ino

    def _item_set(self, items: tuple[str, ...]) -> tuple[int, bytes]:
        """Return the number and the checksum of an item set, which is stored once."""
        if items not in self._item_sets:
            text = items_text(items)
            self._db.execute("INSERT OR IGNORE INTO item_sets (items) VALUES (?)", (text,))
            (number,) = self._db.execute("SELECT id FROM item_sets WHERE items = ?", (text,)).fetchone()
            self._item_sets[items] = number, items_checksum(text)
        return self._item_sets[items]


def _exists(path: Path) -> RunError:
    name = quote(str(path))
    return RunError(f"{path} exists already; continue it with `evomerge resume {name}`, or name another with --run")


def check_new(path: Path) -> None:
    """Refuse a place where no new run can be made, before the work that comes first.

    Raises
    ------
    RunError
        If `path` exists and is not an empty folder, or cannot be made.
    """
    try:
        str(path.absolute()).encode()
    except UnicodeEncodeError:
        raise RunError(
            f"{path}: its name, or that of a folder above it, is not text in UTF-8, as recipes are, which name their "
            f"run; {_ELSEWHERE}, or set a UTF-8 locale"
        ) from None
    try:
        check_place(path, _ELSEWHERE)
    except PlaceError:
        raise _exists(path) from None
    except FileError as error:
        raise RunError(str(error)) from error


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


def origin_of(run: Path) -> str:
    """Return the comment of recipes that a run has found."""
    return f"{ORIGIN}{run.resolve()}"


def in_use(path: Path) -> bool:
    """Return whether another process has a run open for writing; those who may only read it can ask, too."""
    return is_locked(path / ".lock", by_anybody=False) is True
