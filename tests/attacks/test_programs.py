"""Programs of a model that attack: each is bounded, and nothing of it is left outside the sandbox."""

import os
import socket
import tempfile
import time
from pathlib import Path

import pytest

from fitness.sandbox.bubblewrap import MOST_MEMORY, run_program

SECRET = "evomerge-secret"


pytestmark = pytest.mark.usefixtures("sandbox")


@pytest.fixture
def outside(tmp_path):
    """Return a file, a listening port and a process of this machine that programs try to reach."""
    (tmp_path / "file").write_text(SECRET)
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield {"file": str(tmp_path / "file"), "port": server.getsockname()[1], "pid": os.getpid()}
        server.settimeout(0)
        with pytest.raises(BlockingIOError):
            server.accept()
    assert (tmp_path / "file").read_text() == SECRET
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


SLOW = ("takes all memory", "recurses without end")
ATTACKS = {
    "connects to a server": "import socket\nsocket.create_connection(('127.0.0.1', {port}))",
    "opens a packet socket": "import socket\nsocket.socket(socket.AF_PACKET, socket.SOCK_RAW)",
    "reads a file outside": "assert open({file!r}).read()",
    "reads the passwords": "assert open('/etc/passwd').read()",
    "writes a file outside": "open({file!r}, 'w').write('mine')",
    "writes over Python": "import os\nopen(os.__file__, 'a').write('x')",
    "follows a symbolic link out": "import os\nos.symlink({file!r}, '/tmp/link')\nassert open('/tmp/link').read()",
    "goes up and out": "assert open('../../../..' + {file!r}).read()",
    "reads the environment of others": "assert open('/proc/{pid}/environ').read()",
    "reads the user's environment": "import os\nassert os.environ['HOME']",
    "reads the memory of its parent": "open('/proc/1/mem', 'rb').read(1)",
    "forks without end": "import os\nwhile True:\n    os.fork()",
    "makes threads without end": (
        "import threading, time\nwhile True:\n    threading.Thread(target=time.sleep, args=[9]).start()"
    ),
    "starts a program": "import subprocess\nsubprocess.run(['/bin/true'], check=True)",
    "kills the driver": "import os\nos.kill({pid}, 9)",
    "kills all processes": "import os\nos.kill(-1, 9)\nos.kill(0, 9)",
    "traces its parent": (
        "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        "assert libc.ptrace(16, os.getppid(), 0, 0) == 0, ctypes.get_errno()"
    ),
    "makes a user namespace": "import ctypes\nassert ctypes.CDLL(None).unshare(0x10000000) == 0",
    "mounts": "import ctypes\nassert ctypes.CDLL(None).mount(b'none', b'/tmp', b'tmpfs', 0, None) == 0",
    "takes all memory": "x = []\nwhile True:\n    x.append(bytearray(1 << 26))",
    "takes memory that is no process's": "import os\nos.memfd_create('x')",
    "fills the disk with a file": "f = open('/tmp/x', 'wb')\nwhile True:\n    f.write(bytes(1 << 20))",
    "fills the disk with files": (
        "import itertools\nfor n in itertools.count():\n    open(f'/tmp/{{n}}', 'wb').write(bytes(1 << 20))"
    ),
    "writes to the root": "open('/x', 'w')",
    "makes a device": "import os, stat\nos.mknod('/tmp/disk', 0o600 | stat.S_IFBLK, os.makedev(8, 0))",
    "leaves before its tests": "import os\nos._exit(0)",
    "leaves by an exception": "raise SystemExit(0)",
    "crashes": "import ctypes\nctypes.string_at(0)",
    "recurses without end": "import sys\nsys.setrecursionlimit(10**9)\ndef f(): f()\nf()",
    "raises the limits": "import resource\nresource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40))",
}


@pytest.mark.parametrize(
    "attack", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in ATTACKS]
)
def test_an_attack_fails_and_leaves_nothing(attack, outside):
    outcome = run_program(ATTACKS[attack].format(**outside), seconds=1)
    assert outcome.error is not None and SECRET not in outcome.error


ENDLESS = {
    "loops": "while True: pass",
    "ignores signals": """
import signal
for n in {*range(1, 65)} - {9, 19, 32, 33}:
    signal.signal(n, signal.SIG_IGN)
while True: pass
""",
    "sleeps": "import time\ntime.sleep(1e6)",
    "writes to everything": """
import os
while True:
    for n in range(9):
        try: os.write(n, bytes(1 << 16))
        except OSError: pass
""",
}


@pytest.mark.slow
@pytest.mark.parametrize("program", ENDLESS)
def test_a_program_without_end_is_ended(program):
    """Signals are ignored in vain, and an answer without end is neither read nor kept."""
    assert run_program(ENDLESS[program], seconds=1).error is not None
    time.sleep(0.05)
    assert not [command for command in _processes() if b"/inside.py" in command]


def _processes():
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            yield place.read_bytes()
        except OSError:
            continue


def test_output_is_dropped_and_errors_are_short():
    """A program that prints 128 megabytes passes; one that complains at length is cut."""
    assert run_program("for _ in range(8): print('x' * (1 << 24))").error is None
    assert len(run_program("raise ValueError('x' * 10**6)").error or "") < 400
    assert "longer" in (run_program("def f(): return 'x' * 10**6", call="f").error or "")


def test_what_programs_may_do():
    """Compute, import the standard library, keep temporary files, use much memory, and read an empty input."""
    program = f"""
import collections, hashlib, json, math, random, re, sys, tempfile
with tempfile.TemporaryFile() as file:
    file.write(bytes(1 << 20))
assert len(bytearray({MOST_MEMORY // 2})) and sys.stdin.read() == ""
"""
    assert run_program(program).error is None
    assert run_program("def add(a, b=1): return [a + b]", call="add", arguments=([2], {"b": 3})).value == [5]


def test_strings_that_are_no_text_are_a_failed_program():
    assert run_program("x = '\ud800'").error is not None
    assert run_program("x = 1\0").error is not None


def test_no_file_is_left_in_the_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    run_program("open('/tmp/x', 'w').write('x')")
    assert not list(tmp_path.iterdir())
