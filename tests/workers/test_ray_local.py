"""A search's own Ray: what it needs, where it listens, who may talk to it, and what is left of it."""

import os
import signal
import socket
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import pytest

from evomerge.workers import ray_local
from evomerge.workers.base import WorkerError
from evomerge.workers.config import RayConfig
from experiments.scale.processes import alive, busy_workers, descendants
from tests.workers.searches import start, write_config

PROGRAM = """
import subprocess, sys, time
from evomerge.workers.ray_local import LocalRay
local = LocalRay()
sleep = [sys.executable, "-c", "import time; time.sleep(600)", str(local.folder)]
left = subprocess.Popen(sleep, start_new_session=True)
(local.folder / "log").write_text("x")
print(local.folder, left.pid, flush=True)
time.sleep(600)
"""
LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}


def wait_for(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.1)
    return condition()


@pytest.fixture
def variables(monkeypatch):
    for name in (ray_local.TOKEN, ray_local.TOKEN_PATH, ray_local.MODE, ray_local.CLUSTERS):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setitem(sys.modules, "ray", None)
    del sys.modules["ray"]


def test_the_surroundings_are_private_and_removed(variables):
    local = ray_local.LocalRay()
    assert local.folder.stat().st_mode & 0o777 == 0o700
    assert len(str(local.folder)) < 40  # a socket's path is short
    assert os.environ["RAY_AUTH_MODE"] == "token" and len(os.environ["RAY_AUTH_TOKEN"]) == 64
    assert os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0"  # loopback
    with (local.folder / "log").open("w"):  # Ray leaves logs open in this process, which continues
        local.close()
    assert not local.folder.exists()
    local.close()


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="processes are found in /proc")
def test_nothing_is_left_of_a_killed_search():
    process = subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True)
    folder, left = process.stdout.readline().split()
    process.kill()
    process.wait()
    process.stdout.close()
    assert wait_for(lambda: not Path(folder).exists() and not alive(left), 20)


def test_tokens_are_for_their_owner(tmp_path):
    token = tmp_path / "auth_token"
    token.write_text("secret")
    token.chmod(0o644)
    ray_local.keep_private(token)
    assert token.stat().st_mode & 0o777 == 0o600
    ray_local.keep_private(tmp_path / "nothing")


@pytest.mark.parametrize("version", ["2.40.0", "2.51.1", "1.9"])
def test_ray_without_tokens_is_refused(monkeypatch, version):
    monkeypatch.setattr(metadata, "version", lambda name: version)
    with pytest.raises(WorkerError, match=f"Ray {version} cannot ask for a token; pip install -U"):
        RayConfig().check()


@pytest.mark.parametrize("version", ["2.52.0", "2.60.0rc1", "3.0.0"])
def test_ray_with_tokens(monkeypatch, version):
    asked: list[str] = []
    monkeypatch.setattr(metadata, "version", lambda name: asked.append(name) or version)
    RayConfig().check()
    assert asked == ["ray"]


def test_a_missing_ray_and_missing_gpus_are_known_before(monkeypatch):
    with pytest.raises(WorkerError, match=r"lower workers\.gpus_per_worker"):
        RayConfig(gpus_per_worker=1000).check()

    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    with pytest.raises(WorkerError, match=r"pip install 'evomerge\[ray\]'"):
        RayConfig().check()


def listening(processes):
    """Return the addresses at which processes listen, as /proc/net has them, with their ports."""
    sockets = set()
    for process in processes:
        for entry in Path(f"/proc/{process}/fd").glob("*"):
            try:
                sockets.add(os.readlink(entry))
            except OSError:
                continue
    found = []
    for family in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{family}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
                address, _, port = fields[1].partition(":")
                found.append((address, int(port, 16)))
    return found


CLIENT = """
import ray
try:
    ray.init(address="127.0.0.1:{port}", log_to_driver=False)
except Exception as error:
    print("refused", type(error).__name__)
else:
    print("joined")
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/net").is_dir(), reason="sockets are found in /proc")
def test_a_local_search_listens_on_loopback_asks_for_a_token_and_leaves_nothing(tmp_path):
    write_config(tmp_path / "search.yaml", {"kind": "ray", "count": 2}, evaluations=5000)
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    folders = set(Path("/tmp").glob("evomerge-ray-*"))
    search = start(tmp_path, "search", "search.yaml", "--run", "run")
    try:
        assert wait_for(lambda: busy_workers(search.pid) or search.poll() is not None, 200)
        assert search.poll() is None, search.communicate()
        (folder,) = {path for path in Path("/tmp").glob("evomerge-ray-*") if path not in folders}
        family = [search.pid, *descendants(search.pid)]
        addresses = listening(family)
        assert len(addresses) >= 4
        assert {address for address, _ in addresses} <= LOOPBACK, addresses
        head = next(each for each in family if b"gcs_server" in Path(f"/proc/{each}/cmdline").read_bytes())
        for _, port in listening([head]):
            client = [sys.executable, "-c", CLIENT.format(port=port)]
            stranger = clean | {"HOME": str(tmp_path), ray_local.CLUSTERS: "0"}  # on this machine, without the token
            said = subprocess.run(client, env=stranger, capture_output=True, text=True, timeout=120, check=False)
            assert "refused" in said.stdout and "joined" not in said.stdout, said
    finally:
        search.send_signal(signal.SIGKILL)
        search.communicate()
    assert wait_for(lambda: not any(map(alive, family)) and not folder.exists(), 10)
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", addresses[0][1])) != 0
