"""``python -m experiments.data_flow`` measures; ``--quick`` runs the same on tiny sizes and keeps nothing.

Three questions about layer orders on the zoo: does any single repeat, skip or swap help (`edits`); are planted orders
found again (`planted`); and what do searches in flow, in parameters and in both, one after the other, reach with equal
budgets (`searches`).
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from experiments.data_flow.edits import PAIRS, Edited, measure, settings
from experiments.data_flow.planted import Recovered, recover, search
from experiments.harness import Experiment, Results, plotted
from experiments.machine import machine

TASK = "zoo_target_gen"
PARAMETERS = {"kind": "layer_coefficients", "layers_per_group": 2, "weight": {"low": -0.5, "high": 2.0, "start": 0.7}}
WAYS = ("flow", "parameters", "stacked")


@dataclass(frozen=True)
class Searched:
    """One search over the zoo's hard task; scores are shares of items."""

    way: str
    seed: int
    evaluations: int
    search: float
    held_out: float
    layers: int
    """Of the found model."""


def configured(way: str, evaluations: int) -> dict[str, Any]:
    """Return space and strategy of one of the `WAYS`."""
    if way == "flow":
        return {"space": {"kind": "data_flow"}, "strategy": {"kind": "eda"}}
    if way == "parameters":
        return {"space": PARAMETERS, "strategy": {"kind": "cma_es", "population": 12}}
    first = {"kind": "cma_es", "population": 12}
    return {
        "space": {"kind": "two_stage", "parameters": PARAMETERS, "flow": {"repeats": 1}},
        "strategy": {"kind": "staged", "evaluations": evaluations * 2 // 3, "first": first, "second": {"kind": "eda"}},
    }


def searched(way: str, folder: Path, *, seed: int, evaluations: int, items: int) -> Searched:
    """Run one search."""
    budget = {"budget": {"evaluations": evaluations}, "seed": seed}
    config = settings(TASK, items, **configured(way, evaluations), **budget)
    result, recipe = search(config, folder, f"{way}-{seed}")
    (found,) = (row for row in result["held_out"] if row["kind"] == "found")
    return Searched(way, seed, evaluations, result["search_score"], found["score"], recipe.num_layers or 0)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write ``results.json``, the plot, and the tables into the README."""
    given = EXPERIMENT.parser(__doc__, quick="tiny sizes").parse_args(arguments)
    out = EXPERIMENT.destination(given)
    os.environ["OMP_NUM_THREADS"] = "1"
    started = time.perf_counter()
    results = run(quick=given.quick)
    results["minutes"] = round((time.perf_counter() - started) / 60, 1)
    results["machine"] = machine(1, "torch", "transformers")
    print("\n".join(tables(results)))
    EXPERIMENT.publish(out, results)
    if out is not None:
        plot(results, out / "scores.svg")


def run(*, quick: bool) -> Results:
    """Return all results as plain data."""
    pairs = PAIRS[-1:] if quick else PAIRS
    small = {"held_out": 20, "most": 3} if quick else {}
    found = [asdict(measure(model, task, 10 if quick else 150, **small)) for model, task in pairs]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        seeds = (0,) if quick else (0, 1)
        sizes = {"evaluations": 16 if quick else 150, "items": 10 if quick else 60}
        planted = [
            asdict(recover(problem, folder, seed=seed, **sizes))
            for problem in (("shuffled",) if quick else ("shuffled", "strangers"))
            for seed in seeds
        ]
        sizes = {"evaluations": 24 if quick else 240, "items": 10 if quick else 60}
        ways = [
            asdict(searched(way, folder, seed=seed, **sizes))
            for way in (WAYS[-1:] if quick else WAYS)
            for seed in seeds
        ]
    return {"edits": found, "planted": planted, "searches": ways}


def tables(results: Results) -> list[str]:
    """Return the README's table of the three parts: edits, planted orders, searches."""
    lines = [
        "| model | task | edits | best on search items | search, before → after | held-out, before → after | p |",
        "|---|---|---|---|---|---|---|",
    ]
    for data in results["edits"]:
        row = Edited(**data)
        asked = f"{row.search_before:.3f} → {row.search_after:.3f}"
        held_out = f"{row.held_out_before:.3f} → {row.held_out_after:.3f}"
        lines.append(
            f"| {row.model} | {row.task} | {row.edits} | {row.best} | {asked} | {held_out} | {row.p_value:.2g} |"
        )
    lines += ["", "| planted | strategy | seed | evaluations | given | found | known best | path | right |"]
    lines += ["|---|---|---|---|---|---|---|---|---|"]
    for data in results["planted"]:
        one = Recovered(**data)
        path = " ".join(map(str, one.path))
        lines.append(
            f"| {one.problem} | {one.strategy} | {one.seed} | {one.evaluations} | {one.planted:.3f} | "
            f"{one.found:.3f} | {one.known:.3f} | {path} | {'yes' if one.right else 'no'} |"
        )
    lines += ["", "| search | seed | evaluations | search score | held-out | layers |", "|---|---|---|---|---|---|"]
    for data in results["searches"]:
        way = Searched(**data)
        lines.append(
            f"| {way.way} | {way.seed} | {way.evaluations} | {way.search:.3f} | {way.held_out:.3f} | {way.layers} |"
        )
    return ["\n".join(lines)]


def figures(results: Results) -> dict[str, str]:
    """Return the figures of the README's sentences."""
    held_out: dict[str, list[float]] = {}
    for row in results["searches"]:
        held_out.setdefault(row["way"], []).append(row["held_out"])
    gaps = [100 * (row["known"] - row["found"]) for row in results["planted"]]
    return {
        "gap": f"{min(gaps):.1f} to {max(gaps):.1f}",
        "p": f"{min(row['p_value'] for row in results['edits']):.2g}",
        **{way: " and ".join(f"{score:.3f}" for score in scores) for way, scores in held_out.items()},
    }


def plot(results: Results, file: Path) -> None:
    """Draw what was found for the planted orders, and what the searches reached."""
    with plotted(file, 2, figsize=(10, 4)) as (left, right):
        names = [f"{one['problem']}, seed {one['seed']}" for one in results["planted"]]
        for shift, key in enumerate(("planted", "found", "known")):
            heights = [100 * one[key] for one in results["planted"]]
            left.bar([place + 0.27 * shift for place in range(len(names))], heights, width=0.25, label=key)
        left.set_xticks([place + 0.27 for place in range(len(names))], names, fontsize=8)
        left.set(ylabel="held-out score, %", title="planted orders", ylim=(0, 115))
        left.legend(loc="upper center", ncols=3, fontsize=8)
        for way in WAYS:
            own = [one for one in results["searches"] if one["way"] == way]
            right.plot([one["way"] for one in own], [100 * one["held_out"] for one in own], "o")
        right.set(title=f"searches on {TASK}, one point per seed", ylim=(0, 65))


EXPERIMENT = Experiment(Path(__file__).parent, tables, figures=figures)

if __name__ == "__main__":
    main()
