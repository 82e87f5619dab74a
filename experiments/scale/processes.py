"""Processes that another process has started: those to kill, and those that must not remain."""

from __future__ import annotations

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
