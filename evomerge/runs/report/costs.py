"""What each stage of a run has cost: answers, and time."""

from __future__ import annotations

from dataclasses import dataclass

from evomerge.runs.report.contents import Contents
from fitness.results import Evaluation

PURPOSES = {"parent": "sources", "confirm": "finalists", "held_out": "held-out items", "vote": "held-out items"}
"""Stage of a score beside the candidates, by its purpose."""
KINDS = {"founder": "founders", "gradient": "gradient steps"}
"""Stage of a candidate, by its kind; of all others it is "candidates"."""
ORDER = ("sources", "founders", "gradient steps", "candidates", "finalists", "held-out items")


@dataclass
class Cost:
    """What one stage has cost: merges scored, answers asked, seconds by activity."""

    stage: str
    merges: int = 0
    answers: int = 0
    merging: float = 0.0
    scoring: float = 0.0
    waiting: float = 0.0

    def add(self, evaluation: Evaluation, known: int = 0) -> None:
        """Add an evaluation, `known` of whose answers were asked before."""
        self.merges += 1
        self.answers += len(evaluation.items) - known
        self.merging += evaluation.seconds.get("merge", 0.0)
        self.scoring += evaluation.seconds.get("score", 0.0)
        self.waiting += evaluation.seconds.get("wait", 0.0)

    @property
    def seconds(self) -> float:
        """All its seconds."""
        return self.merging + self.scoring + self.waiting


def costs(contents: Contents) -> list[Cost]:
    """Return the cost of each stage that there was, in their order."""
    history = contents.history
    stages = {name: Cost(name) for name in ORDER}
    answered: dict[str, int] = {}  # by recipe
    for identity, told in history.told.items():
        if told.cached:
            continue
        asked = history.asked[identity]
        known = answered.get(asked.recipe, 0) if asked.candidate.kind == "again" else 0
        stages[KINDS.get(asked.candidate.kind, "candidates")].add(told.evaluation, known)
        if told.evaluation.status == "ok":
            answered[asked.recipe] = len(told.evaluation.items)
    for (purpose, _), evaluation in history.reference_scores.items():
        stages[PURPOSES[purpose]].add(evaluation)
    return [cost for cost in stages.values() if cost.merges]


def overhead(contents: Contents) -> float:
    """Return the seconds of searching that went to neither merging, scoring nor waiting."""
    return contents.history.seconds["overhead"]
