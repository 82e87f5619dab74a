"""Record the events of two fixed-seed searches on the zoo, and compare them with another version's.

A change that only moves code must not change what a search computes: genotypes, recipes, items, scores and their
order stay the same, byte for byte. Times differ from run to run and are left out. A recipe's hash holds the place of
its models, so that recipes are compared by which of them are equal. `RENAMED` says what has another name now.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SEARCH_FILE = HERE.parent / "zoo" / "cma_es.yaml"
SEARCHES = {
    "cma_es": ["budget.evaluations=40", "fitness.subset.items=20"],
    "m2n2": [
        "space={kind: mixture}",
        "strategy={kind: m2n2, archive: 8}",
        "budget.evaluations=40",
        "fitness.subset.items=20",
    ],
}
TIMES = ("elapsed", "seconds")
ADDED = ("flaws", "answers", "parents")
"""Keys that the recorded events do not have and that change no score: how many answers were cut short, the answers to
held-out items as texts, and the candidates that a candidate was made of."""
RENAMED = {"final": "reference", "stage": "purpose"}
"""Kinds of events and keys in them: the name in the recorded events, the name now."""


def record(arguments: list[str], run: Path) -> list[str]:
    """Run a search and return one line for each of its events."""
    settings = [part for argument in arguments for part in ("--set", argument)]
    command = ["evomerge", "search", str(SEARCH_FILE), "--run", str(run), *settings]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    return list(events(run / "events.sqlite"))


def events(log: Path) -> Iterator[str]:
    """Yield each event of a run's log as a line of JSON, with digests of its bytes and without times."""
    with sqlite3.connect(log) as database:
        item_sets = dict(database.execute("SELECT id, items FROM item_sets"))
        rows = database.execute("SELECT kind, candidate, data, genotype, item_set, scores FROM events ORDER BY seq")
        for kind, candidate, data, genotype, item_set, scores in rows:
            values = without_times(json.loads(data))
            row = [kind, candidate, values, digest(genotype), digest(item_sets.get(item_set)), digest(scores)]
            yield json.dumps(row, sort_keys=True)


def without_times(value: Any) -> Any:
    """Return a JSON value without the keys that hold times, or that are new."""
    if isinstance(value, dict):
        return {key: without_times(item) for key, item in value.items() if key not in (*TIMES, *ADDED)}
    return value


def renamed(value: Any) -> Any:
    """Return recorded JSON values with the names that they have now."""
    if isinstance(value, dict):
        return {RENAMED.get(key, key): renamed(item) for key, item in value.items()}
    return value


def comparable(lines: Sequence[str]) -> list[str]:
    """Return events by their present names, each recipe by the number of its first appearance."""
    numbers: dict[str, int] = {}
    rows = []
    for line in lines:
        kind, candidate, values, *digests = json.loads(line)
        values = renamed(values)
        if "recipe" in values:
            values["recipe"] = numbers.setdefault(values["recipe"], len(numbers))
        rows.append(json.dumps([RENAMED.get(kind, kind), candidate, values, *digests], sort_keys=True))
    return rows


def digest(value: bytes | str | None) -> str | None:
    """Return the first 16 digits of the SHA-256 of some bytes."""
    if value is None:
        return None
    return hashlib.sha256(value.encode() if isinstance(value, str) else value).hexdigest()[:16]


def main() -> int:
    """Write the events, or compare them with recorded ones; exit 1 where they differ."""
    parser = argparse.ArgumentParser(prog="python -m experiments.same_events", description=__doc__)
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the events to FILE and compare nothing")
    parser.add_argument("--to", type=Path, default=HERE / "before.json", metavar="FILE", help="compare with FILE")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = {name: record(settings, Path(folder) / name) for name, settings in SEARCHES.items()}
    if options.write:
        options.write.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        return 0
    recorded = json.loads(options.to.read_text(encoding="utf-8"))
    return 0 if all([compare(name, recorded[name], lines) for name, lines in found.items()]) else 1


def compare(name: str, recorded: Sequence[str], found: Sequence[str]) -> bool:
    """Return whether a search has the recorded events; print it, and the first event that differs."""
    before, now = comparable(recorded), comparable(found)
    added = now[len(before) :]  # the final table may have rows that it had not
    same = now[: len(before)] == before and all(json.loads(line)[0] == "reference" for line in added)
    print(f"{name}: {len(before)} events, {'the same' if same else f'DIFFERENT, {len(now)} now'}")
    if same and added:
        print(f"{name}: {len(added)} scores of further rows of the final table after them")
    for number, (old, new) in enumerate(zip(before, now, strict=False)):
        if old != new:
            print(f"first difference, event {number}:\n  {old}\n  {new}")
            break
    return same


if __name__ == "__main__":
    sys.exit(main())
