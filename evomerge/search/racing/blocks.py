"""Items in blocks, and a candidate that is asked one block after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np

from fitness.items import positions_by_task
from fitness.results import Evaluation
from search_spaces.recipes.recipe import Recipe

Blocks = list[tuple[str, ...]]


def in_blocks(items: Sequence[str], block: int, seed: int) -> Blocks:
    """Return the items in random order, `block` of each task at a time; the last block takes what is left."""
    shuffled = _shuffled(items, seed)
    most = max(len(names) for names in shuffled)
    return _cut(shuffled, [*range(0, max(1, most // block) * block, block), most])


def in_rungs(items: Sequence[str], first: int, growth: float, seed: int, skipped: int = 0) -> Blocks:
    """Return the items in random order, so that the number asked of each task grows by a factor from block to block.

    Parameters
    ----------
    items
        Of all tasks.
    first
        Items of each task in the first block, where none is skipped.
    growth
        The factor, above 1.
    seed
        Decides the order.
    skipped
        How many of the first cuts are left out; the last block always takes what is left.
    """
    shuffled = _shuffled(items, seed)
    most = max(len(names) for names in shuffled)
    cuts = [count for rung in range(most) if (count := round(first * growth**rung)) < most]
    return _cut(shuffled, [0, *cuts[min(skipped, len(cuts)) :], most])


def _shuffled(items: Sequence[str], seed: int) -> list[list[str]]:
    """Return each task's items in random order."""
    rng = np.random.default_rng(seed)
    groups = positions_by_task(items).values()
    return [[items[places[at]] for at in rng.permutation(len(places))] for places in groups]


def _cut(tasks: Sequence[Sequence[str]], cuts: Sequence[int]) -> Blocks:
    return [tuple(item for names in tasks for item in names[a:b]) for a, b in pairwise(cuts)]


@dataclass
class RacingCandidate:
    """A candidate in a race.

    Attributes
    ----------
    tag
        Its tag in the pool.
    recipe
        None: the candidate has been told, and its answers are in the log.
    sample
        Whether the race may stop it; the distribution's mean is always asked everything.
    answers
        Item id to score, of the blocks so far.
    seconds
        See `Evaluation.seconds`, summed over the blocks.
    stopped
        Whether the race has stopped it.
    failed
        The reason, if it could not be scored.
    """

    tag: int
    recipe: Recipe | None
    sample: bool
    answers: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    stopped: bool = False
    failed: str | None = None

    def add(self, part: Evaluation) -> None:
        """Add a block's answers, or record that the candidate failed."""
        self.failed = part.reason if part.status == "failed" else None
        self.answers.update(zip(part.items, part.scores.tolist(), strict=True))
        for name, value in part.seconds.items():
            self.seconds[name] = self.seconds.get(name, 0.0) + value

    def result(self, items: Sequence[str]) -> Evaluation:
        """Return the answers to those of the items that it was asked, in their order."""
        if self.failed is not None:
            return Evaluation.failed(self.failed, self.seconds)
        asked = tuple(item for item in items if item in self.answers)
        scores = np.array([self.answers[item] for item in asked], np.float32)
        evaluation = Evaluation("ok", items=asked, scores=scores, seconds=self.seconds)
        return replace(evaluation, status="stopped") if self.stopped else evaluation
