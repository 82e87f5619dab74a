"""The command `evomerge` and Python programs, run in this process: a new one takes seconds to import torch."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from unittest import mock

from evomerge.cli.main import main


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Work in a folder, and come back."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def run(*arguments: object, cwd: Path) -> tuple[int, str, str]:
    """Run the command; return its exit code, its standard output and its standard error."""
    out, err = io.StringIO(), io.StringIO()
    argv = ["evomerge", *map(str, arguments)]
    code: object = 0
    with inside(cwd), mock.patch.object(sys, "argv", argv), redirect_stdout(out), redirect_stderr(err):
        try:
            main()
        except SystemExit as stop:
            code = stop.code
    return (code if isinstance(code, int) else int(code is not None)), out.getvalue(), err.getvalue()


def evomerge(*arguments: object, cwd: Path, code: int = 0) -> str:
    """Run the command; return its standard output, or its standard error where it is to fail, with this exit code."""
    found, out, err = run(*arguments, cwd=cwd)
    assert found == code, f"exit {found}\n{out}\n{err}"
    assert "Traceback" not in err
    return out if code == 0 else err


def execute(program: str, cwd: Path) -> str:
    """Run a Python program in a module of its own; return its standard output."""
    out = io.StringIO()
    with inside(cwd), redirect_stdout(out):
        exec(compile(program, "<program>", "exec"), {"__name__": "__main__"})
    return out.getvalue()
