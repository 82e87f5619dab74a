"""The held-out table and what else a finished search reports."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.runs.run import LogError
from evomerge.runs.verdict import Comparison, Verdict, verdict
from fitness.estimation.intervals import interval, paired_test, weighted_interval, weighted_paired_test
from fitness.objectives import by_task
from fitness.results import Evaluation
from search_spaces.recipes import mergekit_yaml
from search_spaces.recipes.recipe import Recipe

ALL_TASKS = "all"
ENSEMBLE_NOTE = (
    "An ensemble is not a recipe: it gives the answer of most of its models, and all of them have to be run."
)
SEARCHED = ("found", "mean", "front", "ensemble")
"""Kinds of contenders that come from the search; the others are what it is compared with."""


@dataclass(frozen=True)
class Contender:
    """Something that the final table has rows for.

    `kind`: found, mean, front, ensemble (of several recipes), source, uniform, task_arithmetic or start.
    """

    name: str
    kind: str


@dataclass(frozen=True)
class Entry(Contender):
    """One recipe that the final table has rows for."""

    recipe: Recipe


@dataclass(frozen=True)
class Row:
    """One line of the held-out table.

    `score` with its 95 % interval `low`..`high` over `items` items of `task` (`all`: the weighted mean of several
    tasks). `p_value`: for the found recipe, of the paired test against the best of the sources and baselines; for
    any other row, of the paired test between it and the found recipe.
    """

    name: str
    kind: str
    task: str
    score: float
    low: float
    high: float
    items: int
    p_value: float


@dataclass(frozen=True)
class Result:
    """What `RUN/result.json` holds."""

    held_out: list[Row]
    best: str
    evaluations: int
    item_evaluations: int
    seconds: Mapping[str, float]
    search_score: float
    """Score of the found recipe on all search items."""
    selection_bias: float
    """`search_score` minus the held-out score: the upward bias from selecting the best."""
    search_items: int = 0
    """Items asked before the held-out ones: of sources, candidates, steps and finalists."""
    verdict: Verdict | None = None
    """Whether the search was worth it, and which row's recipe is `best.yaml`; None in results of older versions."""

    def to_json(self) -> str:
        """Return the JSON text, one row a line."""
        data = asdict(self)
        rows = data.pop("held_out")
        head = json.dumps(data, indent=1)[1:]
        lines = ",\n  ".join(json.dumps(row) for row in rows)
        return f'{{\n "held_out": [\n  {lines}\n ],{head}\n'

    @classmethod
    def read(cls, file: Path) -> Result:
        """Return the result that `to_json` wrote.

        Raises
        ------
        LogError
            If the file is damaged.
        """
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
            rows = [Row(**row) for row in data.pop("held_out")]
            return cls(held_out=rows, verdict=_read_verdict(data.pop("verdict", None)), **data)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise LogError(
                f"{file} cannot be read ({error}); remove it, and resume the run to write it again"
            ) from None


def table(scored: Sequence[tuple[Contender, Evaluation]], weights: Mapping[str, float]) -> list[Row]:
    """Make the held-out table: the found recipe (first in `scored`), then the others, task by task."""
    entries = [(entry, by_task(evaluation)) for entry, evaluation in scored]
    found = entries[0][1]
    rivals = [scores for entry, scores in entries if entry.kind not in SEARCHED]
    rows = []
    for task in [*weights, ALL_TASKS] if len(weights) > 1 else list(weights):
        use = weights if task == ALL_TASKS else {task: 1.0}
        best_rival = max(rivals, key=lambda scores: _mean(scores, use))
        for entry, scores in entries:
            low, high = _interval(scores, use)
            against = best_rival if scores is found else scores
            p_value = _p_value(found, against, use)
            items = sum(len(scores[name]) for name in use)
            rows.append(Row(entry.name, entry.kind, task, _mean(scores, use), low, high, items, p_value))
    return rows


def verdict_on(
    scored: Sequence[tuple[Contender, Evaluation]], weights: Mapping[str, float], missed: Mapping[str, str] = {}
) -> Verdict:
    """Compare the found recipe with all that do not come from the search, over all tasks.

    Parameters
    ----------
    scored
        Rows of the final table, the found recipe first.
    weights
        Of the tasks.
    missed
        Which rows miss a minimum score, and by how much.
    """
    (found, evaluation), *others = scored
    own = by_task(evaluation)
    rivals = [(entry, other) for entry, other in others if entry.kind not in SEARCHED and entry.name not in missed]
    scores = {entry.name: by_task(other) for entry, other in rivals}
    return verdict(
        found.name,
        list(scores),
        lambda name: _mean(own, weights) - _mean(scores[name], weights),
        lambda name: _p_value(own, scores[name], weights),
        same=next((entry.name for entry, _ in rivals if _recipe(entry) == _recipe(found) is not None), None),
        missed=missed.get(found.name),
    )


def _recipe(entry: Contender) -> Recipe | None:
    return entry.recipe if isinstance(entry, Entry) else None


ROWS = "rows.json"
"""Name of the file in a run directory that holds the recipes of the final table's rows."""


def rows_text(recipes: Mapping[str, Recipe]) -> str:
    """Return the recipes of the table's rows, by their names, as JSON of recipe files."""
    return json.dumps({name: mergekit_yaml.dump(recipe) for name, recipe in recipes.items()}, indent=1) + "\n"


def read_rows(folder: Path) -> dict[str, Recipe]:
    """Return the recipes of the rows of a run's final table, by their names; none before the search has ended.

    Raises
    ------
    LogError
        If the file is damaged.
    """
    file = folder / ROWS
    if not file.is_file():
        return {}
    try:
        texts = dict(json.loads(file.read_text(encoding="utf-8")))
        return {str(name): mergekit_yaml.parse(text, f"{file}: {name}") for name, text in texts.items()}
    except (OSError, ValueError, TypeError) as error:
        raise LogError(f"{file} cannot be read ({error}); remove it, and resume the run to write it again") from None


def _read_verdict(data: dict[str, Any] | None) -> Verdict | None:
    if data is None:
        return None
    comparisons = tuple(Comparison(**one) for one in data.pop("comparisons"))
    return Verdict(comparisons=comparisons, **data)


def paired_p_value(one: Evaluation, other: Evaluation, weights: Mapping[str, float]) -> float:
    """Return the p-value of the paired test between two recipes on the same items, over all tasks."""
    return _p_value(by_task(one), by_task(other), weights)


Scores = Mapping[str, np.ndarray]


def _mean(scores: Scores, weights: Mapping[str, float]) -> float:
    return float(sum(w * scores[task].mean() for task, w in weights.items()) / sum(weights.values()))


def _interval(scores: Scores, weights: Mapping[str, float]) -> tuple[float, float]:
    if len(weights) == 1:
        return interval(scores[next(iter(weights))])
    return weighted_interval([(scores[task], weight) for task, weight in weights.items()])


def _p_value(found: Scores, other: Scores, weights: Mapping[str, float]) -> float:
    if len(weights) == 1:
        task = next(iter(weights))
        return paired_test(found[task], other[task])
    return weighted_paired_test([(found[task], other[task], weight) for task, weight in weights.items()])
