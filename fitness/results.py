"""What scoring a model gives: per-item scores, and the evaluation a search works with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

INFEASIBLE = -1e6  # fitness of a candidate that hardly misses a floor: below that of all that keep theirs


def no_seconds() -> dict[str, float]:
    """Return a new `Evaluation.seconds` in which nothing has taken any time."""
    return {"merge": 0.0, "score": 0.0, "wait": 0.0}


class TaskError(ValueError):
    """A task cannot be used as asked; the message says what to change."""


@dataclass(frozen=True, eq=False)
class ItemScores:
    """Scores of one model on some items.

    Attributes
    ----------
    items
        Item ids, in the order asked for; length I.
    scores
        float32[I], in the unit of each item's metric (accuracy: 0 or 1); higher is better.
    forward_seconds
        Time spent inside the model.
    answers
        What the model answered to each item, as short text, where that was asked for: length I, else 0.
    """

    items: tuple[str, ...]
    scores: npt.NDArray[np.float32]
    forward_seconds: float
    answers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.scores.shape != (len(self.items),):
            raise ValueError(
                f"scores have shape {self.scores.shape} for {len(self.items)} items: give one score per item"
            )


def _no_scores() -> npt.NDArray[np.float32]:
    return np.zeros(0, np.float32)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What became of one candidate.

    Attributes
    ----------
    status
        `ok`; `failed` (see `reason`); `stopped` early, with the items answered until then.
    objectives, standard_errors
        One value per objective, all maximised, in the unit of the metrics; empty when failed.
    shares
        What each of several objectives counts for in `fitness`, summing to 1; empty when there is one.
    violation
        By how much it misses the floors, summed; 0 if it keeps them all.
    items, scores
        Item ids and float32[I] scores.
    answers
        What was answered to each item, for votes; empty where that was not asked for.
    seconds
        Wall-clock seconds by activity: `merge`, `score`, `wait`.
    """

    status: Literal["ok", "failed", "stopped"]
    objectives: tuple[float, ...] = ()
    standard_errors: tuple[float, ...] = ()
    items: tuple[str, ...] = ()
    scores: npt.NDArray[np.float32] = field(default_factory=_no_scores)
    seconds: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""
    shares: tuple[float, ...] = ()
    violation: float = 0.0
    answers: tuple[str, ...] = ()

    @property
    def fitness(self) -> float:
        """One number to rank by: larger is better, nan when the evaluation failed.

        The objective, or the weighted sum of several; below `INFEASIBLE` where a floor is missed.
        """
        if self.status == "failed" or not self.objectives:
            return math.nan
        return INFEASIBLE - self.violation if self.violation > 0 else self.value

    @property
    def value(self) -> float:
        """The objective, or the weighted sum of several, whatever the floors say; there must be one."""
        if not self.shares:
            return self.objectives[0]
        return math.fsum(share * value for share, value in zip(self.shares, self.objectives, strict=True))

    @property
    def standard_error(self) -> float:
        """The standard error of `value`; the objectives' errors count as independent."""
        if not self.shares:
            return self.standard_errors[0]
        return math.hypot(*(share * error for share, error in zip(self.shares, self.standard_errors, strict=True)))

    def with_more(self, more: Evaluation) -> Evaluation:
        """The same candidate with answers to further items; what they say of its score has to be judged anew."""
        return Evaluation(
            self.status,
            items=self.items + more.items,
            scores=np.concatenate((self.scores, more.scores)),
            seconds={name: value + more.seconds.get(name, 0.0) for name, value in self.seconds.items()},
        )

    @classmethod
    def failed(cls, reason: str, seconds: Mapping[str, float] | None = None) -> Evaluation:
        """An evaluation that gave no scores, with the reason in one line."""
        return cls(status="failed", reason=reason, seconds=dict(seconds or {}))
