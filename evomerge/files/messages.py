"""One-line texts about errors that other code raises."""

from __future__ import annotations

LONGEST = 300
"""Characters of an exception's text that a message holds."""


def one_line(error: BaseException) -> str:
    """Return an exception's type and text, on one line and cut to `LONGEST` characters."""
    return f"{type(error).__name__}: {_flat(error) or 'no message'}"


def reason(error: BaseException) -> str:
    """Return an exception's text, on one line and cut to `LONGEST` characters; its type where it has no text."""
    return _flat(error) or type(error).__name__


def _flat(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= LONGEST else text[:LONGEST] + " ..."
