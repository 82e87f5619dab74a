"""Parts of error messages: similar names, and errors from other people's code on one line."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

LONGEST_REASON = 200  # characters
WRAPPERS = ("DatasetGenerationError", "DatasetGenerationCastError")
"""Errors of `datasets` that only say that there is another error."""


def nearest(name: str, known: Sequence[str]) -> str:
    """Return up to three known names, the most similar ones first, for "did you mean ...?"."""
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5) or list(known[:3])
    return " or ".join(repr(other) for other in close) or "another one"


def one_line(error: BaseException) -> str:
    """Return type and text of an error on one line; template errors have many lines, and any may name the cause."""
    if error.__cause__ is not None and type(error).__name__ in WRAPPERS:
        error = error.__cause__
    text = " ".join(str(error).split()) or "no message"
    return f"{type(error).__name__}: {text if len(text) < LONGEST_REASON else text[:LONGEST_REASON] + ' ...'}"
