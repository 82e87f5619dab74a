"""The help texts are frozen: changing one is a decision, made by running this file with EVOMERGE_UPDATE_SNAPSHOTS=1."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from evomerge import __version__
from evomerge.cli.main import app

SNAPSHOTS = Path(__file__).parent / "snapshots"
VERBS = [command.name or command.callback.__name__ for command in app.registered_commands]


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_the_help_is_as_it_was(verb, evomerge, tmp_path, monkeypatch):
    for name, value in (("COLUMNS", "100"), ("TERMINAL_WIDTH", "100"), ("NO_COLOR", "1")):
        monkeypatch.setenv(name, value)
    shown = evomerge(*([verb] if verb else []), "--help", cwd=tmp_path)
    file = SNAPSHOTS / f"{verb or 'evomerge'}.txt"
    if os.environ.get("EVOMERGE_UPDATE_SNAPSHOTS"):
        file.write_text(shown, encoding="utf-8")
    assert shown == file.read_text(encoding="utf-8"), "EVOMERGE_UPDATE_SNAPSHOTS=1 accepts the new text"


def test_no_snapshot_is_left_over():
    assert {file.stem for file in SNAPSHOTS.iterdir()} == {"evomerge", *VERBS}


def test_python_runs_the_package(tmp_path):
    command = [sys.executable, "-m", "evomerge", "--version"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == f"evomerge {__version__}\n"
