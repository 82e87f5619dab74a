"""Parts of messages: errors of other code on one line, foreign texts made harmless, and the name that was meant.

Names, paths, reasons and texts of files come from anybody. Whatever prints them (the terminal, log files, the HTML
report) passes them through `printable`.
"""

from __future__ import annotations

import io
import logging
import sys
import unicodedata
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

LONGEST = 300
"""Characters of an exception's text that a message holds."""

LONGEST_LINE = 1000
"""Characters of a printed line; a name or a path may be longer."""


def printable(text: str, longest: int = LONGEST_LINE, keep: str = "") -> str:
    r"""Return a text that a terminal shows as it is, cut in the middle to `longest` characters.

    Control characters, escape sequences, line ends and characters that change the direction of a text are written as
    Python writes them (`\x1b`, `\u202e`).

    Parameters
    ----------
    text
        Any text.
    longest
        Characters that are kept, besides the mark of the cut.
    keep
        Characters that are left as they are, such as line ends.
    """
    if len(text) > longest:
        text = f"{text[: longest - longest // 3]} ... {text[-(longest // 3) :]}"
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or char in keep or unicodedata.category(char) == "Zs" else _escaped(char)
        for char in text
    )


class PrintableFormatter(logging.Formatter):
    """Formats log records as lines that `printable` has passed; the lines of a traceback stay lines."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the text of a record."""
        return printable(super().format(record), 10 * LONGEST_LINE, keep="\n" if record.exc_info else "")


def one_line(error: BaseException) -> str:
    """Return an exception's type and text, on one line and cut to `LONGEST` characters."""
    return f"{type(error).__name__}: {_flat(error) or 'no message'}"


def reason(error: BaseException, named: str | Path | None = None) -> str:
    """Return an exception's text, on one line and cut to `LONGEST` characters; its type where it has no text.

    Parameters
    ----------
    error
        The exception. An `OSError` has its number and its file in its text.
    named
        The file that the message names already; the text is then without both. None: it names none.
    """
    text = _flat(error)
    if named is not None:
        if isinstance(error, OSError) and error.strerror and str(error.filename) == str(named):
            text = error.strerror
        for quote in "'\"":
            text = text.replace(f": {quote}{named}{quote}", "")
    return printable(text) or type(error).__name__


def say(text: str, *, stderr: bool = False) -> None:
    """Print one line as it is, however long, on standard output or error; at once, also into a pipe."""
    print(as_line(text), file=sys.stderr if stderr else sys.stdout, flush=True)


def print_file(text: str) -> None:
    """Print a file's text on standard output as the file would have it, in UTF-8 whatever the locale says."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.flush()
        sys.stdout.buffer.write(text.encode())
        sys.stdout.buffer.flush()
    else:  # a program has redirected it
        print(text, end="")


def as_line(text: str) -> str:
    """Return a text as a line; empty lines before it stay."""
    line = text.lstrip("\n")
    return "\n" * (len(text) - len(line)) + printable(line)


def counted(count: int, noun: str) -> str:
    """Return a number of things with their name."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def nearest(name: object, known: Iterable[str]) -> str | None:
    """Return the known name that a wrong one was probably meant to be; None when none is similar."""
    similar = get_close_matches(name, list(known)) if isinstance(name, str) else []
    return next((each for each in similar if each.startswith(str(name))), similar[0] if similar else None)


def _flat(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return printable(text if len(text) <= LONGEST else text[:LONGEST] + " ...")


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")
