"""Parts of messages: errors that other code raises, on one line, and the name that was meant."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

LONGEST = 300
"""Characters of an exception's text that a message holds."""


def one_line(error: BaseException) -> str:
    """Return an exception's type and text, on one line and cut to `LONGEST` characters."""
    return f"{type(error).__name__}: {_flat(error) or 'no message'}"


def reason(error: BaseException) -> str:
    """Return an exception's text, on one line and cut to `LONGEST` characters; its type where it has no text."""
    return _flat(error) or type(error).__name__


def nearest(name: object, known: Iterable[str]) -> str | None:
    """Return the known name that a wrong one was probably meant to be; None when none is similar."""
    return next(iter(get_close_matches(name, list(known), n=1)), None) if isinstance(name, str) else None


def _flat(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= LONGEST else text[:LONGEST] + " ..."
