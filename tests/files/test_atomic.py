"""Files and folders that appear complete or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sqlite3
import stat
import threading
from collections import namedtuple
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from evomerge.files import atomic
from evomerge.files.atomic import (
    FileError,
    PlaceError,
    atomic_file,
    atomic_folder,
    check_place,
    scratch_folder,
    write_text,
)

Usage = namedtuple("Usage", "total used free")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def user_mode(folder: Path) -> int:
    (folder / "probe").touch()
    mode = (folder / "probe").stat().st_mode
    (folder / "probe").unlink()
    return stat.S_IMODE(mode)


def opened(kind: str, path: Path, **options: Any) -> AbstractContextManager[Path]:
    return atomic_file(path, **options) if kind == "file" else atomic_folder(path, **options)


def fill(kind: str, temporary: Path) -> None:
    (temporary if kind == "file" else temporary / "content").write_text("new")


both = pytest.mark.parametrize("kind", ["file", "folder"])


# --- what is written ---


def test_a_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with atomic_file(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert names(tmp_path) == ["file"]


def test_a_folder_with_folders_in_it(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "folder"
    with atomic_folder(path) as temporary:
        (temporary / "inner").mkdir()
        (temporary / "inner" / "a").write_text("a")
        (temporary / "b").write_text("b")
        assert not path.exists()
    assert names(path) == ["b", "inner"]
    assert (path / "inner" / "a").read_text() == "a"
    assert names(tmp_path / "deep") == ["folder"]


def test_an_empty_folder_is_used(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with atomic_folder(tmp_path / "out") as temporary:
        fill("folder", temporary)
    assert names(tmp_path / "out") == ["content"]


@both
def test_files_have_the_mode_that_the_user_asks_for(tmp_path: Path, kind: str) -> None:
    with opened(kind, tmp_path / "out") as temporary:
        fill(kind, temporary)
        (temporary if kind == "file" else temporary / "content").chmod(0o600)  # as safetensors does
    written = tmp_path / "out" if kind == "file" else tmp_path / "out" / "content"
    assert stat.S_IMODE(written.stat().st_mode) == user_mode(tmp_path)


@both
def test_everything_is_flushed_before_it_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    steps: list[str] = []
    fsync, replace = os.fsync, os.replace

    def flushed(descriptor: int) -> None:
        steps.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def renamed(source: Path, target: Path) -> None:
        steps.append("rename")
        replace(source, target)

    monkeypatch.setattr(atomic.os, "fsync", flushed)
    monkeypatch.setattr(atomic.os, "replace", renamed)
    with opened(kind, tmp_path / "out") as temporary:
        fill(kind, temporary)
    before = [temporary.name] if kind == "file" else ["content", temporary.name]
    assert steps == [*before, "rename", tmp_path.name]


def test_missing_parents_of_a_file_are_made_only_when_asked(tmp_path: Path) -> None:
    wanted = tmp_path / "a" / "file"
    with pytest.raises(PlaceError, match=f"file: there is no folder {wanted.parent}; make it"), atomic_file(wanted):
        raise AssertionError("the work begins before the place is known")
    with atomic_file(tmp_path / "a" / "b" / "file", parents=True) as temporary:
        fill("file", temporary)
    assert (tmp_path / "a" / "b" / "file").read_text() == "new"


def test_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "file"
    texts = [str(index) * 10_000 for index in range(8)]

    def write(text: str) -> None:
        for _ in range(20):
            write_text(path, text)

    threads = [threading.Thread(target=write, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_text() in texts
    assert names(tmp_path) == ["file"]


def test_long_names(tmp_path: Path) -> None:
    write_text(tmp_path / ("n" * 255), "text")
    write_text(tmp_path / ("ü" * 127), "text")
    assert len(names(tmp_path)) == 2


def test_a_killed_writer_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    child = os.fork()
    if child == 0:
        with atomic_file(path) as temporary:
            temporary.write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert path.read_text() == "old"


def left_by_a_killed_writer(kind: str, path: Path) -> None:
    child = os.fork()
    if child == 0:
        with opened(kind, path) as temporary:
            fill(kind, temporary)
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL


@both
def test_the_next_writer_removes_what_a_killed_one_has_left(tmp_path: Path, kind: str) -> None:
    with opened(kind, tmp_path / "out") as running:
        os.utime(running, (0, 0))
        left_by_a_killed_writer(kind, tmp_path / "out")
        left_by_a_killed_writer(kind, tmp_path / "other")
        left, *_ = set(tmp_path.glob(".out.*")) - {running}
        just_made = tmp_path / ".out.0123456789ab.tmp"
        just_made.touch()
        os.utime(left, (0, 0))
        with opened(kind, tmp_path / "out") as temporary:
            assert running.exists(), "it is locked by its writer"
            assert just_made.exists(), "its writer may not have locked it yet"
            assert not left.exists()
            fill(kind, temporary)
        assert len(list(tmp_path.glob(".other.*"))) == 1, "of another file"
        if kind == "folder":
            shutil.rmtree(tmp_path / "out")
        fill(kind, running)


def test_a_scratch_folder_is_gone_afterwards(tmp_path: Path) -> None:
    with scratch_folder(tmp_path / "new" / "out") as folder:
        fill("folder", folder)
        os.utime(folder, (0, 0))
        with atomic_folder(tmp_path / "new" / "out") as temporary:
            fill("folder", temporary)
        assert folder.is_dir()
    assert names(tmp_path / "new") == ["out"]


# --- what goes wrong ---


@both
def test_an_error_in_the_block_leaves_nothing(tmp_path: Path, kind: str) -> None:
    with pytest.raises(ZeroDivisionError), opened(kind, tmp_path / "out") as temporary:
        fill(kind, temporary)
        1 / 0  # noqa: B018
    assert names(tmp_path) == []


def test_a_taken_place_is_a_wrong_request(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "precious").write_text("x")
    with pytest.raises(PlaceError, match=r"a file of that name exists; name a new folder"):
        atomic_folder(tmp_path / "file").__enter__()
    with pytest.raises(PlaceError, match=r"the folder exists and is not empty; name a new one or remove it"):
        atomic_folder(tmp_path / "folder").__enter__()
    with pytest.raises(PlaceError, match=r"^\.: it is a folder; name a file"), atomic_file(Path("")):  # as -o "" does
        pass
    with pytest.raises(PlaceError, match=r"it is a folder; name a file"):
        atomic_file(tmp_path / "folder").__enter__()
    assert issubclass(PlaceError, ValueError)  # the command line's code 2
    assert issubclass(PlaceError, FileError)
    assert names(tmp_path / "folder") == ["precious"]


def test_a_folder_does_not_replace_a_link_a_pipe_or_a_mount_point(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "dangling"):
        with pytest.raises(PlaceError, match=r"it is a link, which a new folder would replace; name the folder itself"):
            check_place(tmp_path / name)
    for place in (tmp_path / "pipe", Path("/dev/null")):
        with pytest.raises(PlaceError, match=r"a file of that name exists; name a new folder"):
            check_place(place)
    with pytest.raises(PlaceError, match=r"it is a mount point, which nothing can replace; name a folder inside it"):
        check_place(Path("/"))
    check_place(tmp_path / "folder")
    check_place(tmp_path / "new" / "deep")


def test_a_read_only_disk_is_noticed_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomic.os, "access", lambda *_: False)  # root may write everywhere else
    with pytest.raises(FileError, match=rf"new: cannot be written \({tmp_path} is read-only\); check .* or go elsewh"):
        check_place(tmp_path / "a" / "new", "go elsewhere")


def test_a_place_is_tried_before_the_work(tmp_path: Path) -> None:
    check_place(tmp_path / "a" / "new")
    assert names(tmp_path) == []
    with pytest.raises(FileError, match=r"/proc/new: cannot be written \(.*\); check the folder's permissions"):
        check_place(Path("/proc/new"))  # access() allows it


def test_a_file_replaces_what_a_link_leads_to_and_no_pipe(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text() == "new"
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(PlaceError, match=r"it is a device or a pipe, which a file would replace; name a file"):
        write_text(tmp_path / "pipe", "new")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


@both
def test_a_parent_that_is_a_file(tmp_path: Path, kind: str) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileError, match=r"cannot be written \(.+\); check the folder's permissions"):
        opened(kind, tmp_path / "file" / "out").__enter__()


@both
def test_too_little_space_is_noticed_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(atomic.shutil, "disk_usage", lambda _: Usage(10**9, 0, 10**7))
    with pytest.raises(FileError, match=r"the disk has 0.01 GB free and 0.50 GB are needed; free some space or go"):
        opened(kind, tmp_path / "new" / "out", size=5 * 10**8, elsewhere="go elsewhere").__enter__()
    assert names(tmp_path) == []


@both
@pytest.mark.parametrize("step", ["block", "fsync", "replace"])
@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk became full while writing; free some space or go"),
        (PermissionError(errno.EACCES, "Permission denied"), r"cannot be written \(Permission denied\); check the fol"),
        (RuntimeError('I/O error: Os { code: 28, message: "No space left on device" }'), "the disk became full"),
        (sqlite3.OperationalError("database or disk is full"), "the disk became full while writing"),
    ],
    ids=["full", "refused", "safetensors", "database"],
)
def test_a_failing_disk_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, kind: str, step: str, error: Exception, text: str
) -> None:
    def fail(*_: object) -> None:
        raise error

    if step != "block":
        monkeypatch.setattr(atomic.os, step, fail)
    with (
        pytest.raises(FileError, match=text) as caught,
        opened(kind, tmp_path / "out", elsewhere="go elsewhere") as temporary,
    ):
        fill(kind, temporary)
        if step == "block":
            fail()
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == []
