"""The held-out table and what else a finished search reports."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import ConfigDict, TypeAdapter

from evomerge.files.messages import counted
from evomerge.runs.event_rows import first_mistake
from evomerge.runs.run import LogError
from evomerge.runs.verdict import Verdict, verdict, verdict_without_test
from fitness.estimation.intervals import interval, paired_test, weighted_interval, weighted_paired_test
from fitness.items import is_whole_model
from fitness.objectives import by_task
from fitness.results import FLAWS, Evaluation
from search_spaces.recipes import mergekit_yaml
from search_spaces.recipes.recipe import Recipe

ALL_TASKS = "all"
FOUND, START = "found", "start"
"""Names of two rows of the final table; no model may have one of them, since rows and their recipes go by name."""
ENSEMBLE_NOTE = (
    "An ensemble is not a recipe: it gives the most frequent answer of its models, and all of them have to run."
)
NO_INTERVAL = "none"
"""In place of an interval, where a function has scored a model as a whole."""
RowKind = Literal["found", "mean", "front", "ensemble", "source", "uniform", "task_arithmetic", "greedy_soup", "start"]
"""What a row of the final table is; an ensemble is of several recipes."""
SEARCHED = ("found", "mean", "front", "ensemble")
"""Kinds of contenders that come from the search; the others are what it is compared with."""


@dataclass(frozen=True)
class Contender:
    """Something that the final table has rows for."""

    name: str
    kind: RowKind


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

    Of the items, `cut` had a prompt longer than the model reads, `truncated` a text that ended at the length limit, and
    `unscored` no score, which counts as 0.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    name: str
    kind: RowKind
    task: str
    score: float
    low: float
    high: float
    items: int
    p_value: float
    cut: int = 0
    truncated: int = 0
    unscored: int = 0

    @property
    def interval(self) -> str:
        """The interval in words; none where a function has scored the model as a whole."""
        return NO_INTERVAL if self.low == self.high and self.items == 1 else f"{self.low:.3f} .. {self.high:.3f}"


@dataclass(frozen=True)
class Result:
    """What `RUN/result.json` holds."""

    __pydantic_config__ = ConfigDict(extra="forbid")

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
    look: int = 1
    """Number of this table among those on the same held-out items; above 1 once a finished search was extended."""
    stages: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """What each stage has cost: `models` scored, `answers` asked and `seconds` of merging and scoring over all workers,
    beside the answers that were `expected` before the search, from `low` to `high`."""

    @property
    def notes(self) -> list[str]:
        """Sentences without which the table would say more than it can."""
        notes = [ENSEMBLE_NOTE] if any(row.kind == "ensemble" for row in self.held_out) else []
        if self.look > 1:
            notes.append(
                f"This table is number {self.look} on these held-out items, because the search was extended. Intervals "
                "and p-values do not account for that; a new search with other held-out items gives valid ones."
            )
        return [*notes, *_flaw_notes(self.held_out)]

    @property
    def selection(self) -> str:
        """The selection bias as a sentence; empty where models are scored as wholes, so that nothing is held out."""
        if self.held_out[0].interval == NO_INTERVAL:
            return ""
        return (
            f"search score of the found recipe {self.search_score:.3f}, "
            f"{self.selection_bias:+.3f} above its held-out score (selection bias)"
        )

    def to_json(self) -> str:
        """Return the JSON text, one row a line."""
        data = asdict(self)
        rows = data.pop("held_out")
        head = json.dumps(data, indent=1)[1:]
        lines = ",\n  ".join(json.dumps(row) for row in rows)
        return f'{{\n "held_out": [\n  {lines}\n ],{head}\n'

    @classmethod
    def read(cls, file: str | Path) -> Result:
        """Return the result that `to_json` wrote.

        Raises
        ------
        LogError
            If the file is damaged.
        """
        try:
            return _RESULT.validate_json(Path(file).read_bytes())
        except (OSError, ValueError) as error:
            raise LogError(
                f"{file} cannot be read ({first_mistake(error)}); remove it, and resume the run to write it again"
            ) from None


def table(scored: Sequence[tuple[Contender, Evaluation]], weights: Mapping[str, float]) -> list[Row]:
    """Make the held-out table: the found recipe (first in `scored`), then the others, task by task."""
    whole = is_whole_model(scored[0][1].items[0])
    entries = [(entry, by_task(evaluation)) for entry, evaluation in scored]
    flaws = [evaluation.flaws for _, evaluation in scored]
    found = entries[0][1]
    rivals = [scores for entry, scores in entries if entry.kind not in SEARCHED]
    rows = []
    for task in [*weights, ALL_TASKS] if len(weights) > 1 else list(weights):
        use = weights if task == ALL_TASKS else {task: 1.0}
        best_rival = max(rivals, key=lambda scores: weighted_mean(scores, use))
        for (entry, scores), flawed in zip(entries, flaws, strict=True):
            low, high = (weighted_mean(scores, use),) * 2 if whole else _interval(scores, use)
            against = best_rival if scores is found else scores
            p_value = 1.0 if whole else scores_p_value(found, against, use)
            items = 1 if whole else sum(len(scores[name]) for name in use)
            counts = (sum(flawed.get(kind, {}).get(name, 0) for name in use) for kind in FLAWS)
            rows.append(
                Row(entry.name, entry.kind, task, weighted_mean(scores, use), low, high, items, p_value, *counts)
            )
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
    same = next((entry.name for entry, _ in rivals if _recipe(entry) == _recipe(found) is not None), None)

    def difference(name: str) -> float:
        return weighted_mean(own, weights) - weighted_mean(scores[name], weights)

    if is_whole_model(evaluation.items[0]):
        return verdict_without_test(found.name, list(scores), difference, same=same, missed=missed.get(found.name))
    return verdict(
        found.name,
        list(scores),
        difference,
        lambda name: scores_p_value(own, scores[name], weights),
        same=same,
        missed=missed.get(found.name),
    )


_RESULT = TypeAdapter(Result)
FLAWED = {
    "cut": "prompts were longer than the model reads and lost their beginning",
    "truncated": "generated texts ended at the length limit, without a stop before it",
    "unscored": "items had no score; they count as 0",
}
"""What the counts of a row mean."""


def _flaw_notes(rows: Sequence[Row]) -> Iterator[str]:
    """Yield a sentence for each kind of flaw and task: how many items of which rows have it."""
    for kind, meaning in FLAWED.items():
        for task in dict.fromkeys(row.task for row in rows if row.task != ALL_TASKS):
            counts = {row.name: getattr(row, kind) for row in rows if row.task == task and getattr(row, kind)}
            if counts:
                items = next(row.items for row in rows if row.task == task)
                named = ", ".join(f"{name} {count}" for name, count in counts.items())
                yield f"{task}, {counted(items, 'item')}: {meaning} ({named})."


def _recipe(entry: Contender) -> Recipe | None:
    return entry.recipe if isinstance(entry, Entry) else None


ROWS = "rows.json"
"""Name of the file in a run directory that holds the recipes of the final table's rows."""
_TEXTS = TypeAdapter(dict[str, str])


def rows_text(recipes: Mapping[str, Recipe], header: str = "") -> str:
    """Return the recipes of the table's rows, by their names, as JSON of recipe files."""
    return json.dumps({name: mergekit_yaml.dump(recipe, header) for name, recipe in recipes.items()}, indent=1) + "\n"


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
        texts = _TEXTS.validate_json(file.read_bytes(), strict=True)
        return {name: mergekit_yaml.parse(text, f"{file}: {name}") for name, text in texts.items()}
    except (OSError, ValueError, TypeError) as error:
        reason = first_mistake(error)
        raise LogError(f"{file} cannot be read ({reason}); remove it, and resume the run to write it again") from None


def paired_p_value(one: Evaluation, other: Evaluation, weights: Mapping[str, float]) -> float:
    """Return the p-value of the paired test between two recipes on the same items, over all tasks."""
    return scores_p_value(by_task(one), by_task(other), weights)


Scores = Mapping[str, np.ndarray]


def weighted_mean(scores: Scores, weights: Mapping[str, float]) -> float:
    """Return the weighted mean of tasks' mean scores, from float32[I] by task."""
    return float(sum(w * scores[task].mean() for task, w in weights.items()) / sum(weights.values()))


def _interval(scores: Scores, weights: Mapping[str, float]) -> tuple[float, float]:
    if len(weights) == 1:
        return interval(scores[next(iter(weights))])
    return weighted_interval([(scores[task], weight) for task, weight in weights.items()])


def scores_p_value(found: Scores, other: Scores, weights: Mapping[str, float]) -> float:
    """Return the p-value of the paired test between two models, from float32[I] by task, on the same items."""
    if len(weights) == 1:
        task = next(iter(weights))
        return paired_test(found[task], other[task])
    return weighted_paired_test([(found[task], other[task], weight) for task, weight in weights.items()])
