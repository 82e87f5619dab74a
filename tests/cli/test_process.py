"""The command as a process: how it ends, and what it loads on the side."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from evomerge.cli.surroundings import end_like_ctrl_c

PROGRAM = """
import atexit, sys, threading, time
from evomerge.cli.process import process

class Held:
    def __del__(self):
        print("freed")

held = Held()
atexit.register(print, "the end")
if {thread}:
    threading.Thread(target=lambda: (time.sleep(0.2), print("thread"))).start()
sys.argv = ["evomerge", {argument!r}]
process()
"""


@pytest.mark.parametrize(
    ("argument", "thread", "code", "printed"),
    [
        ("--version", False, 0, ["the end"]),
        ("--version", True, 0, ["thread", "the end", "freed"]),
        ("--nonsense", False, 2, ["the end", "freed"]),
    ],
    ids=["done", "another thread", "failed"],
)
def test_a_process_that_has_done_its_work_frees_nothing(
    argument: str, thread: bool, code: int, printed: list[str]
) -> None:
    program = PROGRAM.format(argument=argument, thread=thread)
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert [line for line in done.stdout.splitlines() if not line.startswith("evomerge")] == printed
    assert done.stdout.startswith("evomerge ") == (code == 0)


def test_closed_streams_lead_nowhere() -> None:
    program = (
        "import sys, os\n"
        "from evomerge.cli.surroundings import open_closed_streams\n"
        "open_closed_streams()\n"
        "print('nowhere'); print('nowhere', file=sys.stderr); assert sys.stdin.read() == ''\n"
        "with open(sys.argv[1], 'w') as file: assert file.fileno() > 2"
    )
    command = ["sh", "-c", '"$0" "$@" <&- >&- 2>&-', sys.executable, "-c", program, os.devnull]
    assert subprocess.run(command, check=False).returncode == 0


def test_ending_a_command_is_like_ctrl_c() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
        end_like_ctrl_c()
        os.kill(os.getpid(), signal.SIGHUP)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.skipif(sys.platform != "linux", reason="libraries have other names elsewhere")
def test_the_library_that_torch_loads_is_loaded_without_torch() -> None:
    import torch  # in this process

    program = (
        "import sys, threading\n"
        "from evomerge.cli.early import load_torch_library\n"
        "load_torch_library()\n"
        "[thread.join() for thread in threading.enumerate() if thread.name == 'load torch']\n"
        "assert 'torch' not in sys.modules\n"
        "print(open('/proc/self/maps').read())"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert torch.__file__
    assert libraries(done.stdout) == libraries(Path("/proc/self/maps").read_text()) != set()


def libraries(maps: str) -> set[str]:
    """Return the files of torch's library that a process has mapped."""
    return {line.split()[-1] for line in maps.splitlines() if "libtorch_cpu" in line}


def test_a_build_of_torch_without_such_files_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from evomerge.cli import early

    monkeypatch.setattr(early, "LIBRARIES", (("no_such_library.so", 0),))
    early._load()
    monkeypatch.setattr(early, "find_spec", lambda name: None)
    early._load()
