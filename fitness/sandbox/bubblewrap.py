"""A sandbox for one short Python program: bubblewrap's namespaces, a filter of system calls, and limits.

The program sees Python, its standard library and 16 MiB of empty temporary files. It sees no network, no file of the
user, no process but itself and no environment, it makes no process and no thread, and it is killed at its limits.
Nothing of it outlives the call, nor the driver.
"""

from __future__ import annotations

import json
import os
import platform
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from fitness.results import TaskError
from fitness.sandbox.seccomp import MACHINES, filter_program

PROCESSOR_SECONDS = 3
"""Seconds of processor time of a program, as in the `code_eval` metric; a busy machine does not shorten it."""
WALL_FACTOR = 4
"""How much longer than its processor time a program may take, if it sleeps or waits."""
MOST_MEMORY = 1 << 30
"""Bytes of memory of a program."""
MOST_FILES = 1 << 24
"""Bytes of its temporary files, all together and each."""
LONGEST_SOURCE = 1 << 24
"""Bytes of a program with its arguments."""
LONGEST_VALUE = 1 << 15
"""Characters of what a program may answer: less than a pipe holds, so that it never waits for a reader."""

INSTALL = "install Debian's package bubblewrap (apt-get install bubblewrap), or leave the task out"
_INSIDE = Path(__file__).with_name("inside.py")
_OUTSIDE = ("/usr/lib", "/usr/lib64", "/lib", "/lib64", "/etc/ld.so.cache")  # what Python's own libraries need


@dataclass(frozen=True)
class Outcome:
    """How a program ended.

    Attributes
    ----------
    value
        What the called function returned; None without one.
    error
        Why it did not run to its end, in one line; None if it did.
    """

    value: Any = None
    error: str | None = None


def run_program(
    source: str,
    *,
    call: str | None = None,
    arguments: tuple[Sequence[Any], Mapping[str, Any]] = ((), {}),
    seconds: float = PROCESSOR_SECONDS,
) -> Outcome:
    """Run a Python program in the sandbox.

    Parameters
    ----------
    source
        The program.
    call
        A function that it defines, called with `arguments` (positional, by name) at its end; JSON goes in and out.
    seconds
        Processor time, rounded up to whole seconds; the time on the clock may be `WALL_FACTOR` times as long.

    Returns
    -------
    Outcome
        Without an error only if the program ran to its end. A program that wants to can pretend that, as it can with
        the `code_eval` metric; its own score is all that it can forge.

    Raises
    ------
    TaskError
        Bubblewrap is missing or cannot be started here.
    """
    limit = max(1, -int(-seconds // 1))
    token = secrets.token_hex(16)
    asked = {"token": token, "source": source, "call": call, "arguments": arguments}
    bounds = {"limits": _limits(limit), "longest": LONGEST_VALUE - len(token)}
    said = json.dumps(asked | bounds, default=str).encode("utf-8", "surrogatepass")
    if len(said) > LONGEST_SOURCE:
        return Outcome(error=f"it is longer than {LONGEST_SOURCE:,} bytes")
    with _file(said) as program, _file(filter_program()) as refused:
        process = subprocess.Popen(
            [*_command(), "--seccomp", str(refused), "--", *_python()],
            stdin=program,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"PYTHONHASHSEED": "0"},
            pass_fds=[refused],
        )
        assert process.stdout is not None
        with process.stdout as answer:
            try:
                process.wait(limit * WALL_FACTOR)
            except subprocess.TimeoutExpired:
                return Outcome(error=f"it took longer than {limit * WALL_FACTOR} s")
            finally:
                process.kill()  # with it, all that is in its namespaces
                process.wait()
            return _outcome(os.read(answer.fileno(), LONGEST_VALUE), token.encode(), limit)


def check() -> None:
    """Check that programs can be run here, and that a wrong one is told from a right one.

    Raises
    ------
    TaskError
        They cannot; the message says what to install or to allow.
    """
    right, wrong = run_program("assert 1 + 1 == 2"), run_program("assert 1 + 1 == 3")
    if right.error is not None or wrong.error is None:
        raise TaskError(
            "the sandbox for programs that the model writes cannot be started here "
            f"({_complaint() or right.error or 'it passes wrong programs'}): allow user namespaces to bubblewrap "
            "0.8 or later, or leave the task out"
        )


def _outcome(said: bytes, token: bytes, limit: int) -> Outcome:
    if not said.startswith(token):
        return Outcome(error=f"it ended without a result, or at a limit ({limit} s of processor time)")
    try:
        told = json.loads(said[len(token) :])
        return Outcome(told.get("value"), told.get("error"))
    except (ValueError, AttributeError, RecursionError):  # the program has found the token
        return Outcome(error="it did not write a result")


def _limits(seconds: int) -> dict[str, int]:
    return {
        "RLIMIT_CPU": seconds,
        "RLIMIT_AS": MOST_MEMORY,
        "RLIMIT_FSIZE": MOST_FILES,
        "RLIMIT_NOFILE": 64,
        "RLIMIT_CORE": 0,
    }


@contextmanager
def _file(content: bytes) -> Iterator[int]:
    """Yield the descriptor of a file without a name."""
    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.seek(0)
        yield file.fileno()


def _python() -> list[str]:
    return [_interpreter(), "-s", "-S", "-B", "/inside.py"]


def _interpreter() -> str:
    return os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)


@cache
def _command() -> tuple[str, ...]:
    """Return bubblewrap's part of the command; found once."""
    if not sys.platform.startswith("linux") or platform.machine() not in MACHINES:
        raise TaskError(
            "programs that the model writes run in a sandbox of Linux on x86_64 or aarch64, and this is "
            f"{platform.system()} on {platform.machine()}: leave the task out"
        )
    program = shutil.which("bwrap")
    if program is None:
        raise TaskError(f"programs that the model writes run in bubblewrap, which is not installed: {INSTALL}")
    libraries = [f"{prefix}/{name}" for prefix in (sys.base_prefix, sys.base_exec_prefix) for name in ("lib", "lib64")]
    shown = dict.fromkeys([*_OUTSIDE, *libraries, _interpreter()])
    return (
        *(program, "--unshare-all", "--unshare-user", "--disable-userns", "--die-with-parent", "--new-session"),
        *("--cap-drop", "ALL", "--uid", "65534", "--gid", "65534", "--hostname", "sandbox"),
        *(word for place in shown for word in ("--ro-bind-try", place, place)),
        *("--ro-bind", str(_INSIDE), "/inside.py", "--dev-bind", os.devnull, os.devnull),
        *("--size", str(MOST_FILES), "--tmpfs", "/tmp", "--chdir", "/tmp", "--remount-ro", "/"),
    )


def _complaint() -> str:
    """Return what bubblewrap says when it cannot start, in one line."""
    command = [*_command(), "--", *_python()]
    tried = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=30, check=False)
    lines = tried.stderr.decode(errors="replace").strip().splitlines()
    return next((line for line in lines if line.startswith("bwrap:")), "")
