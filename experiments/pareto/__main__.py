"""``python -m experiments.pareto`` runs all searches that are not in the results yet; ``--quick`` a tiny set.

NSGA-II, one CMA-ES per weighted sum, and random search look for the front of two conflicting tasks with the same number
of evaluations, over several seeds. Results are written after every search.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from experiments.machine import machine
from experiments.pareto.fronts import TASKS, Front, Job, search
from fitness.pareto import ranks

FOLDER = Path(__file__).parent
WAYS = ("nsga2", "weighted_sums", "random")
SEEDS, EVALUATIONS, ITEMS, HELD_OUT = 5, 120, 50, 200


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing, then write the table and the plot."""
    parser = argparse.ArgumentParser(prog="python -m experiments.pareto", description=main.__doc__)
    parser.add_argument("--quick", action="store_true", help="one seed, a few evaluations; give --out with it")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="searches per way")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of results.json and fronts.svg")
    options = parser.parse_args(arguments)
    seeds, sizes = range(options.seeds), (EVALUATIONS, ITEMS, HELD_OUT)
    if options.quick:
        seeds, sizes = range(1), (10, 4, 10)
    file = options.out / "results.json"
    fronts = [Front(**front) for front in json.loads(file.read_text())["fronts"]] if file.is_file() else []
    done = {(front.way, front.seed) for front in fronts}
    options.out.mkdir(parents=True, exist_ok=True)
    for job in [Job(way, seed, *sizes) for seed in seeds for way in WAYS if (way, seed) not in done]:
        fronts.append(search(job))
        file.write_text(written(fronts), encoding="utf-8")
    plot(fronts, options.out / "fronts.svg")
    print(markdown(fronts))


def written(fronts: Sequence[Front]) -> str:
    """Return the text of ``results.json``: a line per front, and the machine that the last of them ran on."""
    lines = ",\n  ".join(json.dumps(asdict(front)) for front in sorted(fronts, key=lambda f: (f.way, f.seed)))
    where = json.dumps(machine(1, "torch", "transformers"))
    return f'{{"fronts": [\n  {lines}\n],\n "machine": {where}}}\n'


def markdown(fronts: Sequence[Front]) -> str:
    """Return the table: hypervolume, and the ends of the fronts, mean ± standard error over seeds."""
    lines = [f"| way | seeds | hypervolume | best {TASKS[0]} | best {TASKS[1]} |", "|---|---|---|---|---|"]
    for way in WAYS:
        own = [front for front in fronts if front.way == way]
        ends = [np.array(front.held_out).max(axis=0) for front in own]
        cells = [_cell([front.hypervolume for front in own]), *(_cell([end[side] for end in ends]) for side in (0, 1))]
        lines.append(f"| {way} | {len(own)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(values: Sequence[float]) -> str:
    error = np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else 0.0
    return f"{np.mean(values):.3f} ± {error:.3f}"


def plot(fronts: Sequence[Front], file: Path) -> None:
    """Draw every seed's held-out front."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "evomerge"
    figure, axes = pyplot.subplots(figsize=(6, 4.5))
    for color, way in zip(("tab:blue", "tab:orange", "tab:grey"), WAYS, strict=True):
        for number, front in enumerate(front for front in fronts if front.way == way):
            points = np.array(front.held_out)
            kept = points[ranks(points) == 0]
            kept = kept[np.argsort(kept[:, 0])]
            axes.plot(*(100 * kept.T), "o-", color=color, alpha=0.6, markersize=3, label=None if number else way)
    axes.set_xlabel(f"{TASKS[0]}, held out, %")
    axes.set_ylabel(f"{TASKS[1]}, held out, %")
    axes.legend()
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)


if __name__ == "__main__":
    main()
