"""Counts that the command line prints go with a noun in the right number."""

from __future__ import annotations

import re
from pathlib import Path

import evomerge.cli

NOUNS = "answers|candidates|evaluations|files|genes|items|layers|models|recipes|scores|steps|tasks|units|workers"
COUNT = re.compile(r"\{(?!counted\()[a-z_][^{}]*\} (?:[a-z-]+ )?(?:" + NOUNS + r")\b")
NEVER_ONE = {
    "{path} has steps": "a verb",
    "{genes} genes": "a group has several",
    "{num_layers} layers": "a comment in a search file",
    "{summary['workers']} workers": "asked only of several",
    "{_answers(summary)} answers": "a range",
    "{enough} of": "a part of all",
}


def test_no_count_has_a_plural_of_its_own() -> None:
    """`counted` writes 1 item and 2 items."""
    files = Path(evomerge.cli.__file__).parent.glob("*.py")
    found = {match[0] for file in files for match in COUNT.finditer(file.read_text(encoding="utf-8"))}
    assert not {text for text in found if not text.startswith(tuple(NEVER_ONE))}
