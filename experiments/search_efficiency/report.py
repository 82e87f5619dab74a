"""Tables and plots of the curves."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.harness import Results, plotted
from experiments.search_efficiency.contenders import DEFAULT, DERIVATIVES, FIELD, STRATEGIES

Array = NDArray[np.float64]
Row = Mapping[str, Any]

SHARE = 0.95
DRAWS = 1000
DRAWN = {DEFAULT.name, *DERIVATIVES, *(one.name for one in STRATEGIES[1:5]), *(one.name for one in FIELD)}
"""Contenders in the plot; more lines cannot be told apart."""
WITHIN = 1000
SHOWN = (500, 1000, 2000, 4000)


def rows_of(results: Results, problem: str) -> dict[str, Row]:
    """Return a problem's curves by contender, in the order of the contenders."""
    found = {row["contender"]: row for row in results["curves"] if row["problem"] == problem}
    names = [DEFAULT.name, *(one.name for one in STRATEGIES), *(one.name for one in FIELD)]
    return {name: found[name] for name in names if name in found}


def best_known(results: Results, problem: str) -> float:
    """Return the score of the best recipe known before, or the largest mean of a contender's guesses, if above.

    A mean over seeds, and not the luckiest single guess: that would be too high by about two standard errors.
    """
    means = [np.array(row["held_out"]).mean(axis=0).max() for row in rows_of(results, problem).values()]
    return float(max(results["problems"][problem]["known"], *means))


def reached(row: Row, level: float, along: str = "spent") -> Array:
    """Return for each seed where its curve first reaches a level, in answers or seconds; infinity: it does not.

    Between two checkpoints the curve is a straight line.
    """
    found = []
    for index, scores in enumerate(np.array(row["held_out"])):
        places = np.array(row["spent"] if along == "spent" else row["seconds"][index], dtype=np.float64)
        above = np.flatnonzero(scores >= level)
        if not above.size:
            found.append(np.inf)
        elif (at := int(above[0])) == 0:
            found.append(places[0])
        else:
            share = (level - scores[at - 1]) / (scores[at] - scores[at - 1])
            found.append(places[at - 1] + share * (places[at] - places[at - 1]))
    return np.array(found)


