"""The best recipes of a search as an ensemble: the answer that most of them give.

After GENOME+ (arXiv 2503.01155), whose last population votes in this way. An ensemble costs as much to run as all its
models together, so it is a row of the held-out table beside the found recipe and never the result.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from evomerge.strategies import StrategyConfig
from fitness.functions.suite import FunctionSuite
from fitness.results import Evaluation, most_flaws

if TYPE_CHECKING:
    from fitness.tasks.suite import TaskSuite


def check(strategy: StrategyConfig, suite: TaskSuite | FunctionSuite) -> None:
    """Refuse a vote on tasks whose answers cannot be counted.

    Raises
    ------
    ValueError
        If a task's metric does not follow from one answer per item.
    """
    if not strategy.ensemble_size:
        return
    for name, metric in suite.metrics.items():
        obstacle = suite.vote_obstacle(name)
        if obstacle is not None:
            raise ValueError(
                f"strategy.ensemble: models cannot vote on task {name}, its metric {metric.partition(',')[0]} "
                f"{obstacle}; leave ensemble out, or set the task's metric to acc or exact_match"
            )


def vote(members: Sequence[Evaluation]) -> Evaluation:
    """Return for each item the score of the answer that most members give.

    If several answers have the most votes, the one of the best-ranked member among them counts. Equal answers have
    equal scores, so the vote itself is not scored.

    Parameters
    ----------
    members
        Evaluations with answers, on the same items; best member first.
    """
    items = members[0].items
    scores = np.empty(len(items), np.float32)
    answers = []
    for at in range(len(items)):
        given = [member.answers[at] for member in members]
        (answer, _), *_ = Counter(given).most_common(1)  # of equal counts the first one: the best-ranked member's
        answers.append(answer)
        scores[at] = members[given.index(answer)].scores[at]
    flaws = most_flaws(member.flaws for member in members)
    return Evaluation("ok", items=items, scores=scores, answers=tuple(answers), flaws=flaws)
