"""Processes that another process has started: those to kill, and those that must not remain."""

from __future__ import annotations

import os
from pathlib import Path

BUSY_WORKER = "ray::Actor.evaluate"
"""How Ray titles the process of a worker that scores a candidate."""


def descendants(process: int) -> list[int]:
    """Return the ids of a process's children, and of theirs."""
    try:
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except OSError:  # it has ended
        return []
    return [found for child in map(int, children) for found in (child, *descendants(child))]


def busy_workers(process: int) -> list[int]:
    """Return the ids of the descendants that are Ray workers scoring a candidate."""
    return [found for found in descendants(process) if title(found).startswith(BUSY_WORKER)]


def alive(process: int) -> bool:
    """Return whether a process runs: it exists and is not a zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def title(process: int) -> str:
    """Return a process's command line; empty when it has ended."""
    try:
        return Path(f"/proc/{process}/cmdline").read_text().replace("\0", " ").strip()
    except OSError:
        return ""


SHARED = ("/dev/shm/", "/tmp/evomerge-ray-")
"""Shared memory, and the folders in which a search keeps the sockets and logs of its own Ray."""


def shared_files(process: int) -> set[Path]:
    """Return the files in `SHARED` that a process has open or mapped; they must not outlive a search."""
    place, found = Path(f"/proc/{process}"), set[str]()
    try:
        found.update(line.split(maxsplit=5)[5] for line in (place / "maps").read_text().splitlines() if "/" in line)
        found.update(os.readlink(file) for file in (place / "fd").iterdir())
    except OSError:  # it has ended, or one of its files is closed by now
        pass
    return {Path(name) for name in found if name.startswith(SHARED) and not name.endswith(" (deleted)")}


def memory(process: int) -> dict[str, float]:
    """Return a process's memory in MiB: its own (`own`), and with the pages of files that it shares (`all`)."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return {"own": 0.0, "all": 0.0}
    sizes = {
        name: int(value.split()[0]) / 1024
        for name, _, value in (line.partition(":") for line in lines)
        if "kB" in value
    }
    return {"own": sizes.get("RssAnon", 0.0) + sizes.get("RssShmem", 0.0), "all": sizes.get("VmRSS", 0.0)}


def handles(process: int) -> int:
    """Return how many files a process has open."""
    try:
        return sum(1 for _ in Path(f"/proc/{process}/fd").iterdir())
    except OSError:
        return 0
