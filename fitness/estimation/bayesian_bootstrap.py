"""Posterior draws of a candidate's remaining answers, given its answers so far.

If items are asked in random order, the remaining items are exchangeable with those asked. Their scores are drawn by a
Bayesian bootstrap (D. B. Rubin, "The Bayesian bootstrap", 1981): from a random distribution over the answers given and
one best and one worst answer. For 0/1 scores this is a Bernoulli distribution with a rate from
Beta(1 + right, 1 + wrong).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from fitness.items import positions_by_task
from fitness.objectives import by_task
from fitness.results import Evaluation


def posterior_draws(answered: Evaluation, items: Sequence[str], rng: np.random.Generator) -> Iterator[Evaluation]:
    """Yield draws of the answers to all items, without end; the caller judges them.

    Parameters
    ----------
    answered
        Answers to some of the items, at least one per task.
    items
        All items that the candidate can be asked.

    Raises
    ------
    ValueError
        A task has no answer.
    """
    given = dict(zip(answered.items, answered.scores.tolist(), strict=True))
    score_I = np.array([given.get(item, np.nan) for item in items], np.float32)
    open_I = np.isnan(score_I)
    seen = {task: np.append(scores, _ends(scores)) for task, scores in by_task(answered).items()}
    open_places = np.flatnonzero(open_I)
    groups = positions_by_task(items[at] for at in open_places.tolist())
    places = {task: open_places[where] for task, where in groups.items()}
    for task in places:
        if task not in seen:
            raise ValueError(f"no item of task {task!r} has an answer: ask some items of each task first")
    while True:
        drawn_I = score_I.copy()
        for task, where in places.items():
            share = rng.dirichlet(np.ones(len(seen[task])))
            drawn_I[where] = rng.choice(seen[task], len(where), p=share)
        yield replace(answered, status="ok", items=tuple(items), scores=drawn_I)


def _ends(scores: np.ndarray) -> tuple[float, float]:
    """The worst and the best possible answer; if scores are not in [0, 1], the worst and the best one given."""
    if scores.min() >= 0 and scores.max() <= 1:
        return 0.0, 1.0
    return float(scores.min()), float(scores.max())
