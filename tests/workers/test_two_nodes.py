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

from tests.workers.searches import candidates, finish, start, write_config

RAY = Path(sys.executable).parent / "ray"
QUICKLY = {  # a lost node is noticed within seconds
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_USAGE_STATS_ENABLED": "0",
}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def node(*arguments):
    """Start a node with one CPU; it lives as long as the returned process, whose group it belongs to."""
    return subprocess.Popen(
        [
            *(RAY, "start", "--block", "--num-cpus=1", "--object-store-memory=100000000", "--disable-usage-stats"),
            f"--dashboard-agent-listen-port={free_port()}",
            *arguments,
        ],
        env=os.environ | QUICKLY,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def descendants(process):
    """Return the ids of a process's children, and of theirs."""
    children = Path(f"/proc/{process}/task/{process}/children")
    found = [int(child) for child in children.read_text().split()] if children.exists() else []
    return found + [other for child in found for other in descendants(child)]


def lose(process):
    """Kill a node at once: the process that started it, and all that it started."""
    for identity in [process.pid, *descendants(process.pid)]:
        with suppress(ProcessLookupError):
            os.kill(identity, signal.SIGKILL)
    process.wait()


@pytest.fixture
def cluster():
    """Return the address of a head node, and the process of a second one."""
    folder, port = tempfile.mkdtemp(prefix="ray-", dir="/tmp"), free_port()  # sockets need a short path
    head = node(
        "--head",
        f"--port={port}",
        "--include-dashboard=false",
        f"--temp-dir={folder}",
    )
    address = f"127.0.0.1:{port}"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.2)
    second = node(f"--address={address}")
    yield address, second
    for process in (second, head):
        lose(process)
    shutil.rmtree(folder, ignore_errors=True)


def wait_until(condition, process, seconds=180):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.xfail(reason="the driver does not reach a head node that this test starts; not yet understood", run=False)
def test_a_search_outlives_a_lost_node(tmp_path, cluster):
    address, second = cluster
    workers = {"kind": "ray", "count": 2, "address": address}
    write_config(tmp_path / "inline.yaml", {"threads": 1}, evaluations=300)
    write_config(tmp_path / "ray.yaml", workers, evaluations=300)
    ray = start(tmp_path, "search", "ray.yaml", "--run", "ray")
    log = tmp_path / "ray" / "log.txt"
    wait_until(lambda: log.is_file() and log.read_text().count("is ready") == 2, ray)
    lose(second)
    finish(ray)
    assert "is gone" in log.read_text()
    finish(start(tmp_path, "search", "inline.yaml", "--run", "inline"))
    assert candidates(tmp_path / "ray") == candidates(tmp_path / "inline")
    # The cluster was not ours to end.
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", int(address.split(":")[1]))) == 0
