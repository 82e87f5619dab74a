"""Files and folders that appear complete or not at all, even if the process is killed while it writes."""

from __future__ import annotations

import errno
import glob
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from evomerge.files.locks import held, is_locked
from evomerge.files.messages import reason

ELSEWHERE = "name another place"
"""What a user does when a place is full or refuses to be written to; the end of most messages."""


class FileError(RuntimeError):
    """A file or folder that cannot be written; one line that says what to do. Nothing is left of it."""


class PlaceError(FileError, ValueError):
    """A path that is taken already: the request is wrong, not the disk."""


@contextmanager
def atomic_file(
    path: Path, *, size: int | None = None, parents: bool = False, elsewhere: str = ELSEWHERE
) -> Iterator[Path]:
    """Give a temporary path to write to, which replaces `path` when the block ends without an error.

    The temporary file exists, is empty and is beside `path`. It is flushed to the disk before it is renamed. An
    existing file at `path` stays as it was until then, and for good if the block fails.

    Parameters
    ----------
    path
        The file.
    size
        Bytes that it will take, where that is known: checked against the free space first.
    parents
        Whether to make missing parent folders.
    elsewhere
        What to do when the place refuses, as the end of a message.

    Raises
    ------
    FileError
        If the place is a folder, or the disk or the folder refuses; also for such errors raised inside the block.
    """
    if path.is_symlink():  # the link stays, and what it leads to is replaced
        path = path.resolve()
    with disk_errors(path, elsewhere):
        if path.is_dir():
            raise PlaceError(f"{path}: it is a folder; name a file")
        temporary = _temporary(path)
        if path.exists() and not path.is_file():
            raise PlaceError(f"{path}: it is a device or a pipe, which a file would replace; name a file")
        _remove_abandoned(path)
        _check_space(path, size, elsewhere)
        if parents:
            _make_folder(path.parent)
        check_parent(path)
        try:
            temporary.touch(exist_ok=False)
            mode = temporary.stat().st_mode  # as the user's umask has it; safetensors makes its files private
            with held(temporary):
                yield temporary
                temporary.chmod(mode)
                _sync(temporary)
                os.replace(temporary, path)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
        _sync_entries(path.parent)


