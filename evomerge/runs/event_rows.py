"""Events as rows of the log: what a row holds, how it is read back, and the checksum that chains the rows.

Each row's checksum covers the row and the checksum before it. So a row that was altered, removed, inserted, repeated or
moved is noticed when the log is read. The log also keeps the number of its events and the last checksum.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, TypeAdapter

from evomerge.strategies.base import Candidate, CandidateKind, Genotype
from fitness.results import Evaluation

FIRST_CHECKSUM = hashlib.sha256(b"evomerge event log").digest()
"""What stands for the checksum before the first event."""

Purpose = Literal["parent", "confirm", "held_out", "vote"]
OF_HELD_OUT_ITEMS: tuple[Purpose, ...] = ("held_out", "vote")
"""Purposes of scores on held-out items; the others are of search items."""


@dataclass(frozen=True, eq=False)
class Asked:
    """A candidate was proposed; `recipe` is the hash of what its genotype decodes to."""

    candidate: Candidate
    recipe: str


@dataclass(frozen=True, eq=False)
class Told:
    """A candidate's evaluation was told to the strategy.

    `cached` if an equal recipe had been scored before; `elapsed` is the seconds of searching up to here,
    summed over all sessions.
    """

    candidate: int
    evaluation: Evaluation
    cached: bool
    elapsed: float


@dataclass(frozen=True, eq=False)
class ReferenceScore:
    """A recipe that is scored beside the candidates, and for what.

    `purpose`: a source on all search items before the search (`parent`), a finalist on all search items after it
    (`confirm`), any row of the final table on the held-out items (`held_out`), or a member of an ensemble on these,
    with its answers (`vote`).
    """

    purpose: Purpose
    recipe: str
    evaluation: Evaluation


Event = Asked | Told | ReferenceScore


class _Data(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _AskedData(_Data):
    kind: CandidateKind
    generation: int
    recipe: str
    parents: list[int] = []


class _EvaluationData(_Data):
    status: Literal["ok", "failed", "stopped", "step"]
    objectives: list[float | None]  # JSON has no NaN
    standard_errors: list[float | None]
    seconds: dict[str, float]
    reason: str
    shares: list[float]
    violation: float
    answers: list[str] = []
    gradient: list[float] = []
    flaws: dict[str, dict[str, int]] = {}

    @classmethod
    def of(cls, evaluation: Evaluation) -> _EvaluationData:
        return cls(
            status=evaluation.status,
            objectives=[value if math.isfinite(value) else None for value in evaluation.objectives],
            standard_errors=[value if math.isfinite(value) else None for value in evaluation.standard_errors],
            seconds=dict(evaluation.seconds),
            reason=evaluation.reason,
            shares=list(evaluation.shares),
            violation=evaluation.violation,
            answers=list(evaluation.answers),
            gradient=list(evaluation.gradient),
            flaws={kind: dict(counts) for kind, counts in evaluation.flaws.items()},
        )

    def evaluation(self, items: tuple[str, ...], scores: npt.NDArray[np.float32]) -> Evaluation:
        if len(self.answers) not in (0, len(items)):
            raise ValueError("a member of an ensemble has answers to other items than it was asked")
        return Evaluation(
            status=self.status,
            objectives=tuple(math.nan if value is None else value for value in self.objectives),
            standard_errors=tuple(math.nan if value is None else value for value in self.standard_errors),
            items=items,
            scores=scores,
            seconds=self.seconds,
            reason=self.reason,
            shares=tuple(self.shares),
            violation=self.violation,
            answers=tuple(self.answers),
            gradient=tuple(self.gradient),
            flaws=self.flaws,
        )


class _ToldData(_Data):
    cached: bool
    elapsed: float
    evaluation: _EvaluationData


class _ReferenceData(_Data):
    purpose: Purpose
    recipe: str
    evaluation: _EvaluationData


_SOMETIMES = {"answers", "gradient", "flaws", "parents"}
"""Keys that are left out where they are empty, as they mostly are."""
_ITEMS = TypeAdapter(tuple[str, ...])


@dataclass(frozen=True)
class Row:
    """The columns of one event, without its number.

    Attributes
    ----------
    at
        Seconds since the epoch.
    items
        Checksum of the JSON text of the items that were asked; empty where none were.
    """

    kind: str
    candidate: int | None
    at: float
    data: str
    genotype: bytes | None
    items: bytes
    scores: bytes | None

    def checksum(self, before: bytes) -> bytes:
        """Return the checksum of this row after a row with the checksum `before`, 32 bytes."""
        digest = hashlib.sha256(before)
        for part in (self.kind, self.candidate, self.at, self.data, self.genotype, self.items, self.scores):
            raw = part if isinstance(part, bytes) else repr(part).encode()
            digest.update(f"{type(part).__name__} {len(raw)} ".encode())
            digest.update(raw)
        return digest.digest()


def row_of(event: Event, at: float, items: bytes) -> Row:
    """Return the row of an event that happened at a time; `items`: the checksum of its items."""
    if isinstance(event, Asked):
        one = event.candidate
        data: _Data = _AskedData(
            kind=one.kind, generation=one.generation, recipe=event.recipe, parents=list(one.parents)
        )
        genotype = np.asarray(one.genotype, dtype="<f8").tobytes()
        return Row("asked", one.id, at, _text(data), genotype, items, None)
    evaluation = _EvaluationData.of(event.evaluation)
    scores = np.asarray(event.evaluation.scores, dtype="<f4").tobytes()
    if isinstance(event, Told):
        data = _ToldData(cached=event.cached, elapsed=event.elapsed, evaluation=evaluation)
        return Row("told", event.candidate, at, _text(data), None, items, scores)
    data = _ReferenceData(purpose=event.purpose, recipe=event.recipe, evaluation=evaluation)
    return Row("reference", None, at, _text(data), None, items, scores)


def _text(data: _Data) -> str:
    values = data.model_dump()
    for part in (values, values.get("evaluation", {})):
        for key in _SOMETIMES & set(part):
            if not part[key]:
                del part[key]
    return json.dumps(values)


def event_of(row: Row, items: tuple[str, ...]) -> Event:
    """Return the event that a row holds.

    Raises
    ------
    ValueError
        If the row does not hold one.
    """
    if row.kind == "asked":
        asked = _AskedData.model_validate_json(row.data)
        if row.candidate is None:
            raise ValueError("a candidate has no number")
        genotype: Genotype = np.frombuffer(_bytes(row.genotype), dtype="<f8").astype(np.float64)
        candidate = Candidate(row.candidate, genotype, asked.kind, asked.generation, tuple(asked.parents))
        return Asked(candidate, asked.recipe)
    raw = _bytes(row.scores)
    if len(raw) != 4 * len(items):
        raise ValueError(f"candidate {row.candidate} has scores for other items than it was asked")
    scores = np.frombuffer(raw, dtype="<f4").astype(np.float32)
    if row.kind == "told":
        told = _ToldData.model_validate_json(row.data)
        if row.candidate is None:
            raise ValueError("a candidate has no number")
        return Told(row.candidate, told.evaluation.evaluation(items, scores), told.cached, told.elapsed)
    reference = _ReferenceData.model_validate_json(row.data)
    return ReferenceScore(reference.purpose, reference.recipe, reference.evaluation.evaluation(items, scores))


def _bytes(value: bytes | None) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError(f"an event has {value!r} in place of its numbers")
    return value


def items_text(items: Sequence[str]) -> str:
    """Return item ids as the log writes them."""
    return json.dumps(tuple(items))


def items_of(text: str) -> tuple[str, ...]:
    """Return the item ids that `items_text` wrote; raise ValueError for anything else."""
    return _ITEMS.validate_json(text, strict=True)


def items_checksum(text: str | None) -> bytes:
    """Return the checksum of the text of an item set; empty for no text."""
    return b"" if text is None else hashlib.sha256(text.encode()).digest()


def first_mistake(error: Exception) -> str:
    """Return one line for an error of reading a row."""
    listed: Any = getattr(error, "errors", None)
    if listed is None:
        return " ".join(str(error).split())
    first = listed(include_url=False, include_input=False)[0]
    place = ".".join(map(str, first["loc"]))
    return f"{place}: {first['msg']}" if place else str(first["msg"])
