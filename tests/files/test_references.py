"""Whether a reference is a path or a hub id."""

from __future__ import annotations

from pathlib import Path

import pytest

from evomerge.files.references import absolute, local_or_hub, named_twice


@pytest.mark.parametrize("reference", ["org/name", "org/name@main", "org/name@refs/pr/3", "my.org/name-1_b"])
def test_hub_ids(tmp_path: Path, reference: str) -> None:
    assert local_or_hub(reference, tmp_path) == reference


@pytest.mark.parametrize(
    "reference", ["name", "./org/name", "../name", "a/b/c", "org/name here", "models@v2/x", "org/@main", "nul\0/x", ""]
)
def test_everything_else_is_a_path(tmp_path: Path, reference: str) -> None:
    found = local_or_hub(reference, tmp_path)
    assert isinstance(found, Path)
    assert found.is_absolute()


def test_home_and_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert local_or_hub("~/name") == tmp_path.resolve() / "name"
    assert local_or_hub("/org/name") == Path("/org/name")
    assert isinstance(local_or_hub("~no-such-user/name"), Path)


def test_what_is_on_the_disk_is_local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert local_or_hub("org/name", tmp_path) == (tmp_path / "org" / "name").resolve()
    assert local_or_hub("org/name", tmp_path / "org") == "org/name"
    monkeypatch.chdir(tmp_path)
    assert local_or_hub("org/name") == (tmp_path / "org" / "name").resolve()


def test_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert absolute("link", tmp_path) == (tmp_path / "real").resolve()


def test_a_model_named_twice(tmp_path: Path) -> None:
    folder, other = str(tmp_path / "a"), str(tmp_path / "b" / ".." / "a")
    assert named_twice(["org/a", folder, "org/b"]) is None
    assert named_twice(["org/a", folder, "org/a"]) == "org/a is named twice"
    assert named_twice([folder, other]) == f"{folder} and {other} are the same"
