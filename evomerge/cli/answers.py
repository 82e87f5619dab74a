"""`evomerge answers`: a row of the final table item by item: the question, the right answer and the model's."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table
from rich.text import Text

from evomerge.cli.printing import PrintableConsole
from evomerge.files.messages import counted, printable
from evomerge.runs.held_out import HeldOut
from evomerge.runs.history import RunHistory
from evomerge.runs.run import Run, RunError
from evomerge.search.rows_on_request import vote
from fitness.items import ItemText, is_whole_model
from fitness.results import Evaluation

WIDTH = 80
"""Columns of the output; fewer on a narrower terminal."""
LONGEST = 2000
"""Characters of a text that are printed; `--json` has all that were kept."""
UNKNOWN = "-"
"""Stands for an answer that the metric does not tell."""


@dataclass(frozen=True)
class Selection:
    """Which items are shown.

    Attributes
    ----------
    wrong
        Only those with a score below 1.
    gained, lost
        Rows that the row is compared with: only items on which it scores higher than `gained`, or lower than `lost`.
    limit
        The first so many of them; None: all.
    """

    wrong: bool = False
    gained: str | None = None
    lost: str | None = None
    limit: int | None = None

    @property
    def others(self) -> list[str]:
        """The rows to compare with, each once."""
        return list(dict.fromkeys(name for name in (self.gained, self.lost) if name is not None))

    def holds(self, score: float, others: Mapping[str, float]) -> bool:
        """Return whether an item is shown, by the scores that the row and the others have on it."""
        compared = [score > others[self.gained]] if self.gained is not None else []
        compared += [score < others[self.lost]] if self.lost is not None else []
        return (score < 1 or not self.wrong) and (any(compared) or not compared)


@dataclass(frozen=True)
class Answered:
    """One item with the score and the answer of each row that is shown, by its name; None: it is not known."""

    item: str
    text: ItemText
    scores: Mapping[str, float]
    answers: Mapping[str, str | None]

    def to_json(self) -> dict[str, object]:
        """Return the values for scripts; what belongs to the row itself comes first."""
        return {
            "item": self.item,
            "question": self.text.question,
            "targets": list(self.text.targets),
            "choices": list(self.text.choices),
            "scores": dict(self.scores),
            "answers": dict(self.answers),
        }


def answers(path: Path, row: str, selection: Selection, as_json: bool) -> None:
    """Print the items of a row of a run's final table."""
    with Run.read(path) as run:
        history = RunHistory(run.events())
    if any(is_whole_model(item) for told in history.told.values() for item in told.evaluation.items[:1]):
        raise RunError(f"{path}: its function scores a model as a whole, so no item has an answer to show")
    held_out = HeldOut.read(path)
    rows = {name: _evaluation(held_out, name, history) for name in dict.fromkeys((row, *selection.others))}
    found = list(_answered(held_out, rows, row, selection))
    shown = found[: selection.limit]
    if as_json:
        print(json.dumps([one.to_json() for one in shown], indent=1))
        return
    out = PrintableConsole(highlight=False, markup=False, emoji=False)
    out.width = min(out.width, WIDTH) if out.is_terminal else WIDTH
    out.print(f"{row}: {len(found)} of {counted(len(rows[row].items), 'held-out item')}")
    for one in shown:
        out.print(_table(one, row))
    if len(shown) < len(found):
        out.print(f"\n{len(found) - len(shown)} more; --limit shows more of them")


def _evaluation(held_out: HeldOut, row: str, history: RunHistory) -> Evaluation:
    """Return what a row has answered; an ensemble's answers are those that most of its members give."""
    members = held_out.members(row, history.reference_scores)
    return members[0] if len(members) == 1 else vote(members)


def _answered(held_out: HeldOut, rows: Mapping[str, Evaluation], row: str, selection: Selection) -> Iterator[Answered]:
    """Yield the items that a selection holds, in their order."""
    items = rows[row].items
    if any(evaluation.items != items for evaluation in rows.values()):
        raise RunError(f"--row {row}: the rows have answered other items than it; resume the run to ask them again")
    for at, item in enumerate(items):
        scores = {name: float(evaluation.scores[at]) for name, evaluation in rows.items()}
        text = held_out.items.get(item, ItemText(""))
        told = {name: evaluation.answers[at] if evaluation.answers else "" for name, evaluation in rows.items()}
        given = {name: text.answer(answer) if answer else None for name, answer in told.items()}
        if selection.holds(scores[row], scores):
            yield Answered(item, text, scores, given)


def _table(one: Answered, row: str) -> Table:
    """Return an item as a block of lines with a label each."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    lines = [("", one.item), ("question", one.text.question)]
    lines += [("choice", choice) for choice in one.text.choices]
    lines += [("target", target) for target in one.text.targets]
    for name, answer in one.answers.items():
        label = "answer" if name == row else f"of {name}"
        lines += [(printable(label, 24), f"{UNKNOWN if answer is None else answer}  (score {one.scores[name]:g})")]
    table.add_row("", "")
    for label, value in lines:
        table.add_row(label, Text(printable(value.strip("\n"), LONGEST, keep="\n")))
    return table
