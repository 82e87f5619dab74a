"""What the user of this machine trusts to run: digests of code, one a line, in a small file of the user's own."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from filelock import FileLock

from evomerge.files.atomic import FileError, write_text

STATE = "EVOMERGE_STATE"
"""Environment variable that names the folder; else ``$XDG_STATE_HOME/evomerge``, or ``~/.local/state/evomerge``."""


def approvals_file() -> Path | None:
    """Return the file with the digests, which need not exist; None for a user without a home, as in some containers."""
    if os.environ.get(STATE):
        folder = Path(os.environ[STATE]).expanduser()
    else:
        home = os.environ.get("XDG_STATE_HOME")
        try:
            folder = (Path(home) if home else Path.home() / ".local" / "state") / "evomerge"
        except RuntimeError:
            return None
    return folder / "trusted_tasks"


def is_approved(digest: str) -> bool:
    """Return whether code with this digest was approved on this machine."""
    return digest in _approved(approvals_file())


def approve(digest: str) -> None:
    """Remember a digest; where the folder cannot be written to, nothing is remembered and no error is raised."""
    file = approvals_file()
    if file is None:
        return
    with suppress(OSError, FileError):
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with FileLock(file.with_name(f".{file.name}.lock")):
            known = _approved(file)
            if digest not in known:
                write_text(file, "".join(f"{line}\n" for line in (*known, digest)))


def _approved(file: Path | None) -> list[str]:
    if file is None or not file.is_file():
        return []
    with suppress(OSError, ValueError):
        return file.read_text(encoding="ascii").split()
    return []
