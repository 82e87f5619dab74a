"""Ray on this machine for one search: reachable from here only, guarded by a token, and gone with the search.

Whoever can talk to a Ray cluster can run code on it. A cluster of a search's own therefore listens on the loopback
interface, asks for a token that only this process and its children know, and keeps its files in a private folder. A
small process beside the search ends what is left and removes the folder when the search is over, killed or not.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import tempfile
from contextlib import suppress
from importlib import metadata
from pathlib import Path

from evomerge.extras import how_to_install
from evomerge.workers.base import WorkerError

TOKEN = "RAY_AUTH_TOKEN"
"""Environment variable with the token itself."""
TOKEN_PATH = "RAY_AUTH_TOKEN_PATH"
"""Environment variable with the path of a file that holds it."""
MODE = "RAY_AUTH_MODE"
CLUSTERS = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Environment variable of Ray: whether nodes use addresses that other machines reach."""
FIRST_WITH_TOKENS = (2, 52)
"""Version of Ray."""
CLEANING = 20.0
"""Seconds that removing the folder may take."""

_WATCHER = """
import os, shutil, signal, sys, time
sys.stdin.buffer.read()  # until the search ends, or dies
folder, ours = sys.argv[1], {os.getpid(), int(sys.argv[2])}

def uses(process):  # some of Ray's processes change their titles; all have logs open in the folder
    place = f"/proc/{process}"
    try:
        with open(f"{place}/cmdline", errors="replace") as file:
            if folder in file.read():
                return True
        return any(os.readlink(f"{place}/fd/{name}").startswith(folder) for name in os.listdir(f"{place}/fd"))
    except OSError:
        return False

for _ in range(20):
    names = os.listdir("/proc") if os.path.isdir("/proc") else ()
    left = [int(name) for name in names if name.isdigit() and int(name) not in ours and uses(name)]
    for process in left:
        try:
            os.kill(process, signal.SIGKILL)
        except OSError:
            pass
    shutil.rmtree(folder, ignore_errors=True)
    if not left and not os.path.exists(folder):
        break
    time.sleep(0.25)
"""


def check_installed() -> None:
    """Refuse a Ray that is missing, or too old to guard a cluster by a token.

    Raises
    ------
    WorkerError
        If so.
    """
    try:
        version = metadata.version("ray")
    except metadata.PackageNotFoundError:
        raise WorkerError(f"workers.kind is ray, and Ray is not installed; {how_to_install('ray')}") from None
    if tuple(int(part) for part in version.split(".")[:2]) < FIRST_WITH_TOKENS:
        raise WorkerError(
            f"workers.kind is ray, and Ray {version} cannot ask for a token; pip install -U 'evomerge[ray]'"
        )


class LocalRay:
    """The surroundings of a Ray cluster on this machine; make it before Ray is imported.

    Attributes
    ----------
    folder
        Where Ray keeps sockets and logs; it is removed when this is closed, or when this process dies.
    """

    def __init__(self) -> None:
        self._says_no_cluster = False
        if "ray" not in sys.modules:  # Ray reads these when it is imported
            os.environ.setdefault(MODE, "token")
            os.environ.setdefault(CLUSTERS, "0")
            self._says_no_cluster = os.environ[CLUSTERS] == "0"
        if TOKEN not in os.environ and TOKEN_PATH not in os.environ:
            os.environ[TOKEN] = secrets.token_hex(32)
        # Paths of sockets have at most 107 characters, of which Ray takes 62.
        self.folder = Path(tempfile.mkdtemp(prefix="evomerge-ray-", dir="/tmp" if Path("/tmp").is_dir() else None))
        self._watcher = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _WATCHER, str(self.folder), str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def close(self) -> None:
        """Remove the folder and what still runs from it; may be called twice."""
        if self._says_no_cluster:  # else programs that this process starts later could make no cluster
            os.environ.pop(CLUSTERS, None)
        if self._watcher.stdin is not None:
            self._watcher.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._watcher.wait(CLEANING)


def keep_private(token: Path) -> None:
    """Let only the owner read a file with a token; Ray makes it readable to all."""
    with suppress(OSError):
        if token.is_file() and token.stat().st_uid == os.getuid() and token.stat().st_mode & 0o077:
            token.chmod(0o600)
