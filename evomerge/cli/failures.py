"""What the command prints when something fails: a few lines for the user, and the exit code."""

from __future__ import annotations

import errno
import sysconfig
import traceback
from collections.abc import Sequence
from pathlib import Path

from evomerge.files.messages import counted, one_line, printable, reason

OURS = ("evomerge", "search_spaces", "fitness")
LONGEST_MESSAGE = 1_700
"""Characters of all lines together; a file with many mistakes names the first of them."""
LONGEST_LINE = 1_000
LONGEST_PATH = 300
BESIDE = 12
"""Characters that are printed with a line."""
_WRONG_PATHS = (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.ENOENT, errno.EISDIR)
_ADVICE = {
    errno.EMFILE: "raise the number of open files (`ulimit -n 4096`)",
    errno.ENFILE: "close other programs, or raise the system's number of open files",
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space, or raise the quota",
}
"""What a user does about errors of the system that are not about one path."""
LIBRARIES = (
    *("transformers", "tokenizers", "safetensors", "huggingface_hub", "peft", "gguf"),
    *("lm_eval", "datasets", "pyarrow", "jinja2", "ray"),
)
"""Packages that read models, tasks and data: their errors are about these."""
DEBUG = "`evomerge --debug ...` shows where"


def explained(error: Exception) -> tuple[list[str], int]:
    """Return the lines about an error, and the exit code: 2 if the request was wrong, 1 if the work failed."""
    if type(error).__module__.split(".")[0] in OURS:
        return _cut(str(error).splitlines()), 2 if isinstance(error, ValueError) else 1
    wrong_path = isinstance(error, OSError) and error.errno in _WRONG_PATHS
    return [printable(_of_others(error), LONGEST_LINE)], 2 if wrong_path else 1


def _cut(lines: Sequence[str]) -> list[str]:
    """Return the first lines, as many as a message holds, and how many are left out."""
    shown: list[str] = []
    for number, line in enumerate(lines):
        cut = printable(line, LONGEST_LINE)
        if shown and sum(len(other) + BESIDE for other in (*shown, cut)) > LONGEST_MESSAGE:
            more = len(lines) - number
            return [*shown, f"... and {counted(more, 'more mistake')} of this kind; fix these first"]
        shown.append(cut)
    return shown


def _of_others(error: Exception) -> str:
    """Return a sentence about an error that is not one of ours."""
    if isinstance(error, MemoryError):
        return "memory ran out; lower fitness.batch_size or the number of workers, or use a machine with more memory"
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        path = printable(str(error.filename), LONGEST_PATH)
        return (
            f"{path}: {error.strerror}; {_ADVICE.get(error.errno or 0, 'check the path, its permissions and its disk')}"
        )
    if isinstance(error, OSError) and error.errno in _ADVICE:
        return f"{error.strerror} (standard output or a temporary file); {_ADVICE[error.errno]}"
    package = _package(error)
    if package is None:
        return f"unexpected {one_line(error)}; {DEBUG}"
    return f"{package} refuses: {reason(error).rstrip('.')}; correct what it names ({DEBUG})"


def _package(error: Exception) -> str | None:
    """Return the one of `LIBRARIES` that an error comes from; None if it comes from elsewhere."""
    frames = traceback.extract_tb(error.__traceback__)
    folder = Path(sysconfig.get_paths()["purelib"])
    for frame in reversed(frames):
        place = Path(frame.filename)
        if place.is_relative_to(folder):
            name = place.relative_to(folder).parts[0].removesuffix(".py")
            return name if name in LIBRARIES else None
        if any(part in OURS for part in place.parts):
            return None
    return None
