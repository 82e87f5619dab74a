"""Event logs whose rows a test has changed, with checksums that are right again: a stranger can compute them, too."""

from __future__ import annotations

import sqlite3

from evomerge.runs.event_rows import FIRST_CHECKSUM, Row, items_checksum


def reseal(log: sqlite3.Connection) -> None:
    """Compute every checksum of a log again."""
    sets = {None: b""} | {number: items_checksum(text) for number, text in log.execute("SELECT * FROM item_sets")}
    rows = log.execute("SELECT seq, kind, candidate, at, data, genotype, item_set, scores FROM events ORDER BY seq")
    end, count = FIRST_CHECKSUM, 0
    for seq, *columns, item_set, scores in rows.fetchall():
        end, count = Row(*columns, sets.get(item_set, b""), scores).checksum(end), count + 1
        log.execute("UPDATE events SET checksum = ? WHERE seq = ?", (end, seq))
    log.execute("UPDATE log_end SET events = ?, checksum = ?", (count, end))
