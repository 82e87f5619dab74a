"""One thousand single damages of an event log, of bytes and of rows: none is read as other data."""

import random
import shutil
import sqlite3

import numpy as np
import pytest

from evomerge.runs.run import Asked, LogError, ReferenceScore, Run, RunError, Told
from evomerge.strategies import Candidate
from fitness.results import Evaluation

CANDIDATES = 20
SECONDS = {"merge": 0.1, "score": 0.2, "wait": 0.0}


def events():
    """Yield what a small search records: two item sets, a failed candidate, several sizes of rows."""
    rng = np.random.default_rng(0)
    for number in range(CANDIDATES):
        yield Asked(Candidate(number, rng.normal(size=4), "sample", number // 6), f"{number:016x}")
        items = tuple(f"t/test/{at}" for at in range(number % 2, 40, 2))
        scores = rng.integers(0, 2, len(items)).astype(np.float32)
        answered = Evaluation("ok", (float(scores.mean()),), (0.125,), items, scores, SECONDS)
        yield Told(number, Evaluation.failed("out of memory", SECONDS) if number == 7 else answered, False, number / 4)
    yield ReferenceScore("held_out", f"{0:016x}", answered)


def signature(event):
    """Return everything that an event says."""
    if isinstance(event, Asked):
        one = event.candidate
        return "asked", one.id, one.kind, one.generation, one.genotype.tobytes(), event.recipe
    said = event.evaluation
    told = (said.status, said.objectives, said.standard_errors, said.items, said.scores.tobytes(), said.reason)
    if isinstance(event, Told):
        return "told", event.candidate, event.cached, event.elapsed, told, dict(said.seconds)
    return "reference", event.purpose, event.recipe, told, dict(said.seconds)


@pytest.fixture(scope="module")
def closed(tmp_path_factory):
    """Return a run that was closed."""
    with Run.create(tmp_path_factory.mktemp("closed") / "run", "seed: 0\n", {}) as run:
        for event in events():
            run.record(event)
    return run.path


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """Return a run whose process was killed: its last events are in the write-ahead log."""
    folder = tmp_path_factory.mktemp("killed")
    with Run.create(folder / "first", "seed: 0\n", {}) as run:
        for event in events():
            run.record(event)
        shutil.copytree(run.path, folder / "run")
    assert (folder / "run" / "events.sqlite-wal").stat().st_size > 10_000
    return folder / "run"


@pytest.fixture(scope="module")
def recorded():
    return [signature(event) for event in events()]


def read(path):
    """Return what the log says and whether its last event is missing; None where it is refused."""
    try:
        with Run.read(path) as run:
            return [signature(event) for event in run.events()], run.incomplete
    except (LogError, RunError):
        return None


def flipped(data, rng):
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]


def replaced(data, rng):
    at, length = rng.randrange(len(data)), rng.randint(1, 64)
    return (data[:at] + rng.randbytes(length) + data[at + length :])[: len(data)]


def without(data, rng):
    at = rng.randrange(len(data))
    return data[:at] + data[at + rng.randint(1, 5000) :]


def with_more(data, rng):
    at = rng.randrange(len(data))
    return data[:at] + rng.randbytes(rng.randint(1, 50)) + data[at:]


def repeated(data, rng):
    at, length = rng.randrange(len(data)), rng.randint(1, 5000)
    return data[: at + length] + data[at:]


def swapped(data, rng):
    first, second = sorted(rng.sample(range(len(data) // 512), 2))
    blocks = [data[at : at + 512] for at in range(0, len(data), 512)]
    blocks[first], blocks[second] = blocks[second], blocks[first]
    return b"".join(blocks)


def cut(data, rng):
    return data[: rng.randrange(len(data))]


BYTES = (flipped, replaced, without, with_more, repeated, swapped, cut)


@pytest.mark.parametrize("damage", BYTES, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("file", ["closed", "killed", "write-ahead"])
def test_damaged_bytes(damage, file, request, recorded, tmp_path):
    """Forty damages of each kind to the database of a closed and of a killed run, and to its write-ahead log."""
    run = request.getfixturevalue("closed" if file == "closed" else "killed")
    target = "events.sqlite-wal" if file == "write-ahead" else "events.sqlite"
    rng = random.Random(f"{damage.__name__} {file}")
    data, folder = (run / target).read_bytes(), tmp_path / "run"
    shutil.copytree(run, folder)
    for _ in range(40):
        for name in ("events.sqlite", "events.sqlite-wal", "events.sqlite-shm"):
            (folder / name).unlink(missing_ok=True)
            if (run / name).exists():
                shutil.copyfile(run / name, folder / name)
        (folder / target).write_bytes(damage(data, rng))
        found = read(folder)
        if found is not None:
            said, incomplete = found
            if file == "write-ahead":  # an incomplete end looks like a damaged end
                lost = len(recorded) - len(said)
                assert said == recorded[: len(said)] and (lost <= 1 or damage is cut)
            else:
                assert (said, incomplete) == (recorded, False)


VALUES = {
    "candidate": "candidate + 1",
    "at": "at + 1",
    "data": "replace(data, '0.125', '0.126')",
    "genotype": "x'0000000000000000' || substr(genotype, 9)",
    "item_set": "3 - item_set",
    "scores": "substr(scores, 1, length(scores) - 4) || x'0000803f'",
    "kind": "CASE kind WHEN 'told' THEN 'reference' ELSE 'told' END",
    "checksum": "x'00' || substr(checksum, 2)",
}


def row_damages():
    """Yield SQL statements, each a damage of one row."""
    last = 2 * CANDIDATES + 1
    for seq in range(1, last + 1):
        yield f"DELETE FROM events WHERE seq = {seq}"
        yield f"UPDATE events SET seq = {last + 1} WHERE seq = {seq}"  # moved to the end
        yield (
            f"INSERT INTO events SELECT {last} + 1, kind, candidate, at, data, genotype, item_set, scores, checksum "
            f"FROM events WHERE seq = {seq}"  # repeated
        )
        yield from (f"UPDATE events SET {column} = {value} WHERE seq = {seq}" for column, value in VALUES.items())
        if seq < last:  # exchanged with the next one
            yield (
                f"UPDATE events SET seq = -1 WHERE seq = {seq}; UPDATE events SET seq = {seq} WHERE seq = {seq + 1}; "
                f"UPDATE events SET seq = {seq + 1} WHERE seq = -1"
            )
    for number in (1, 2):
        yield f"UPDATE item_sets SET items = replace(items, '/0', '/1') WHERE id = {number}"
        yield f"DELETE FROM item_sets WHERE id = {number}"
    yield "UPDATE log_end SET events = events - 1"
    yield "UPDATE log_end SET checksum = x'00'"
    yield "DELETE FROM log_end"


def test_damaged_rows(closed, recorded, tmp_path):
    """Another damage of one row is noticed, unless the log says the same, as with a last row of another number."""
    folder = shutil.copytree(closed, tmp_path / "run")
    whole = (closed / "events.sqlite").read_bytes()
    noticed = 0
    for statement in row_damages():
        (folder / "events.sqlite").write_bytes(whole)
        connection = sqlite3.connect(folder / "events.sqlite")
        connection.executescript(statement)
        connection.close()
        found = read(folder)
        assert found in (None, (recorded, False)), statement
        noticed += found is None
    assert noticed > 300


def test_an_event_that_was_not_written_whole_is_said_and_happens_again(killed, recorded, tmp_path):
    """As a power cut leaves it: the last transaction of the write-ahead log is torn."""
    folder = shutil.copytree(killed, tmp_path / "run")
    file = folder / "events.sqlite-wal"
    data = bytearray(file.read_bytes())
    data[-100] ^= 255
    file.write_bytes(data)
    with Run.open(folder) as run:
        assert run.incomplete
        assert [signature(event) for event in run.events()] == recorded[:-1]
        run.record(list(events())[-1])
    with Run.open(folder) as run:
        assert not run.incomplete
        assert [signature(event) for event in run.events()] == recorded


def test_a_damage_before_whole_events_is_no_torn_write(killed, tmp_path):
    folder = shutil.copytree(killed, tmp_path / "run")
    file = folder / "events.sqlite-wal"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 255
    file.write_bytes(data)
    with pytest.raises(LogError, match="damaged part, and whole events after it"):
        Run.open(folder)
