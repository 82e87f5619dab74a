"""The table and the plot of the curves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from experiments.harness import plotted
from experiments.strategies.contenders import PLAIN, Contender
from experiments.strategies.curves import Curve

SHARE = 0.95

Array = NDArray[np.float64]


def means(curves: Sequence[Curve], contender: str) -> tuple[Array, Array]:
    """Return item evaluations, and held-out scores [seeds, checkpoints], of one contender."""
    own = [curve for curve in curves if curve.contender == contender]
    return np.array(own[0].spent, dtype=np.float64), np.array([curve.held_out for curve in own])


def best_known(curves: Sequence[Curve], recipe: float) -> float:
    """Return the score of the best recipe known, or the largest mean that a contender has at any checkpoint, if above.

    A mean over seeds, and not the luckiest single guess: that would be too high by about two standard errors.
    """
    names = {curve.contender for curve in curves}
    return max(recipe, *(float(means(curves, name)[1].mean(axis=0).max()) for name in names))


def reached(curves: Sequence[Curve], contender: str, level: float) -> float | None:
    """Return the item evaluations at which the mean curve first reaches a level; None: not within the budget.

    Between two checkpoints the curve is a straight line.
    """
    spent, scores = means(curves, contender)
    mean = scores.mean(axis=0)
    if not (mean >= level).any():
        return None
    at = int(np.argmax(mean >= level))
    if at == 0:
        return float(spent[0])
    share = (level - mean[at - 1]) / (mean[at] - mean[at - 1])
    return float(spent[at - 1] + share * (spent[at] - spent[at - 1]))


def markdown(contenders: Sequence[Contender], curves: Sequence[Curve], level: float) -> str:
    """Return the table, the best contender first within its group; `level` is what is to be reached."""
    shown = min((means(curves, contender.name)[0] for contender in contenders), key=len)
    wanted = [index for index in range(len(shown)) if index in (1, 3, 5, len(shown) - 1)]
    head = ["contender", "seeds", "items", *(f"at {shown[i]:,.0f}" for i in wanted), "to 95 %", "of plain"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    plain = reached(curves, PLAIN.name, level) if PLAIN in contenders else None
    for contender in sorted(contenders, key=lambda one: _order(one, curves, level)):
        spent, scores = means(curves, contender.name)
        error = scores.std(axis=0, ddof=1) / np.sqrt(len(scores)) if len(scores) > 1 else np.zeros(len(spent))
        cells = [f"{100 * scores[:, i].mean():.1f} ± {100 * error[i]:.1f}" for i in wanted]
        items = f"{contender.items}{' fresh' if contender.fresh else ''}"
        to = reached(curves, contender.name, level)
        share = "" if to is None or plain is None else f"{to / plain:.2f}"
        if to is not None and plain is None and PLAIN in contenders:
            share = f"< {to / means(curves, PLAIN.name)[0][-1]:.2f}"
        row = [contender.name, str(len(scores)), items, *cells, "—" if to is None else f"{to:,.0f}", share]
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def _order(contender: Contender, curves: Sequence[Curve], level: float) -> tuple[str, float, float]:
    to = reached(curves, contender.name, level)
    last = means(curves, contender.name)[1].mean(axis=0)[-1]
    return contender.group != "strategies", to if to is not None else np.inf, -last


def plot(contenders: Sequence[Contender], curves: Sequence[Curve], level: float, file: Path) -> None:
    """Draw mean held-out scores, with a band of one standard error, strategies beside levers."""
    with plotted(file, 2, figsize=(11, 4.5), sharey=True) as panels:
        for panel, group in zip(panels, ("strategies", "levers"), strict=True):
            for contender in contenders:
                if contender.group != group and contender != PLAIN:
                    continue
                spent, scores = means(curves, contender.name)
                mean = 100 * scores.mean(axis=0)
                error = 100 * scores.std(axis=0) / np.sqrt(max(1, len(scores) - 1))
                style = {"color": "black", "linewidth": 2} if contender == PLAIN else {}
                (line,) = panel.plot(spent, mean, label=contender.name, marker=".", **style)
                panel.fill_between(spent, mean - error, mean + error, color=line.get_color(), alpha=0.12, linewidth=0)
            panel.axhline(100 * level, color="grey", linestyle=":", linewidth=1)
            panel.set_xlabel("item evaluations")
            panel.set_title(group)
            if panel.get_legend_handles_labels()[0]:
                panel.legend(fontsize=7)
        panels[0].set_ylabel("held-out score of the guess, %")
