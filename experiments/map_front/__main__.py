"""``python -m experiments.map_front`` runs all searches that are not in the results yet; ``--quick`` a tiny set.

MAP and NSGA-II look for the front of two conflicting tasks of the zoo with the same number of evaluations on the same
items, over twenty seeds, with three genes and with nine. Results are written after every search.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from experiments.harness import Experiment, Results, mean_and_error
from experiments.machine import machine
from experiments.pareto.fronts import Job, search

WAYS = ("map", "nsga2")
Genes = Literal["models", "parts"]
BUDGETS: dict[Genes, int] = {"models": 40, "parts": 120}
NUMBER = {"models": 3, "parts": 9}
FIRST_SEED, SEEDS, ITEMS, HELD_OUT = 100, 20, 50, 200


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing, then write the table."""
    parser = EXPERIMENT.parser(__doc__, quick="one seed, few evaluations of few items")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="searches per way and number of genes")
    given = parser.parse_args(arguments)
    seeds, sizes = range(FIRST_SEED, FIRST_SEED + given.seeds), (ITEMS, HELD_OUT)
    budgets = BUDGETS
    if given.quick:
        seeds, sizes, budgets = range(FIRST_SEED, FIRST_SEED + 1), (4, 10), {"models": 15}
    out = EXPERIMENT.destination(given)
    fronts = list(EXPERIMENT.read(out).get("fronts", ()))
    done = {(front["genes"], front["way"], front["seed"]) for front in fronts}
    for genes, evaluations in budgets.items():
        for seed in seeds:
            for way in WAYS:
                if (genes, way, seed) not in done:
                    found = search(Job(way, seed, evaluations, *sizes, genes))
                    fronts.append({"genes": genes, **asdict(found)})
                    EXPERIMENT.write(out, gathered(fronts))
    print(tables(gathered(fronts))[0])
    EXPERIMENT.publish(out, gathered(fronts))


def gathered(fronts: Sequence[Results]) -> Results:
    """Return the results: the fronts in order, and the machine that the last of them ran on."""
    ordered = sorted(fronts, key=lambda front: (front["genes"], front["way"], front["seed"]))
    return {"fronts": ordered, "machine": machine(1, "torch", "transformers")}


def _volumes(results: Results, genes: str, way: str) -> dict[int, float]:
    return {f["seed"]: f["hypervolume"] for f in results["fronts"] if (f["genes"], f["way"]) == (genes, way)}


def tables(results: Results) -> list[str]:
    """Return the README's table: hypervolumes, mean ± standard error over seeds, and differences seed by seed."""
    lines = [
        "| genes | evaluations | seeds | MAP | NSGA-II | MAP ahead by | on seeds |",
        "|---|---|---|---|---|---|---|",
    ]
    for genes, evaluations in BUDGETS.items():
        ours, theirs = (_volumes(results, genes, way) for way in WAYS)
        both = sorted(ours.keys() & theirs.keys())
        if both:
            gains = [ours[seed] - theirs[seed] for seed in both]
            volumes = [mean_and_error([way[seed] for seed in both], 3) for way in (ours, theirs)]
            lines.append(
                f"| {NUMBER[genes]} | {evaluations} | {len(both)} | {volumes[0]} | {volumes[1]} | "
                f"{mean_and_error(gains, 3)} | {sum(gain > 0 for gain in gains)} of {len(both)} |"
            )
    return ["\n".join(lines)]


def figures(results: Results) -> dict[str, str]:
    """Return the figures of sentences."""
    found: dict[str, str] = {}
    for genes in BUDGETS:
        ours, theirs = (_volumes(results, genes, way) for way in WAYS)
        both = sorted(ours.keys() & theirs.keys())
        if both:
            gains = [ours[seed] - theirs[seed] for seed in both]
            found |= {
                f"{genes}.map": mean_and_error([ours[seed] for seed in both], 3),
                f"{genes}.nsga2": mean_and_error([theirs[seed] for seed in both], 3),
                f"{genes}.gain": mean_and_error(gains, 3),
            }
    return found


EXPERIMENT = Experiment(Path(__file__).parent, tables, rows="fronts", indent=None, figures=figures)

if __name__ == "__main__":
    main()
