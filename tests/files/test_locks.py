"""Locks that end with their process."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest
from filelock import FileLock

from evomerge.files.locks import held, is_locked


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_shared_lock_counts_where_it_is_asked_for(tmp_path: Path, kind: str) -> None:
    place = tmp_path / "place"
    place.touch() if kind == "file" else place.mkdir()
    with held(place), held(place):
        assert is_locked(place, by_anybody=True)
        assert is_locked(place, by_anybody=False) is False
    assert is_locked(place, by_anybody=True) is False


def test_those_who_may_only_read_see_the_lock_of_a_single_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = os.open

    def refuse_to_write(path: Path, access: int) -> int:
        if access & os.O_RDWR:
            raise PermissionError
        return opened(path, access)

    with FileLock(tmp_path / "lock"):
        monkeypatch.setattr(os, "open", refuse_to_write)
        assert is_locked(tmp_path / "lock", by_anybody=False)
    assert is_locked(tmp_path / "lock", by_anybody=False) is False


def test_what_cannot_be_known_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_locked(tmp_path / "missing", by_anybody=False) is None

    def refuse(*_: object) -> None:
        raise OSError("this file system has no locks")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with held(tmp_path):
        assert is_locked(tmp_path, by_anybody=True) is None
