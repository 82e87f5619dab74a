"""What a search says about a recipe that it has found, in the terms of a model card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol


class ScoreRow(Protocol):
    """One row of a final table (`evomerge.runs.result.Row`): a model's held-out score on a task, with its interval."""

    @property
    def name(self) -> str:
        """The model, as the table calls it."""

    @property
    def task(self) -> str:
        """The task; ``all``: the weighted mean of several."""

    @property
    def score(self) -> float:
        """Mean over the items; larger is better."""

    @property
    def low(self) -> float:
        """Lower end of the 95 % interval."""

    @property
    def high(self) -> float:
        """Upper end of the 95 % interval."""

    @property
    def items(self) -> int:
        """Held-out items."""

    @property
    def p_value(self) -> float:
        """Of the paired test between the found recipe and this one."""


@dataclass(frozen=True)
class TaskFacts:
    """How a search has used a task.

    Attributes
    ----------
    name, metric
        The task, and its metric as lm-eval writes it (`name,filter`).
    lower_is_better
        Whether the metric was negated, so that larger scores are better in the tables.
    weight
        Share of the objective.
    shots
        Few-shot examples in each prompt.
    search, held_out
        Number of items on each side, and the splits that they come from.
    """

    name: str
    metric: str
    lower_is_better: bool
    weight: str
    shots: str
    search: str
    held_out: str


@dataclass(frozen=True)
class Provenance:
    """What a search says about one of its recipes.

    Attributes
    ----------
    origin
        How the recipe was found, as a sentence.
    row
        Its row in the final table; empty: it has none, because it was not scored on held-out items.
    verdict
        The verdict of the search, as a sentence; empty before its end.
    rows
        The whole final table.
    notes
        Sentences without which the table says more than it can.
    names
        What the tables call the models, by the recipe's references.
    tasks
        Each task of the search.
    settings
        What the search was, as name and value: strategy, candidates, seed and the like.
    versions
        Packages that affect numbers.
    """

    origin: str
    row: str = ""
    verdict: str = ""
    rows: Sequence[ScoreRow] = ()
    notes: Sequence[str] = ()
    names: Mapping[str, str] = field(default_factory=dict)
    tasks: Sequence[TaskFacts] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
