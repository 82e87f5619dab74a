"""`evomerge report`: a run as one HTML page."""

from __future__ import annotations

from pathlib import Path

from evomerge.cli.printing import say
from evomerge.files.atomic import write_text
from evomerge.runs.report.html import render


def report(path: Path, out: Path | None) -> None:
    """Write the report beside the run's other files, or where `out` says."""
    target = out or path / "report.html"
    write_text(target, render(path))
    say(f"wrote {target}")
