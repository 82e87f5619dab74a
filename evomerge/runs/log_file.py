"""The file of the event log: an SQLite database, its tables, and the checks when it is opened."""

from __future__ import annotations

import os
import re
import sqlite3
import struct
from itertools import islice
from pathlib import Path
from shlex import quote

ORIGIN = "run: "
"""Begins the comment of a recipe that says which run has found it."""


HEADER_LINES = 10
"""Comment lines at the beginning of a recipe that are looked at."""

SCHEMA_VERSION = 3
_APPLICATION_ID = 0x45564F4D  # "EVOM"
SCHEMA = f"""
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
    scores BLOB,                -- told, reference: float32, little-endian, one per item of the set
    checksum BLOB NOT NULL      -- SHA-256 over the checksum before and this row
);
CREATE TABLE log_end (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    events INTEGER NOT NULL,    -- how many there are
    checksum BLOB NOT NULL      -- of the last one
);
"""

MAX_CELL = 20_000_000  # bytes; a network of two million weights evolved from scratch is below
# What a log from somebody else may not contain: other tables, views or triggers, and cells that would fill the memory.
_FOREIGN = f"""
SELECT 'the ' || type || ' ' || name FROM sqlite_master
WHERE type NOT IN ('table', 'index') OR tbl_name NOT IN ('events', 'item_sets', 'log_end')
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


def connect(file: Path, read_only: bool = False) -> sqlite3.Connection:
    """Return a connection to a log, which is made if it does not exist."""
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


def checked(path: Path, read_only: bool) -> tuple[sqlite3.Connection, bool]:
    """Connect to the log of a run directory and check that it is intact and has our version.

    Returns
    -------
    connection
    incomplete
        Whether the event after the last one was begun and not written whole, as a power cut leaves it.

    Raises
    ------
    LogError
        If it is damaged.
    RunError
        If it has another version.
    """
    file = path / "events.sqlite"
    try:
        connection = connect(file, read_only)
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if application == _APPLICATION_ID and verdict == "ok" and version != SCHEMA_VERSION:
            connection.close()
            raise RunError(
                f"{file} has format version {version}, this evomerge reads {SCHEMA_VERSION}; "
                "use the evomerge version named in environment.json, or start a new run"
            )
        foreign = connection.execute(_FOREIGN).fetchone() if application == _APPLICATION_ID else None
        if application != _APPLICATION_ID or verdict != "ok":
            raise _Damage(verdict if verdict != "ok" else "not written by evomerge")
        if foreign is not None:
            raise _Damage(f"it holds {foreign[0]}, which evomerge does not write")
        left_out = _left_out(connection, file)
        if left_out > 1:
            raise _Damage("events.sqlite-wal has a damaged part, and whole events after it")
        if not read_only:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # what a killed process has left is in one file now
    except sqlite3.Error as error:
        raise damaged(path, error) from error
    except _Damage as damage:
        connection.close()
        raise damaged(path, damage) from None
    return connection, left_out == 1


class _Damage(Exception):
    """Why a log is damaged."""


_OF_THE_DISK = (
    "disk is full",
    "disk I/O error",
    "unable to open database file",
    "readonly database",
    "database is locked",
    "access permission denied",
)
"""Parts of SQLite's messages about a file that it cannot use and that may be intact."""


def damaged(path: Path, reason: object) -> LogError:
    """Return the error for a damaged log of the run directory `path`, or for an intact one that the disk refuses."""
    file = path / "events.sqlite"
    if isinstance(reason, sqlite3.Error) and any(part in str(reason) for part in _OF_THE_DISK):
        return LogError(
            f"{file}: cannot be used ({reason}); what it holds is kept: check the permissions of the run directory "
            "and the free space on its disk, or copy the run to another place"
        )
    return LogError(
        f"{file} is damaged ({reason}); restore it from a backup, or save what is left with "
        f"`sqlite3 {quote(str(file))} .recover`; best.yaml beside it is not affected"
    )


# --- the write-ahead log ---
#
# A killed process leaves its last transactions in events.sqlite-wal. SQLite reads that file up to the first frame whose
# checksum is wrong, and takes everything after it for a transaction that was never finished. If a later transaction is
# whole, the frame was written and is damaged now, and SQLite leaves out events without a word.

_HEADER, _FRAME_HEADER = 32, 24  # bytes
_MAGIC = 0x377F0682  # or one more


def _left_out(connection: sqlite3.Connection, file: Path) -> int:
    """Return how many finished transactions at the end of the write-ahead log SQLite does not read."""
    (size,) = connection.execute("PRAGMA page_size").fetchone()
    (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'log_end'").fetchone() or (0,)
    while True:
        seen = _last_checksum(connection)
        written = _last_checksums(file, size, page)
        if _last_checksum(connection) == seen:  # else another process has written meanwhile
            return len(written) if seen not in written else len(written) - 1 - written.index(seen)


def _last_checksum(connection: sqlite3.Connection) -> bytes:
    (checksum,) = connection.execute("SELECT checksum FROM log_end").fetchone() or (b"",)
    return bytes(checksum)


def _last_checksums(file: Path, size: int, page: int) -> list[bytes]:
    """Return the last event's checksum after each finished transaction in a log's write-ahead log, in order.

    `size` is that of a page, `page` the number of the one that holds the table `log_end`.
    """
    try:
        data = file.with_name(f"{file.name}-wal").read_bytes()
    except OSError:
        return []
    if len(data) < _HEADER + _FRAME_HEADER + size:
        return []  # no frame
    if struct.unpack_from(">I", data)[0] & ~1 != _MAGIC:
        raise _Damage("events.sqlite-wal does not begin as SQLite writes it")
    # Frames of an earlier use of the file have another salt. The header and the first frame both have the present one.
    # They are searched for, because bytes may be missing.
    salts = {data[16:24], data[_HEADER + 8 : _HEADER + 16]}
    found, last = [], b""
    for match in re.finditer(b"|".join(map(re.escape, salts)), data[_HEADER + 8 :], re.DOTALL):
        start = _HEADER + match.start()
        number, pages_in_all = struct.unpack_from(">II", data, start)
        if number == page and start + _FRAME_HEADER < len(data):
            last = _only_row_end(data[start + _FRAME_HEADER : start + _FRAME_HEADER + size])
        if pages_in_all and start + _FRAME_HEADER + size <= len(data):  # the last frame of a transaction
            found.append(last)
    return found


def _only_row_end(page: bytes) -> bytes:
    """Return the last 32 bytes of the only row of a page: its cell is the row's length, its number and the row."""
    (start,) = struct.unpack_from(">H", page.ljust(10), 8)
    end = start + 2 + (page[start] if start < len(page) else 0)
    return page[end - 32 : end]


def is_run(path: Path) -> bool:
    """Return whether `path` looks like a run directory."""
    return (path / "events.sqlite").is_file()


def run_of(recipe: Path) -> Path | None:
    """Return the run that has found the recipe in a file: the folder it is in, or the one that its comment names."""
    if is_run(recipe.parent):
        return recipe.parent
    with recipe.open(encoding="utf-8", errors="replace") as lines:
        for line in islice(lines, HEADER_LINES):
            if line.startswith(f"# {ORIGIN}"):
                return Path(line.removeprefix(f"# {ORIGIN}").strip())
    return None
