"""Rows of the final table that a search file asks for (`table`): the vote of an ensemble, and the greedy soup.

The vote is that of GENOME+ (arXiv 2503.01155), whose last population answers together: for each item the answer that
most members give. An ensemble costs as much to run as all its models together, so it is a row of the held-out table
beside the found recipe and never the result. It asks each member the held-out items once.

The greedy soup (Wortsman et al. 2022, arXiv 2203.05482) is a baseline: the models, best first, join their average one
by one, each if the score on all search items does not fall. It asks as many merges as there are models, less one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from evomerge.config.search_file import SearchConfig
from evomerge.runs.result import Entry
from fitness.functions.suite import FunctionSuite
from fitness.results import Evaluation, most_flaws
from search_spaces.recipes.baselines import weighted_recipe
from search_spaces.recipes.layout import ModelLayout

if TYPE_CHECKING:
    from fitness.tasks.suite import TaskSuite


def check_answers(config: SearchConfig, suite: TaskSuite | FunctionSuite) -> None:
    """Refuse a vote on tasks, and a strategy that compares answers to them, where there is no one answer per item.

    Raises
    ------
    ValueError
        If a task's metric does not follow from one answer per item.
    """
    wanted = {
        "table.ensemble: models cannot vote on": ("leave ensemble out", config.table.ensemble is not None),
        f"strategy.kind {config.strategy.named_kind}: answers cannot be compared on": (
            "write strategy.kind: grid",
            config.strategy.reads_answers,
        ),
    }
    for what, (remedy, is_wanted) in wanted.items():
        for name, metric in suite.metrics.items() if is_wanted else ():
            obstacle = suite.vote_obstacle(name)
            if obstacle is not None:
                raise ValueError(
                    f"{what} task {name}, its metric {metric.partition(',')[0]} {obstacle}; {remedy}, or set the "
                    "task's metric to acc or exact_match"
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


def greedy_soup(
    models: Mapping[str, str],
    layout: ModelLayout | int,
    out_dtype: str,
    sources: Sequence[Entry],
    score: Callable[[Entry], float],
    *,
    vocabulary: str | None = None,
) -> Entry:
    """Return the greedy soup of the models.

    Parameters
    ----------
    models
        Name to reference, the base first.
    layout, out_dtype
        Of the merge.
    sources
        Each model unchanged, under its name.
    score
        Of an entry, on all search items; larger is better.
    vocabulary
        The search's policy, where the models' vocabularies differ.
    """
    own = {source.name: score(source) for source in sources}
    ranked = sorted(own, key=lambda name: -own[name])
    soup, best = ranked[:1], own[ranked[0]]
    entry = next(source for source in sources if source.name == ranked[0])
    for name in ranked[1:]:
        weights = dict.fromkeys([*soup, name], 1 / (len(soup) + 1))
        recipe = weighted_recipe("linear", models, layout, weights, out_dtype=out_dtype)
        tried = Entry("greedy soup", "greedy_soup", replace(recipe, tokenizer_source=vocabulary))
        value = score(tried)
        if value >= best:
            soup, best, entry = [*soup, name], value, tried
    return Entry("greedy soup", "greedy_soup", entry.recipe)
