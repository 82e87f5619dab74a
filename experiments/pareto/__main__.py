"""``python -m experiments.pareto`` runs all searches that are not in the results yet; ``--quick`` a tiny set.

NSGA-II, one CMA-ES per weighted sum, and random search look for the front of two conflicting tasks with the same number
of evaluations, over several seeds. Results are written after every search.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from experiments.harness import Experiment, Results, mean_and_error, plotted
from experiments.machine import machine
from experiments.pareto.fronts import TASKS, Front, Job, search
from fitness.pareto import ranks

WAYS = ("nsga2", "weighted_sums", "random")
SEEDS, EVALUATIONS, ITEMS, HELD_OUT = 5, 120, 50, 200


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing, then write the table and the plot."""
    parser = EXPERIMENT.parser(__doc__, quick="one seed, a few evaluations")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="searches per way")
    given = parser.parse_args(arguments)
    seeds, sizes = range(given.seeds), (EVALUATIONS, ITEMS, HELD_OUT)
    if given.quick:
        seeds, sizes = range(1), (10, 4, 10)
    out = EXPERIMENT.destination(given)
    results = EXPERIMENT.read(out)
    fronts = [Front(**front) for front in results.get("fronts", ())]
    done = {(front.way, front.seed) for front in fronts}
    for job in [Job(way, seed, *sizes) for seed in seeds for way in WAYS if (way, seed) not in done]:
        fronts.append(search(job))
        results = gathered(fronts)
        EXPERIMENT.write(out, results)
    print(tables(results)[0])
    EXPERIMENT.publish(out, results)
    if out is not None:
        plot(fronts, out / "fronts.svg")


def gathered(fronts: Sequence[Front]) -> Results:
    """Return the results: the fronts in order, and the machine that the last of them ran on."""
    ordered = sorted(fronts, key=lambda front: (front.way, front.seed))
    return {"fronts": [asdict(front) for front in ordered], "machine": machine(1, "torch", "transformers")}


def tables(results: Results) -> list[str]:
    """Return the README's table: hypervolume, and the ends of the fronts, mean ± standard error over seeds."""
    lines = [f"| way | seeds | hypervolume | best {TASKS[0]} | best {TASKS[1]} |", "|---|---|---|---|---|"]
    for way in WAYS:
        own = [Front(**front) for front in results["fronts"] if front["way"] == way]
        ends = [np.array(front.held_out).max(axis=0) for front in own]
        cells = [_cell([front.hypervolume for front in own]), *(_cell([end[side] for end in ends]) for side in (0, 1))]
        lines.append(f"| {way} | {len(own)} | " + " | ".join(cells) + " |")
    return ["\n".join(lines)]


def figures(results: Results) -> dict[str, str]:
    """Return the figures of the README's sentences."""
    fronts = [Front(**front) for front in results["fronts"]]
    volume = {way: {f.seed: f.hypervolume for f in fronts if f.way == way} for way in WAYS}
    seeds = sorted(volume["nsga2"])
    gains = [volume["nsga2"][seed] - volume["weighted_sums"][seed] for seed in seeds]
    found = {
        "seeds": str(len(seeds)),
        "gain": mean_and_error(gains, 3),
        "ahead": f"{sum(gain > 0 for gain in gains)} of {len(gains)}",
        "ahead_of_random": f"{sum(volume['nsga2'][s] > volume['random'][s] for s in seeds)} of {len(seeds)}",
    }
    members = {way: [str(len(f.held_out)) for f in fronts if f.way == way] for way in WAYS}
    return found | {f"members.{way}": ", ".join(counts) for way, counts in members.items()}


def _cell(values: Sequence[float]) -> str:
    return mean_and_error(values, 3)


def plot(fronts: Sequence[Front], file: Path) -> None:
    """Draw every seed's held-out front."""
    with plotted(file, figsize=(6, 4.5)) as axes:
        for color, way in zip(("tab:blue", "tab:orange", "tab:grey"), WAYS, strict=True):
            for number, front in enumerate(front for front in fronts if front.way == way):
                points = np.array(front.held_out)
                kept = points[ranks(points) == 0]
                kept = kept[np.argsort(kept[:, 0])]
                axes.plot(*(100 * kept.T), "o-", color=color, alpha=0.6, markersize=3, label=None if number else way)
        axes.set_xlabel(f"{TASKS[0]}, held out, %")
        axes.set_ylabel(f"{TASKS[1]}, held out, %")
        axes.legend()


EXPERIMENT = Experiment(Path(__file__).parent, tables, rows="fronts", indent=None, figures=figures)

if __name__ == "__main__":
    main()
