"""The `tensorboard` tracker: event files beside the run's other files. `tensorboard --logdir RUN` shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, field_validator

from evomerge.extras import require
from evomerge.trackers.base import name_in_run, register_tracker
from evomerge.trackers.scalars import ScalarTracker


@register_tracker
class TensorboardConfig(BaseModel):
    """Scalars, the search file and the best recipe for TensorBoard; needs the extra `tensorboard`."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: Literal["tensorboard"] = "tensorboard"
    folder: str = "tensorboard"
    """Name of the folder in the run directory."""

    @field_validator("folder")
    @classmethod
    def _in_the_run(cls, name: str) -> str:
        return name_in_run(name)

    def check(self) -> None:
        """Raise MissingExtraError unless the package is installed."""
        require("tensorboard", "tensorboard", "trackers: kind tensorboard")

    def build(self) -> ScalarTracker:
        """Return the tracker."""
        return ScalarTracker(TensorboardStore(self.folder))


class TensorboardStore:
    """Event files in one folder, a new one each session; a torn last record of an earlier one is not read.

    Parameters
    ----------
    folder
        Name of the folder in the run directory.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def open(self, run: Path, config: Mapping[str, Any]) -> Mapping[str, int]:
        """Open a new event file; write the settings, if the earlier files do not hold them."""
        from torch.utils.tensorboard import SummaryWriter

        folder = run / self._folder
        last, texts = _held(folder)
        self._writer = SummaryWriter(str(folder))
        self._step = max(last.values(), default=0)
        if "search_file/text_summary" not in texts:
            self._text("search_file", yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True))
        return last

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Write numbers, and flush them: a killed process loses at most the ones of one step."""
        self._step = step
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def keep(self, files: Sequence[Path]) -> None:
        """Show the text files; TensorBoard has no place for a web page."""
        for file in files:
            if file.suffix != ".html":
                self._text(file.name, file.read_text(encoding="utf-8"))

    def close(self, finished: bool) -> None:
        """Close the event file."""
        self._writer.close()

    def _text(self, name: str, text: str) -> None:
        """Write a text as it is: as a block of Markdown code."""
        self._writer.add_text(name, "".join(f"    {line}\n" for line in text.splitlines()), self._step)


def _held(folder: Path) -> tuple[dict[str, int], set[str]]:
    """Return the last step of each scalar in a folder's event files, and the names of the texts in them."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    last: dict[str, int] = {}
    texts = set()
    for file in sorted(folder.glob("events.out.tfevents.*")):
        for event in LegacyEventFileLoader(str(file)).Load():
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    last[value.tag] = max(event.step, last.get(value.tag, 0))
                else:
                    texts.add(value.tag)
    return last, texts
