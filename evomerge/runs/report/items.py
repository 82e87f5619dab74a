"""Held-out items that the found recipe answers better than the best source, and those that it answers worse."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from evomerge.runs.report.contents import Contents
from evomerge.runs.report.final_table import best_source
from fitness.items import ItemText
from fitness.results import Evaluation

MOST_ITEMS = 40
"""Items of each kind that the page has."""
LONGEST = 600
"""Characters of a question or an answer; of longer ones the beginning and the end are shown."""
NO_TEXT = ItemText("")


@dataclass(frozen=True)
class Change:
    """One item on which two models differ, as texts; empty where they are not recorded."""

    item: str
    question: str
    right: str
    source: str
    found: str
    source_score: float
    found_score: float


@dataclass(frozen=True)
class Changes:
    """What the found recipe gains and loses.

    Attributes
    ----------
    source
        Name of the best source.
    gained, lost
        Items, the largest differences first; at most `MOST_ITEMS` each.
    gains, losses, same
        How many items there are of each kind.
    """

    source: str
    gained: list[Change]
    lost: list[Change]
    gains: int
    losses: int
    same: int


def changes(contents: Contents) -> Changes | None:
    """Compare the found recipe with the best source item by item; None where answers are not recorded."""
    source = best_source(contents)
    found = next((row for row in contents.overall_rows if row.kind == "found"), None)
    if source is None or found is None:
        return None
    before, after = contents.held_out(source.name), contents.held_out(found.name)
    if before is None or after is None:
        return None
    texts = contents.answers.items if contents.answers is not None else {}
    old, new = _by_item(before), _by_item(after)
    pairs = [_change(item, texts, old[item], new[item]) for item in new if item in old]
    gained = [one for one in pairs if one.found_score > one.source_score]
    lost = [one for one in pairs if one.found_score < one.source_score]
    return Changes(
        source.name, _largest(gained), _largest(lost), len(gained), len(lost), len(pairs) - len(gained) - len(lost)
    )


def _largest(found: list[Change]) -> list[Change]:
    return sorted(found, key=lambda one: -abs(one.found_score - one.source_score))[:MOST_ITEMS]


def _by_item(evaluation: Evaluation) -> dict[str, tuple[float, str]]:
    """Return each item's score and answer."""
    answers = evaluation.answers or ("",) * len(evaluation.items)
    scores = evaluation.scores.tolist()
    return {item: (score, text) for item, score, text in zip(evaluation.items, scores, answers, strict=True)}


def _change(item: str, texts: Mapping[str, ItemText], before: tuple[float, str], after: tuple[float, str]) -> Change:
    text = texts.get(item, NO_TEXT)
    right, old, new = " or ".join(text.targets), text.answer(before[1]), text.answer(after[1])
    return Change(item, _short(text.question), _short(right), _short(old), _short(new), before[0], after[0])


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST * 2 // 3]} … {text[-LONGEST // 3 :]}"
