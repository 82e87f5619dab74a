"""What scoring a model gives: per-item scores, and the evaluation a search works with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt


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
    """

    items: tuple[str, ...]
    scores: npt.NDArray[np.float32]
    forward_seconds: float

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
    items, scores
        Item ids and float32[I] scores.
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

    @property
    def fitness(self) -> float:
        """The first objective; nan when the evaluation failed."""
        return self.objectives[0] if self.status != "failed" and self.objectives else math.nan

    @classmethod
    def failed(cls, reason: str, seconds: Mapping[str, float] | None = None) -> Evaluation:
        """An evaluation that gave no scores, with the reason in one line."""
        return cls(status="failed", reason=reason, seconds=dict(seconds or {}))