def median(values: Array) -> Array:
    """Return the median along the last axis; infinite values count as larger than all others."""
    ordered = np.sort(values, axis=-1)
    count = ordered.shape[-1]
    middle: Array = ordered[..., (count - 1) // 2 : count // 2 + 1].mean(axis=-1)
    return middle


def interval(*values: Array) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of a median or of a quotient of two; a draw has the same seeds for both."""
    chosen = np.random.default_rng(0).integers(len(values[0]), size=(DRAWS, len(values[0])))
    medians = [median(each[chosen]) for each in values]
    with np.errstate(invalid="ignore"):
        drawn = medians[0] if len(medians) == 1 else medians[0] / medians[1]
    low, high = np.quantile(np.nan_to_num(drawn, nan=1.0, posinf=np.inf), [0.025, 0.975], method="nearest")
    return float(low), float(high)


# --- tables ---


def tables(results: Results) -> list[str]:
    """Return the README's tables: one line for each problem, then each problem's contenders."""
    problems = [name for name in results["problems"] if rows_of(results, name)]
    first = "\n\n".join((summary(results, problems), statement(results, problems)))
    return [first, "\n\n".join(details(results, problem) for problem in problems)]


def summary(results: Results, problems: Sequence[str]) -> str:
    """Return what the default needs on each problem, and what its best rivals need."""
    head = ["problem", "genes", "start", "best known", "default", "best of the field", "share", "best other of ours"]
    lines = ["| " + " | ".join([*head, "share"]) + " |", "|" + "---|" * (len(head) + 1)]
    field, others = {one.name for one in FIELD}, {one.name for one in STRATEGIES} - DERIVATIVES
    for problem in problems:
        rows, facts = rows_of(results, problem), results["problems"][problem]
        best = best_known(results, problem)
        counts = {name: reached(row, SHARE * best) for name, row in rows.items()}
        budget = {name: row["spent"][-1] for name, row in rows.items()}
        cells = [problem, str(facts["genes"]), percent(facts["start"]), percent(best)]
        if DEFAULT.name not in rows:
            continue
        cells.append(_answers(counts[DEFAULT.name], budget[DEFAULT.name]))
        for group in (field, others):
            rivals = [name for name in rows if name in group]
            name = min(rivals, key=lambda one: (median(counts[one]), -_last(rows[one])), default=None)
            cells += (
                ["", ""]
                if name is None
                else [
                    f"{name}: {_answers(counts[name], budget[name])}",
                    _share(counts[DEFAULT.name], counts[name], budget[name]),
                ]
            )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def statement(results: Results, problems: Sequence[str]) -> str:
    """Return in words whether the default reaches what it is meant to reach."""
    quick, within, beyond = "zoo, generation", [], []
    for problem in problems:
        rows, level = rows_of(results, problem), SHARE * best_known(results, problem)
        if DEFAULT.name not in rows:
            continue
        ours = float(median(reached(rows[DEFAULT.name], level)))
        if problem == quick:
            state = "within" if ours <= WITHIN else "not within"
            first = (
                f"On the quickstart's problem the default reaches 95 % of the best known {state} {WITHIN:,} answers."
            )
        rivals = [row for name, row in rows.items() if name not in DERIVATIVES | {DEFAULT.name}]
        theirs = [float(median(reached(row, level))) for row in rivals]
        half = [
            ours <= their / 2 if np.isfinite(their) else 2 * ours <= row["spent"][-1]
            for their, row in zip(theirs, rivals, strict=True)
        ]
        (within if all(half) else beyond).append(problem)
    quickstart = first + " " if quick in (*within, *beyond) else ""
    listed = f"; not on: {'; '.join(beyond)}" if beyond else ""
    many = f"on {len(within)} of {len(within) + len(beyond)} problems"
    return f"{quickstart}It needs at most half the answers of the best contender without derivatives {many}{listed}."


def _last(row: Row) -> float:
    return float(np.array(row["held_out"])[:, -1].mean())


def _answers(counts: Array, budget: int) -> str:
    """Return a median with its interval; a budget that was not enough as such."""
    found = float(median(counts))
    if not np.isfinite(found):
        return f"> {budget:,}"
    if len(counts) < 2:
        return f"{found:,.0f}"
    low, high = interval(counts)
    upper = f"{high:,.0f}" if np.isfinite(high) else f"> {budget:,}"
    return f"{found:,.0f} ({low:,.0f} to {upper})"


def _share(ours: Array, theirs: Array, budget: int) -> str:
    """Return the share of a rival's answers that the default needs, with a paired interval where both get there."""
    if not np.isfinite(median(ours)):
        return "—"
    if not np.isfinite(median(theirs)):
        return f"< {median(ours) / budget:.2f}"
    found = f"{median(ours) / median(theirs):.2f}"
    if len(theirs) < 2:
        return found
    count = min(len(ours), len(theirs))
    low, high = interval(ours[:count], theirs[:count])
    return f"{found} ({low:.2f} to {high:.2f})"


def details(results: Results, problem: str) -> str:
    """Return the scores and costs of all contenders on one problem, the quickest first."""
    rows, best = rows_of(results, problem), best_known(results, problem)
    level = SHARE * best
    shown = [count for count in SHOWN if any(count in row["spent"] for row in rows.values())]
    head = ["contender", "seeds", *(f"at {count:,}" for count in shown), "at the end", "answers to 95 %", "seconds"]
    lines = [f"**{problem}** (95 % of the best known: {percent(level)})", "", "| " + " | ".join(head) + " |"]
    lines.append("|" + "---|" * len(head))
    ranked = sorted(rows.items(), key=lambda pair: (median(reached(pair[1], level)), -_last(pair[1])))
    for name, row in ranked:
        scores = np.array(row["held_out"])
        at = [_mean(scores[:, row["spent"].index(count)]) for count in shown]
        end = f"{_mean(scores[:, -1])} ({row['spent'][-1]:,})"
        counts, seconds = reached(row, level), reached(row, level, "seconds")
        spent = f"{median(seconds):.1f}" if np.isfinite(median(seconds)) else ""
        cells = [name, str(len(scores)), *at, end, _answers(counts, row["spent"][-1]), spent]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def figures(results: Results) -> dict[str, str]:
    """Return the answers to 95 % of each contender on each problem, as `generation.gradient`."""
    found = {}
    for problem in results["problems"]:
        level = SHARE * best_known(results, problem) if rows_of(results, problem) else np.inf
        for name, row in rows_of(results, problem).items():
            key = f"{_word(problem.removeprefix('zoo, '))}.{_word(name)}"
            found[key] = _answers(reached(row, level), row["spent"][-1])
    return found


def _word(name: str) -> str:
    return re.sub(r"\W+", "-", name.lower()).strip("-")


def percent(share: float) -> str:
    """Return a share in per cent."""
    return f"{100 * share:.1f}"


def _mean(values: Array) -> str:
    if len(values) < 2:
        return percent(float(values.mean()))
    return f"{percent(float(values.mean()))} ± {percent(float(values.std(ddof=1) / np.sqrt(len(values))))}"


# --- plots ---


def plot(results: Results, file: Path) -> None:
    """Draw mean held-out scores against answers (above) and seconds (below), a column for each problem."""
    problems = [name for name in results["problems"] if rows_of(results, name)]
    size = (3.6 * len(problems), 7.0)
    import matplotlib

    # Letters as text and not as outlines: half the size of the file.
    with (
        matplotlib.rc_context({"svg.fonttype": "none"}),
        plotted(file, len(problems), rows=2, figsize=size, squeeze=False) as panels,
    ):
        for column, problem in enumerate(problems):
            level = SHARE * best_known(results, problem)
            for line, along in enumerate(("spent", "seconds")):
                panel = panels[line][column]
                for name, row in rows_of(results, problem).items():
                    if name in DRAWN:
                        _draw(panel, name, row, along)
                panel.axhline(100 * level, color="grey", linestyle=":", linewidth=1)
                panel.set_xscale("log")
                panel.minorticks_off()
                panel.set_xlabel("answers" if along == "spent" else "processor seconds")
                panel.set_title(problem if line == 0 else "")
        panels[0][0].set_ylabel("held-out score of the guess, %")
        panels[1][0].set_ylabel("held-out score of the guess, %")
        panels[0][0].legend(fontsize=5)


def _draw(panel: Any, name: str, row: Row, along: str) -> None:
    scores = 100 * np.array(row["held_out"])
    places = row["spent"] if along == "spent" else np.maximum(np.median(row["seconds"], axis=0), 1e-3)
    field = name in {one.name for one in FIELD}
    style: dict[str, Any] = {"linewidth": 1.0, "linestyle": "--" if field else "-"}
    if name == DEFAULT.name:
        style = {"color": "black", "linewidth": 2.5, "zorder": 5}
    panel.plot(places, scores.mean(axis=0), label=name, **style)
