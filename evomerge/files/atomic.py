"""Writing files so that a reader, or a power cut, never sees half of one."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


class FileError(RuntimeError):
    """A file that cannot be written; one line that says what to do."""


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text` (UTF-8) in one step: temporary file, fsync, rename.

    Raises
    ------
    FileError
        If the disk or the folder does not take it; the old file is then as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        reason = error.strerror or error
        raise FileError(f"{path}: cannot be written ({reason}); make room or name another place") from error
