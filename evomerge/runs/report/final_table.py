"""The verdict and the held-out table: what the page begins with."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from shlex import quote

import numpy as np

from evomerge.runs.report.commands import commands
from evomerge.runs.report.contents import Contents
from evomerge.runs.result import SEARCHED, Row, RowKind
from fitness.estimation.intervals import p_text
from fitness.objectives import by_task
from fitness.results import Evaluation, mean

KINDS: dict[RowKind, str] = {
    "found": "found by the search",
    "mean": "the strategy's own guess",
    "front": "member of the front",
    "ensemble": "vote of several recipes",
    "source": "source",
    "uniform": "baseline",
    "task_arithmetic": "baseline",
    "greedy_soup": "baseline",
    "start": "the search's start",
}
"""What a kind of row is, for people."""


@dataclass(frozen=True)
class Headline:
    """The first lines of the page.

    Attributes
    ----------
    state
        ``better``, ``indistinguishable`` or ``worse`` as the verdict has it; ``unfinished`` before there is one.
    sentence
        The verdict, or how far the search is.
    take
        What to take, in a sentence; empty where nothing can be taken yet.
    commands
        What to type next.
    """

    state: str
    sentence: str
    take: str
    commands: tuple[str, ...]


@dataclass(frozen=True)
class TableRow:
    """One line of the held-out table, as text.

    `difference` is the found recipe's score minus that of the row; `p` belongs to it, `corrected` is `p` after Holm's
    correction. They are empty where there is nothing to compare.
    """

    name: str
    kind: str
    score: str
    low: str
    high: str
    items: str
    difference: str
    p: str
    corrected: str
    found: bool
    taken: bool


@dataclass(frozen=True)
class Table:
    """The held-out rows of one task."""

    task: str
    rows: tuple[TableRow, ...]


def headline(contents: Contents) -> Headline:
    """Return the verdict with what to do, or how far an unfinished search is."""
    run, result = quote(str(contents.path)), contents.result
    if result is None:
        return _unfinished(contents, run)
    typed = commands(contents.path, contents.config)
    if result.verdict is None:
        return Headline("indistinguishable", "The search has ended; its result has no verdict.", "", typed)
    taken = result.verdict.recommended
    kind: RowKind = next((row.kind for row in result.held_out if row.name == taken), "found")
    which = "the recipe that the search has found" if kind == "found" else f"{taken} ({KINDS[kind]})"
    score = next((f", {row.score:.3f} on the held-out items" for row in contents.overall_rows if row.name == taken), "")
    return Headline(result.verdict.outcome, result.verdict.sentence, f"Take best.yaml: {which}{score}.", typed)


def _unfinished(contents: Contents, run: str) -> Headline:
    budget = contents.section("budget").get("evaluations")
    of = f" of {budget}" if isinstance(budget, int) else ""
    history = contents.history
    now = "is searching" if contents.searching else "was stopped"
    sentence = f"The search {now} after {history.evaluations}{of} evaluations: there are no held-out scores yet."
    command = f"evomerge status {run}" if contents.searching else f"evomerge resume {run}"
    if history.best is None:
        return Headline("unfinished", sentence, "", (command,))
    best = history.evaluation(history.best)
    take = (
        f"The best so far is candidate {history.best}, {best.value:.3f} ± {best.standard_error:.3f} on search items; "
        "the best of many scores is often only the luckiest."
    )
    return Headline("unfinished", sentence, take, (command,))


def tables(contents: Contents) -> tuple[Table, ...]:
    """Return the held-out table of each task, that over all tasks first."""
    if contents.result is None:
        return ()
    tasks = dict.fromkeys((contents.overall, *(row.task for row in contents.result.held_out)))
    return tuple(Table(task, tuple(_rows(contents, task))) for task in tasks)


def _rows(contents: Contents, task: str) -> Iterator[TableRow]:
    result = contents.result
    assert result is not None
    verdict = result.verdict
    corrected = {one.name: one.p_value for one in verdict.comparisons} if verdict is not None else {}
    rows = [row for row in result.held_out if row.task == task]
    found = next(row for row in rows if row.kind == "found")
    for row in rows:
        same, known = row is found, task == contents.overall and row.name in corrected
        yield TableRow(
            row.name,
            KINDS[row.kind],
            f"{row.score:.3f}",
            _bound(row.low),
            _bound(row.high),
            str(row.items),
            "" if same else f"{found.score - row.score:+.3f}",
            "" if same else p_text(row.p_value),
            p_text(corrected[row.name]) if known else "",
            same,
            verdict is not None and verdict.recommended == row.name,
        )


def _bound(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "unknown"


def best_source(contents: Contents) -> Row | None:
    """Return the source with the best held-out score over all tasks; None before there is one."""
    sources = [row for row in contents.overall_rows if row.kind == "source"]
    return max(sources, key=lambda row: row.score, default=None)


def best_alternative(contents: Contents) -> Row | None:
    """Return the best row that needs no search; None before there is one."""
    others = [row for row in contents.overall_rows if row.kind not in SEARCHED]
    return max(others, key=lambda row: row.score, default=None)


@dataclass(frozen=True)
class Gap:
    """A row's score on search items beside that on held-out items.

    `error` is the standard error of the search score, over `items` items.
    """

    name: str
    kind: str
    search: float
    error: float
    items: int
    held_out: float
    low: float
    high: float


def gaps(contents: Contents) -> list[Gap]:
    """Return each row of the table over all tasks that has answered search items of every task."""
    found = []
    for row in contents.overall_rows:
        answers = _search_answers(contents, row.name)
        score = _weighted(answers, contents.weights)
        if score is not None:
            bounds = [bound if math.isfinite(bound) else row.score for bound in (row.low, row.high)]
            found.append(Gap(row.name, row.kind, *score, len(answers), row.score, bounds[0], bounds[1]))
    return found


def _search_answers(contents: Contents, name: str) -> dict[str, float]:
    """Return a row's scores on search items: those it was asked as a finalist, since others have chosen it, else all.

    The found recipe's score in the result is the mean of the same answers.
    """
    recipe = contents.rows.get(name)
    if recipe is None:
        return {}
    confirmed = contents.history.reference_scores.get(("confirm", contents.recipe_hash(recipe)))
    if confirmed is not None and not set(contents.weights) - set(by_task(confirmed)):
        return dict(zip(confirmed.items, confirmed.scores.tolist(), strict=True))
    return contents.history.answers(contents.recipe_hash(recipe))


def _weighted(answers: dict[str, float], weights: dict[str, float]) -> tuple[float, float] | None:
    """Return the weighted mean over tasks with its standard error; None where a task has no answers."""
    scores = by_task(Evaluation("ok", items=tuple(answers), scores=np.array(list(answers.values()), np.float32)))
    if not weights or set(weights) - set(scores):
        return None
    total = sum(weights.values())
    means = {task: mean(scores[task]) for task in weights}
    value = sum(weights[task] * one.value for task, one in means.items()) / total
    error = math.hypot(*(weights[task] * one.standard_error / total for task, one in means.items()))
    return value, error
