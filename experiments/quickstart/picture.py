"""Draw a finished search: its steps or candidates, and its result beside the alternatives on held-out items.

python -m experiments.quickstart.picture quickstart/run docs/quickstart.svg
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from evomerge.runs.result import Result
from evomerge.runs.run import Asked, Event, Run, Told

BLUE, ORANGE, GREY = "#3b6fb6", "#d9822b", "#8a8f98"
KINDS = {"found": ORANGE, "mean": BLUE}


def draw_steps(axis: Axes, events: Sequence[Event]) -> None:
    """Draw the loss of each gradient step, on its own fresh items, and the mean of the last ten."""
    told = [event.evaluation for event in events if isinstance(event, Told)]
    loss = np.array([-evaluation.objectives[0] for evaluation in told if evaluation.status == "step"])
    recent = [loss[max(0, step - 9) : step + 1].mean() for step in range(len(loss))]
    axis.scatter(np.arange(1, len(loss) + 1), loss, s=14, color=GREY, linewidths=0, label="step, 25 fresh items")
    axis.plot(np.arange(1, len(loss) + 1), recent, color=ORANGE, label="mean of the last ten")
    axis.set(xlabel="steps", ylabel="loss of the right answers, nats per token", ylim=(0, None))
    axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False)


def draw_candidates(axis: Axes, events: Sequence[Event]) -> None:
    """Draw the search score of each candidate, of the distribution's mean, and the best so far."""
    means = {event.candidate.id for event in events if isinstance(event, Asked) and event.candidate.kind == "mean"}
    told = [event for event in events if isinstance(event, Told) and event.evaluation.status == "ok"]
    number = np.array([event.candidate for event in told])
    score = np.array([event.evaluation.fitness for event in told])
    is_mean = np.isin(number, list(means))
    axis.scatter(number[~is_mean], score[~is_mean], s=7, color=GREY, alpha=0.6, linewidths=0, label="candidate")
    axis.plot(number[is_mean], score[is_mean], "o-", color=BLUE, markersize=4, label="distribution mean")
    axis.plot(number, np.maximum.accumulate(score), color=ORANGE, label="best so far")
    axis.set(xlabel="candidates", ylabel="score on the search items", ylim=(0, None))
    axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False)


def main(run_folder: Path, picture: Path) -> None:
    """Read the run and write the picture, as SVG whose text stays text."""
    with Run.read(run_folder) as run:
        events = list(run.events())
    rows = Result.read(run_folder / "result.json").held_out
    plt.rcParams.update(
        {"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9, "svg.hashsalt": "evomerge"}
    )
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), width_ratios=(3, 2), layout="constrained")
    if any(event.evaluation.status == "step" for event in events if isinstance(event, Told)):
        draw_steps(left, events)
    else:
        draw_candidates(left, events)

    places = np.arange(len(rows))[::-1]
    center = np.array([row.score for row in rows])
    errors = np.array([[row.score - row.low, row.high - row.score] for row in rows]).T
    right.barh(
        places, center, xerr=errors, color=[KINDS.get(row.kind, GREY) for row in rows], ecolor="#444444", height=0.7
    )
    right.set_yticks(places, [row.name for row in rows])
    right.set(xlabel="score on held-out items, 95 % interval", xlim=(0, None))
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(picture, metadata={"Date": None})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
