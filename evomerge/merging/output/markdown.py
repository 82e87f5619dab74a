"""Markdown from foreign texts: names of models, tasks and runs come from anybody, and a table has to stay a table."""

from __future__ import annotations

import re
from collections.abc import Sequence

from evomerge.files.messages import printable

LONGEST_TEXT = 500
"""Characters of a foreign text."""

_SPECIAL = re.compile(r"[\\`*{}\[\]<>#|~&$!]|(?<!\w)_|_(?!\w)|:(?=//)")


def text(value: str) -> str:
    """Return a text that markdown shows as it is, on one line; it must not begin a line."""
    return _SPECIAL.sub(lambda found: f"\\{found[0]}", printable(" ".join(value.split()), LONGEST_TEXT))


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, numbers_from: int | None = None) -> list[str]:
    """Return the lines of a table.

    Parameters
    ----------
    columns
        Heads.
    rows
        Cells, in markdown: foreign texts have passed `text`.
    numbers_from
        Position of the first column with numbers, which are aligned at the right, as all after it; None: there is none.
    """
    first = len(columns) if numbers_from is None else numbers_from
    marks = ["---" if position < first else "---:" for position in range(len(columns))]
    return [_line(columns), _line(marks), *(_line(row) for row in rows)]


def fenced(content: str, language: str) -> list[str]:
    """Return the lines of a code block that its content cannot end."""
    longest = max((len(found) for found in re.findall(r"`+", content)), default=0)
    fence = "`" * max(3, longest + 1)
    return [f"{fence}{language}", content.strip("\n"), fence]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
