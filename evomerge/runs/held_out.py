"""What the rows of the final table have answered: the held-out items as texts, and which scores are whose."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from shlex import quote

from pydantic import TypeAdapter

from evomerge.runs.event_rows import first_mistake
from evomerge.runs.log_file import LogError, RunError
from fitness.items import ItemText
from fitness.results import Evaluation

FILE = "held_out.json"
"""Name of the file in a run directory."""


@dataclass(frozen=True)
class HeldOut:
    """What `RUN/held_out.json` holds.

    Attributes
    ----------
    rows
        Row of the final table to the hashes of its recipes: one, or those of an ensemble's members, best first.
    items
        Item id to its text.
    """

    rows: Mapping[str, Sequence[str]]
    items: Mapping[str, ItemText]

    def to_json(self) -> str:
        """Return the JSON text, one item a line."""
        rows = json.dumps({name: list(hashes) for name, hashes in self.rows.items()})
        items = ",\n  ".join(f"{json.dumps(item)}: {json.dumps(asdict(text))}" for item, text in self.items.items())
        return f'{{\n "rows": {rows},\n "items": {{\n  {items}\n }}\n}}\n'

    @classmethod
    def read(cls, folder: Path) -> HeldOut:
        """Return what a run directory holds.

        Raises
        ------
        RunError
            If it has no such file: the search has not ended, or an older evomerge has ended it.
        LogError
            If the file is damaged.
        """
        file = folder / FILE
        if not file.is_file():
            name = quote(str(folder))
            raise RunError(f"{folder} has no answers to held-out items yet; continue with `evomerge resume {name}`")
        try:
            return _HELD_OUT.validate_json(file.read_bytes())
        except (OSError, ValueError) as error:
            reason = first_mistake(error)
            raise LogError(
                f"{file} cannot be read ({reason}); remove it, and resume the run to write it again"
            ) from None

    def members(self, row: str, scores: Mapping[tuple[str, str], Evaluation]) -> list[Evaluation]:
        """Return the evaluation of a row on the held-out items; of an ensemble, those of its members.

        Parameters
        ----------
        row
            Its name.
        scores
            `RunHistory.reference_scores` of the run.

        Raises
        ------
        RunError
            If there is no such row.
        LogError
            If the log has no scores of it.
        """
        if row not in self.rows:
            raise RunError(f"{row}: the final table has no row of this name; write {', '.join(self.rows)}")
        found = [scores.get(("held_out", recipe)) or scores.get(("vote", recipe)) for recipe in self.rows[row]]
        if not found or None in found:
            raise LogError(f"the event log has no held-out scores of row {row}; resume the run to ask again")
        return [one for one in found if one is not None]


_HELD_OUT = TypeAdapter(HeldOut)
