"""A tracker: a line in a text file for each candidate that is better than all before."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from evomerge.trackers.base import register_tracker


@register_tracker
class ImprovementsConfig(BaseModel):
    """Improvements, in RUN/improvements.txt."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
    kind: Literal["improvements"] = "improvements"

    def build(self):
        return Improvements()


class Improvements:
    def start(self, run, config):
        self.file = run / "improvements.txt"

    def told(self, history, told):
        if history.best == told.candidate:
            with self.file.open("a", encoding="utf-8") as file:
                print(told.candidate, f"{told.evaluation.value:.3f}", file=file)

    def end(self, result):
        pass
