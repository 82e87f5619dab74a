"""A gradient step on several workers at once: each takes part of its items; losses and derivatives are added up.

The number of parts is fixed when the pool starts, and parts are added in their order, so a step's numbers do not depend
on which worker is faster or dies. Another number of workers changes them by rounding only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from evomerge.workers.base import Pool, Request
from fitness.results import Evaluation


def step_evaluation(
    total: float,
    items: tuple[str, ...],
    losses: npt.NDArray[np.float32],
    gradient: Sequence[float],
    seconds: dict[str, float] | None = None,
) -> Evaluation:
    """Return the evaluation of a step.

    Parameters
    ----------
    total
        The weighted sum of the losses, with penalties; the objective is its negative.
    items, losses
        Item ids, and the loss of each, float32[I].
    gradient
        The derivatives of `total` by the genes.
    seconds
        See `Evaluation`.
    """
    error = float(losses.std(ddof=1) / np.sqrt(losses.size)) if losses.size > 1 else math.inf
    return Evaluation(
        "step",
        objectives=(-total,),
        standard_errors=(error,),
        items=items,
        scores=-losses,
        seconds=seconds or {},
        gradient=tuple(gradient),
    )


def split(request: Request, parts: int) -> list[Request]:
    """Return a step's parts: every n-th item from the first, the second, ... on, as many of each length."""
    count = min(parts, len(request.items))
    return [replace(request, items=request.items[first::count], whole=request.items) for first in range(count)]


def joined(request: Request, parts: Sequence[Evaluation]) -> Evaluation:
    """Return a step's evaluation from those of its parts in order; a failed one fails the step."""
    failed = next((part for part in parts if part.status == "failed"), None)
    seconds = {name: max(part.seconds.get(name, 0.0) for part in parts) for name in parts[0].seconds}
    if failed is not None:
        return replace(failed, seconds=seconds)
    losses = np.zeros(len(request.items), np.float32)
    for first, part in enumerate(parts):
        losses[first :: len(parts)] = -part.scores
    total = math.fsum(-part.objectives[0] for part in parts)
    gradient: list[float] = np.sum([part.gradient for part in parts], axis=0).tolist()
    return step_evaluation(total, request.items, losses, gradient, seconds)


@dataclass(eq=False)
class _Step:
    """A step whose parts are being computed."""

    tag: int
    request: Request
    parts: list[Evaluation | None] = field(default_factory=list)


class StepPartsPool:
    """Computes each step on several workers of another pool at once, and everything else as that does.

    Parameters
    ----------
    pool
        The workers.
    parts
        Into how many parts a step is split: the number of workers.
    """

    def __init__(self, pool: Pool, parts: int) -> None:
        self.pool, self.parts = pool, parts
        self._places: dict[int, tuple[_Step, int]] = {}  # by the part's tag, below 0
        self._last = 0

    @property
    def free(self) -> int:
        """How many more recipes can be scored now."""
        return self.pool.free

    def submit(self, tag: int, request: Request) -> None:
        """Queue a recipe; a step by its parts."""
        if request.gradient_at is None or self.parts == 1:
            self.pool.submit(tag, request)
            return
        parts = split(request, self.parts)
        step = _Step(tag, request, [None] * len(parts))
        for place, part in enumerate(parts):
            self._last -= 1
            self._places[self._last] = step, place
            self.pool.submit(self._last, part)

    def wait(self) -> list[tuple[int, Evaluation]]:
        """Wait as the pool does; return what is scored, and steps whose last part is there."""
        found = []
        for tag, evaluation in self.pool.wait():
            if tag not in self._places:
                found.append((tag, evaluation))
                continue
            step, place = self._places.pop(tag)
            step.parts[place] = evaluation
            done = [part for part in step.parts if part is not None]
            if len(done) == len(step.parts):
                found.append((step.tag, joined(step.request, done)))
        return found

    def close(self) -> None:
        """Stop the workers."""
        self.pool.close()
