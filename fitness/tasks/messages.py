"""Parts of error messages: names that come near, and what went wrong in somebody else's code."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

LONGEST_REASON = 200  # characters


def nearest(name: str, known: Sequence[str]) -> str:
    """Up to three of the known names, the most similar ones, as in "did you mean ...?"."""
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5) or list(known[:3])
    return " or ".join(repr(other) for other in close) or "another one"


def one_line(error: BaseException) -> str:
    """Type and text of an error on one line; template errors have many, and the cause is not always in the first."""
    text = " ".join(str(error).split()) or "no message"
    return f"{type(error).__name__}: {text if len(text) < LONGEST_REASON else text[:LONGEST_REASON] + ' ...'}"
