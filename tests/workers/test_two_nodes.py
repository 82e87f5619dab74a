"""A search on a cluster that was there before: two Ray nodes on this machine, one of which is lost on the way."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import pytest

from experiments.scale.processes import busy_workers, descendants
from tests.workers.searches import candidates, finish, start, write_config

RAY = Path(sys.executable).parent / "ray"
QUICKLY = {  # a lost node is noticed within seconds, since nobody answers at its port; a slow one is no lost one
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "10000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_USAGE_STATS_ENABLED": "0",
}
TOKEN = {"RAY_AUTH_TOKEN": "0123456789abcdef" * 4}  # whoever has one needs it, as after any local cluster


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def node(*arguments, **variables):
    """Start a node with one CPU and wait until it is up; it lives as long as the returned process."""
    for _ in range(3):  # Ray gives a node 30 seconds, which a full machine may need
        process, said = launch(*arguments, **variables)
        if "Ray runtime started" in said:
            return process
        lose(process)
    raise AssertionError(said)


def launch(*arguments, **variables):
    """Start a node; return its process and what it said until it was up, or gave up."""
    process = subprocess.Popen(
        [
            *(RAY, "start", "--block", "--num-cpus=1", "--object-store-memory=100000000", "--disable-usage-stats"),
            f"--dashboard-agent-listen-port={free_port()}",
            *arguments,
        ],
        env=os.environ | QUICKLY | TOKEN | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    said = ""
    for line in process.stdout:
        said += line
        if "Ray runtime started" in line:
            break
    return process, said


def lose(process):
    """Kill a node at once: the process that started it, and all that it started."""
    for identity in [process.pid, *descendants(process.pid)]:
        with suppress(ProcessLookupError):
            os.kill(identity, signal.SIGKILL)
    process.wait()
    process.stdout.close()


@pytest.fixture
def cluster(monkeypatch):
    """Return the address of a head node, and the process of a second one."""
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    folder, port = tempfile.mkdtemp(prefix="ray-", dir="/tmp"), free_port()  # sockets need a short path
    head = node("--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={folder}")
    address = f"127.0.0.1:{port}"
    second = node(f"--address={address}", RAY_AUTH_MODE="token")
    yield address, second
    for process in (second, head):
        lose(process)
    shutil.rmtree(folder, ignore_errors=True)


def wait_until(condition, process, seconds=400):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_a_search_outlives_a_lost_node(tmp_path, cluster):
    address, second = cluster
    workers = {"kind": "ray", "count": 2, "address": address}
    write_config(tmp_path / "inline.yaml", {"threads": 1}, evaluations=100)
    write_config(tmp_path / "ray.yaml", workers, evaluations=100)
    ray = start(tmp_path, "search", "ray.yaml", "--run", "ray", **TOKEN)
    log = tmp_path / "ray" / "log.txt"
    wait_until(lambda: log.is_file() and busy_workers(second.pid), ray)
    lose(second)
    assert "raylet" not in finish(ray)  # Ray's word on the lost node stays out of what may be JSON
    assert "is gone" in log.read_text()
    finish(start(tmp_path, "search", "inline.yaml", "--run", "inline"))
    assert candidates(tmp_path / "ray") == candidates(tmp_path / "inline")
    # The cluster was not ours to end.
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", int(address.split(":")[1]))) == 0
