"""Results of scoring a model: scores per item, means with standard errors, and the evaluation of a candidate."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

INFEASIBLE = -1e6  # fitness of a candidate that barely violates a constraint: below that of every feasible one


def no_seconds() -> dict[str, float]:
    """Return a new `Evaluation.seconds` in which nothing has taken any time."""
    return {"merge": 0.0, "score": 0.0, "wait": 0.0}


class TaskError(ValueError):
    """A task cannot be used as requested; the message says what to change.

    Parameters
    ----------
    message
        The message. It may begin with a key of a search file: `fitness.held_out: ...`.
    task
        Name of the task, or of the group of tasks, that it is about; None: all tasks, or a key of another section.
    """

    key = "tasks"
    """The key of the `fitness` section whose value is at fault, unless the message begins with one."""

    def __init__(self, message: str, *, task: str | None = None) -> None:
        super().__init__(message)
        self.task = task


class EngineUnavailable(RuntimeError):
    """The program that computes answers cannot be started, whatever the model; the message says why in one line."""


@dataclass(frozen=True)
class Estimate:
    """A value and its standard error, both in the unit of the scores."""

    value: float
    standard_error: float


def mean(scores: npt.ArrayLike) -> Estimate:
    """The plain mean.

    The usual error s/√I is 0 when all items agree, although 8 right answers out of 8 do not prove perfection. For
    scores within [0, 1] the error therefore includes half a pseudo-item at 0 and half a pseudo-item at 1 (Jeffreys'
    prior). With I items and x̃ the mean of items and pseudo-items,

        ṽ = (Σ x² + ½) / (I + 1) − x̃²,      standard error = √(ṽ / (I + 2)).

    For 0/1 scores this is exactly the standard deviation of the Beta(½ + right, ½ + wrong) posterior. The
    value is the plain mean.

    Parameters
    ----------
    scores
        float[I]; I >= 1. If any score is outside [0, 1], the error is s/√I (infinite for a single item).

    Raises
    ------
    ValueError
        No scores, or scores that are not finite.
    """
    score_I = np.asarray(scores, np.float64).ravel()
    if score_I.size == 0:
        raise ValueError("there are no scores to average: ask at least one item")
    if not np.isfinite(score_I).all():
        raise ValueError("scores contain NaN or infinity: leave failed items out")
    count = score_I.size
    value = float(score_I.mean())
    if score_I.min() >= 0 and score_I.max() <= 1:
        centre = (score_I.sum() + 0.5) / (count + 1)
        variance = (np.square(score_I).sum() + 0.5) / (count + 1) - centre**2
        return Estimate(value, math.sqrt(variance / (count + 2)))
    if count == 1:
        return Estimate(value, math.inf)
    return Estimate(value, float(score_I.std(ddof=1)) / math.sqrt(count))


Flaws: TypeAlias = Mapping[str, Mapping[str, int]]
"""How many items of each task had an answer that says less than it should: the kind, the task's name, the count.

`cut`: the prompt is longer than the model reads and lost its beginning; `truncated`: the generated text ended at the
limit and not at a stop; `unscored`: the metric had no value, which counts as 0. Tasks without such items are left out.
"""
FLAWS = ("cut", "truncated", "unscored")


def most_flaws(several: Iterable[Flaws]) -> Flaws:
    """Return, for each kind and task, the largest count of several models that were asked the same items."""
    found: dict[str, dict[str, int]] = {}
    for flaws in several:
        for kind, counts in flaws.items():
            for task, count in counts.items():
                tasks = found.setdefault(kind, {})
                tasks[task] = max(count, tasks.get(task, 0))
    return found


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
        The model's answer to each item as short text: length I where answers were wanted, else 0.
    flaws
        How many prompts were cut, texts truncated, and items without a score.
    """

    items: tuple[str, ...]
    scores: npt.NDArray[np.float32]
    forward_seconds: float
    answers: tuple[str, ...] = ()
    flaws: Flaws = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.scores.shape != (len(self.items),):
            raise ValueError(
                f"scores have shape {self.scores.shape} for {len(self.items)} items: give one score per item"
            )


def _no_scores() -> npt.NDArray[np.float32]:
    return np.zeros(0, np.float32)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The outcome of evaluating one candidate.

    Attributes
    ----------
    status
        `ok`; `failed` (see `reason`); `stopped` early, with the items answered so far; `step`: a step of a search by
        gradients, which has losses and derivatives but no scores.
    objectives, standard_errors
        One value per objective, all maximised, in the unit of the metrics; empty when failed.
    shares
        Weights of several objectives in `fitness`, summing to 1; empty for a single objective.
    violation
        Constraint violation: by how much scores are below the lowest acceptable ones, summed; 0 if none is.
    items, scores
        Item ids and float32[I] scores.
    answers
        The answer to each item, as on held-out items; empty where answers were not wanted.
    gradient
        For a step: the derivatives of its loss by the genes, float[G]; its objective is the negated loss, its scores
        are the items' negated losses.
    seconds
        Wall-clock seconds by activity: `merge`, `score`, `wait`.
    flaws
        How many prompts were cut, texts truncated, and items without a score; not kept when answers to more items come.
    """

    status: Literal["ok", "failed", "stopped", "step"]
    objectives: tuple[float, ...] = ()
    standard_errors: tuple[float, ...] = ()
    items: tuple[str, ...] = ()
    scores: npt.NDArray[np.float32] = field(default_factory=_no_scores)
    seconds: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""
    shares: tuple[float, ...] = ()
    violation: float = 0.0
    answers: tuple[str, ...] = ()
    gradient: tuple[float, ...] = ()
    flaws: Flaws = field(default_factory=dict)

    @property
    def has_scores(self) -> bool:
        """Whether there are scores to judge: not for a failed evaluation, nor for a step of a gradient search."""
        return self.status in ("ok", "stopped")

    @property
    def fitness(self) -> float:
        """One number to rank by: larger is better, nan when the evaluation failed.

        The objective, or the weighted sum of several; below `INFEASIBLE` where a constraint is violated.
        """
        if self.status == "failed" or not self.objectives:
            return math.nan
        return INFEASIBLE - self.violation if self.violation > 0 else self.value

    @property
    def value(self) -> float:
        """The objective, or the weighted sum of several, constraints ignored; there must be at least one."""
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
        """Return the same candidate with answers to more items; its objectives have to be judged again."""
        return Evaluation(
            self.status,
            items=self.items + more.items,
            scores=np.concatenate((self.scores, more.scores)),
            seconds={name: value + more.seconds.get(name, 0.0) for name, value in self.seconds.items()},
        )

    @classmethod
    def failed(cls, reason: str, seconds: Mapping[str, float] | None = None) -> Evaluation:
        """Return an evaluation without scores, with the reason in one line."""
        return cls(status="failed", reason=reason, seconds=dict(seconds or {}))