@contextmanager
def atomic_folder(path: Path, *, size: int | None = None, elsewhere: str = ELSEWHERE) -> Iterator[Path]:
    """Give a temporary folder to fill, which becomes `path` when the block ends without an error.

    The temporary folder is beside `path`, whose parents are made where they are missing. Its files get the mode that
    the user's umask asks for and are flushed to the disk before the folder is renamed.

    Parameters
    ----------
    path
        A folder that does not exist yet, or is empty.
    size
        Bytes that it will take, where that is known: checked against the free space first.
    elsewhere
        What to do when the place refuses, as the end of a message.

    Raises
    ------
    PlaceError
        If `path` is a file, or a folder that is not empty.
    FileError
        If the disk or the parent folder refuses; also for such errors raised inside the block.
    """
    with disk_errors(path, elsewhere):
        check_place(path, elsewhere, size=size)
        temporary = _temporary(path)
        _make_folder(path.parent)
        try:
            temporary.mkdir()
            mode = temporary.stat().st_mode & 0o666  # the umask's, without the right to enter
            with held(temporary):
                yield temporary
                _sync_tree(temporary, mode)
                if path.is_dir():
                    path.rmdir()  # empty, or it fails
                os.replace(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        _sync_entries(path.parent)


@contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder beside `path`, for what is needed while that is written; it is removed at the end.

    Raises
    ------
    FileError
        If it cannot be made.
    """
    temporary = _temporary(path)
    with disk_errors(path):
        _make_folder(path.parent)
        temporary.mkdir()
    try:
        with held(temporary):
            yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: Path, text: str, elsewhere: str = ELSEWHERE) -> None:
    """Replace `path` by `text` (UTF-8) in one step; `elsewhere` as for `atomic_file`.

    Raises
    ------
    FileError
        If the disk or the folder refuses; the old file is then as it was.
    """
    with atomic_file(path, elsewhere=elsewhere) as temporary:
        temporary.write_text(text, encoding="utf-8")


def check_parent(path: Path) -> None:
    """Refuse a file whose folder is not there.

    Raises
    ------
    PlaceError
        If so.
    """
    if not path.parent.exists():
        raise PlaceError(f"{path}: there is no folder {path.parent}; make it, or name another place")


def check_place(path: Path, elsewhere: str = ELSEWHERE, *, size: int | None = None) -> None:
    """Refuse a place where no folder can appear in one step: called before the work, and again before writing.

    With `size`, a disk with fewer bytes free is refused, too.

    Raises
    ------
    PlaceError
        If something is there: a folder that is not empty, a link, a mount point, a file of any kind.
    FileError
        If no folder can be made above it, as on a read-only disk.
    """
    with disk_errors(path, elsewhere):
        if path.is_symlink():
            raise PlaceError(f"{path}: it is a link, which a new folder would replace; name the folder itself")
        if path.is_dir():
            if os.path.ismount(path):
                raise PlaceError(f"{path}: it is a mount point, which nothing can replace; name a folder inside it")
            if any(path.iterdir()):
                raise PlaceError(f"{path}: the folder exists and is not empty; name a new one or remove it")
        elif path.exists():
            raise PlaceError(f"{path}: a file of that name exists; name a new folder")
        above = next(parent for parent in path.absolute().parents if parent.exists())
        if not above.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if not os.access(above, os.W_OK | os.X_OK):
            raise FileError(
                f"{path}: cannot be written ({above} is read-only); check the folder's permissions and its disk, or "
                f"{elsewhere}"
            )
        _remove_abandoned(path)
        probe = _temporary(above / "probe")  # access() knows nothing of quotas and of file systems without folders
        probe.mkdir()
        probe.rmdir()
        _check_space(path, size, elsewhere)


def _temporary(path: Path) -> Path:
    """Return a hidden path beside `path` that no other writer has, in this process or another."""
    return path.absolute().with_name(f".{path.name[:40]}.{secrets.token_hex(6)}.tmp")


JUST_MADE = 60.0
"""Seconds in which a temporary file may not be locked yet."""


def _remove_abandoned(path: Path) -> None:
    """Remove what killed writers of `path` have left beside it: temporary files and folders that nobody locks."""
    pattern = f".{glob.escape(path.name[:40])}.{'[0-9a-f]' * 12}.tmp"
    for left in path.parent.glob(pattern):
        with suppress(OSError):  # its writer has finished
            just_made = time.time() - left.lstat().st_mtime < JUST_MADE
            if not just_made and is_locked(left, by_anybody=True) is False:
                shutil.rmtree(left) if left.is_dir() else left.unlink()


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:  # what mkdir says of a file
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)) from None


def _check_space(path: Path, size: int | None, elsewhere: str) -> None:
    if size is None:
        return
    place = next(parent for parent in path.absolute().parents if parent.is_dir())
    free = shutil.disk_usage(place).free
    if free < size:
        raise FileError(
            f"{path}: the disk has {free / 1e9:.2f} GB free and {size / 1e9:.2f} GB are needed; free some space or "
            f"{elsewhere}"
        )


@contextmanager
def disk_errors(path: Path, elsewhere: str = ELSEWHERE) -> Iterator[None]:
    """Turn errors of the disk that the block raises into a FileError about `path`."""
    try:
        yield
    except FileError:
        raise
    except Exception as error:
        # safetensors and databases report a failing disk in exceptions of their own
        if isinstance(error, OSError) or "os error" in str(error).lower() or _is_full(error):
            raise FileError(_failure(path, error, elsewhere)) from error
        raise


def _failure(path: Path, error: Exception, elsewhere: str) -> str:
    if _is_full(error):
        return f"{path}: the disk became full while writing; free some space or {elsewhere}"
    said = getattr(error, "strerror", None) or reason(error, path)
    return f"{path}: cannot be written ({said}); check the folder's permissions and its disk, or {elsewhere}"


def _is_full(error: Exception) -> bool:
    text = str(error)
    return getattr(error, "errno", None) == errno.ENOSPC or "No space left" in text or "disk is full" in text


def _sync_tree(folder: Path, mode: int) -> None:
    """Give all files in `folder` the same mode and flush them, and the folders' entries, to the disk."""
    for place in sorted(folder.rglob("*"), reverse=True):  # the contents of a folder before the folder
        if not place.is_dir():
            place.chmod(mode)
        _sync(place)
    _sync(folder)


def _sync(path: Path) -> None:
    """Flush a file or a folder's entries to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_entries(folder: Path) -> None:
    """Flush a folder's entries; what was renamed into it is there whether or not the file system can do this."""
    with suppress(OSError):
        _sync(folder)
