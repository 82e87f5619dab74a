"""Reaching Ray: what is said when that fails, and the token that a cluster may ask for."""

import os
import signal
import sys
from types import SimpleNamespace

import pytest

from evomerge.workers.base import WorkerError, WorkerFactory
from evomerge.workers.config import RayConfig


@pytest.fixture
def connect(monkeypatch, tmp_path):
    """Return a function that connects to an address; Ray answers with an error, and home has no token."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))

    def connect(address, error):
        def init(**options):
            raise error() if callable(error) else error

        # Not the real one: it reads these variables once, and others in this process need it as it is.
        monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(init=init, is_initialized=lambda: False))
        factory = WorkerFactory(here=None, elsewhere=None, items=1)
        with pytest.raises(WorkerError) as raised:
            RayConfig(address=address).start(factory)
        return str(raised.value)

    yield connect
    os.environ.pop("RAY_AUTH_MODE", None)


def test_a_node_that_does_not_start_is_an_error_in_one_line(connect):
    said = connect("local", Exception("The current node timed out during startup."))
    assert "Ray did not start on this machine" in said and "timed out" in said and said.endswith("inline")


def test_a_search_ends_with_sigterm_as_before(connect):
    def replaces_the_handler():
        signal.signal(signal.SIGTERM, lambda *_: None)  # as `ray.init` does
        return Exception("no")

    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        connect("local", replaces_the_handler)
        assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_cluster_that_is_not_reached_is_an_error_that_speaks_of_the_token(connect):
    said = connect("head:6379", ConnectionError("Failed to connect to Ray cluster at head:6379"))
    assert "workers.address 'head:6379'" in said and "auth_token" in said


@pytest.mark.parametrize("where", ["home", "variable", "nowhere"])
def test_who_has_a_token_shows_it(connect, tmp_path, monkeypatch, where, capsys):
    if where == "home":
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").write_text("secret")
    elif where == "variable":
        monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    connect("head:6379", ConnectionError("no"))
    assert os.environ.get("RAY_AUTH_MODE") == (None if where == "nowhere" else "token")
    said = capsys.readouterr().err.splitlines()
    assert [line.partition(": this machine has no token")[0] for line in said] == (
        ["warning: workers.address 'head:6379'"] if where == "nowhere" else []
    )


def test_a_ray_that_was_imported_before_keeps_its_mode(connect, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    connect("local", Exception("no"))
    assert "RAY_AUTH_MODE" not in os.environ


def test_who_decided_against_tokens_is_left_alone(connect, monkeypatch, capsys):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    connect("head:6379", ConnectionError("no"))
    assert os.environ["RAY_AUTH_MODE"] == "disabled"
    assert not capsys.readouterr().err
