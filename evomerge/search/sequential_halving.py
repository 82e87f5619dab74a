"""Choosing among the finalists: sequential halving on fresh search items.

All finalists answer some items, the better half of them more, and so on. Each round costs the same, so that most
answers go to finalists that are hard to tell apart (Z. Karnin, T. Koren, O. Somekh, "Almost optimal exploration in
multi-armed bandits", ICML 2013). Deviations: answers from all rounds count, because the finalists that are left have
answered the same items; a finalist that is clearly worse than the leader leaves before its half does; and the last two
answer all items, or `MOST` of each task where there are more.

Items already used to select a finalist are asked last, because their scores are biased upward.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import numpy as np

from evomerge.runs.result import Entry
from fitness.estimation.subset import fresh_first
from fitness.items import positions_by_task
from fitness.results import Evaluation

MOST = 300
"""Items of one task that the last finalists are asked: the error of the difference of two of them is then about two
percentage points, and few searches find differences below that."""


def rounds(finalists: int) -> list[tuple[int, float]]:
    """Return for each round how many finalists it has, and the share of all items they have answered at its end."""
    left = [finalists]
    while left[-1] > 2:
        left.append((left[-1] + 1) // 2)
    cost = np.cumsum(1 / np.array(left))
    return list(zip(left, (cost / cost[-1]).tolist(), strict=True))


def in_order(items: Sequence[str], asked: Collection[str], rng: np.random.Generator) -> dict[str, list[str]]:
    """Return task name to its items in random order, the fresh ones before those that were asked already."""
    order = {}
    for task, places in positions_by_task(items).items():
        names = [items[at] for at in places]
        used = [at for at, name in enumerate(names) if name in asked]
        order[task] = [names[at] for at in fresh_first(len(names), used, rng)]
    return order


def best(
    finalists: Sequence[Entry],
    order: dict[str, list[str]],
    score: Callable[[Entry, tuple[str, ...]], Evaluation],
    *,
    answered: Callable[[Entry], bool] = lambda entry: False,
    clearly_worse: Callable[[Evaluation, Evaluation], bool] = lambda one, other: False,
) -> tuple[Entry, Evaluation]:
    """Return the best finalist, with its score on the items it was asked; of equally good ones, the first.

    Parameters
    ----------
    finalists
        With distinct recipes, at least one.
    order
        Task name to its items, in the order in which they are asked.
    score
        Asks a recipe the items that it has not answered yet, and judges all its answers to them.
    answered
        Whether a finalist has answered all items before. Only the best of these takes part: it is known for nothing.
    clearly_worse
        Whether an evaluation is so much worse than another on the same items that its finalist leaves at once.
    """
    items, few = _share(order, 1.0), {task: names[:MOST] for task, names in order.items()}
    known = [entry for entry in finalists if answered(entry)]
    leader = max(known, key=lambda entry: score(entry, items).fitness, default=None)  # the first of equals
    racing = [entry for entry in finalists if entry is leader or not answered(entry)]
    for left, share in rounds(len(racing)):
        if len(racing) == 1:
            break
        racing = _best_of(racing[:left], _share(few, share), score, clearly_worse)
    return racing[0], score(racing[0], items if racing[0] is leader else _share(few, 1.0))


def _share(order: dict[str, list[str]], share: float) -> tuple[str, ...]:
    return tuple(item for names in order.values() for item in names[: max(1, round(share * len(names)))])


def _best_of(
    racing: Sequence[Entry],
    items: tuple[str, ...],
    score: Callable[[Entry, tuple[str, ...]], Evaluation],
    clearly_worse: Callable[[Evaluation, Evaluation], bool],
) -> list[Entry]:
    """Return the finalists by their scores on some items, best first, without those that are clearly worse."""
    scored = [(entry, score(entry, items)) for entry in racing]
    scored.sort(key=lambda pair: -pair[1].fitness)  # stable
    leader = scored[0][1]
    return [entry for entry, evaluation in scored if evaluation is leader or not clearly_worse(evaluation, leader)]
