"""``python -m experiments.field_searches`` measures, and goes on from results.json; ``--quick`` keeps nothing.

Systems of the field that are a strategy of ours with other settings, each on the zoo beside what its paper compares it
with, at equal numbers of items: Model Kinship and Model-GLUE, Bayesian optimisation; and AdaMMS's choice of a factor
without right answers.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.field_searches.labels import FACTORS, line
from experiments.field_searches.labels import ITEMS as LABELLED
from experiments.field_searches.labels import TASKS as TASKS_OF_A_LINE
from experiments.harness import Experiment, Results, mean_and_error
from experiments.layer_systems.searching import Searched
from experiments.machine import machine
from experiments.recycled.__main__ import BATCH, EVERY, TASKS, Mixed, checkpoints

SEEDS = 20
GEN = "zoo_target_gen"
WEIGHT = {"low": -0.5, "high": 2.0, "start": 0.7}
SIGNED = {"kind": "layer_coefficients", "method": "task_arithmetic", "weight": WEIGHT}
GREEDY = {"kind": "greedy", "merge": "pairs"}
SHARES = {"kind": "mixture", "chunks": 1, "weights": "simplex"}


@dataclass(frozen=True)
class Part:
    """One comparison: a problem, and the strategies that search it.

    Attributes
    ----------
    space
        The search file's section.
    evaluations, items
        Candidates besides the founders, and search items that each is asked.
    strategies
        Name to the search file's section; the first is what the others are compared with.
    checkpoints
        Whether the models are 16 checkpoints of two training runs, and the score is the mean of two tasks; else the
        zoo's experts and their joint target.
    """

    space: Mapping[str, Any]
    evaluations: int
    items: int
    strategies: Mapping[str, Mapping[str, Any]]
    checkpoints: bool = False


PARTS: Mapping[str, Part] = {
    "pairs of 16 checkpoints": Part(
        SHARES,
        200,
        40,
        {
            "kinship": GREEDY,
            "random partners": GREEDY | {"explore": "random"},
            "no exploration": GREEDY | {"explore": "none"},
            "greedy soup": {"kind": "greedy", "merge": "soup"},
        },
        checkpoints=True,
    ),
    "three genes": Part(
        SIGNED | {"groups": "model"}, 40, 40, {"CMA-ES": {"kind": "cma_es"}, "TPE": {"kind": "optuna:TPE"}}
    ),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is missing, write ``results.json`` after each strategy, and the table into the README."""
    parser = EXPERIMENT.parser(__doc__, quick="one seed, few candidates")
    parser.add_argument("--minutes", type=float, default=1e9, help="stop before the next strategy after so many")
    given = parser.parse_args(arguments)
    out = EXPERIMENT.destination(given)
    results = EXPERIMENT.read(out) if not given.quick else {}
    results.setdefault("searches", [])
    torch.set_num_threads(1)
    began = time.perf_counter()
    if "label-free" not in results:
        sizes = ((0.4, 0.6, 0.8), 1, 20) if given.quick else (FACTORS, SEEDS, LABELLED)
        results["label-free"] = {kind: line(kind, *sizes) for kind in TASKS_OF_A_LINE}
    with tempfile.TemporaryDirectory() as folder:
        for name, part in PARTS.items():
            for rows in missing(results, name, part, Path(folder), quick=given.quick):
                results["searches"] += rows
                results["machine"] = machine(1, "torch", "transformers", "optuna")
                EXPERIMENT.write(out, results)
                print(name, rows[0]["name"], round(time.perf_counter() - began), "s", flush=True)
                if time.perf_counter() - began > 60 * given.minutes:
                    return
    print(*tables(results), sep="\n")
    EXPERIMENT.publish(out, results)


def missing(results: Results, name: str, part: Part, folder: Path, *, quick: bool) -> Iterator[list[dict[str, Any]]]:
    """Yield the searches of each strategy of a part that the results do not have; the models are opened only then."""
    found = {(row["part"], row["name"]) for row in results["searches"]}
    left = {key: strategy for key, strategy in part.strategies.items() if (name, key) not in found}
    if not left:
        return
    problem = opened(part, folder, quick=quick)
    evaluations, items, seeds = (3, 4, 1) if quick else (part.evaluations, part.items, SEEDS)
    for key, strategy in left.items():
        yield [
            {"part": name, "name": key} | problem.run(strategy, seed=seed, evaluations=evaluations, items=items)
            for seed in range(seeds)
        ]


def opened(part: Part, folder: Path, *, quick: bool) -> Searched:
    """Return the part's problem with its models in memory; checkpoints are trained first."""
    if not part.checkpoints:
        return Searched(part.space, GEN)
    return Mixed(part.space, TASKS[0], dict(checkpoints(folder, *((1, 4) if quick else (EVERY, BATCH)))))


def _column(results: Results, part: str, name: str, key: str) -> list[float]:
    return [row[key] for row in results["searches"] if (row["part"], row["name"]) == (part, name)]


def tables(results: Results) -> list[str]:
    """Return the README's tables: held-out scores and candidates, mean ± standard error over seeds."""
    lines = [
        "| | strategy | seeds | candidates | held-out score, % | ahead of the first of its part by |",
        "|---|---|---|---|---|---|",
    ]
    for name, part in PARTS.items():
        first = _column(results, name, next(iter(part.strategies)), "score")
        for place, key in enumerate(part.strategies):
            scores = _column(results, name, key, "score")
            if scores:
                gain = f" {mean_and_error(np.subtract(scores, first).tolist(), 1, 100)}" if place else ""
                asked = mean_and_error(_column(results, name, key, "candidates"), 0)
                lines.append(f"| {name} | {key} | {len(scores)} | {asked} | {mean_and_error(scores, 1, 100)} |{gain} |")
    return ["\n".join(lines), "\n".join(_label_free(results))]


WAYS = ("right answers", "least change", "certainty")


def _chosen(results: Results, kind: str, way: str) -> tuple[list[float], list[float]]:
    """Return the factors that a way has chosen, and their held-out scores; empty where it does not apply."""
    found = results["label-free"][kind]
    held_out = dict(zip(found["factors"], found["held_out"], strict=True))
    factors = [row[way] for row in found["choices"] if way in row]
    return factors, [held_out[factor] for factor in factors]


def _label_free(results: Results) -> list[str]:
    lines = ["| answers | chosen by | factors | held-out score, % | best factor's, % |", "|---|---|---|---|---|"]
    for kind, found in results["label-free"].items():
        for way in WAYS:
            factors, scores = _chosen(results, kind, way)
            if factors:
                lines.append(
                    f"| {kind} | {way} | {min(factors)} to {max(factors)} | {mean_and_error(scores, 1, 100)} | "
                    f"{100 * max(found['held_out']):.1f} |"
                )
    return lines


def figures(results: Results) -> dict[str, str]:
    """Return the figures of sentences: scores, and differences paired over seeds."""
    found: dict[str, str] = {}
    for name, part in PARTS.items():
        first = _column(results, name, next(iter(part.strategies)), "score")
        for key in part.strategies:
            scores = _column(results, name, key, "score")
            if scores:
                place = f"{name}.{key}".replace(" ", "_").replace("+", "_plus")
                found[place] = mean_and_error(scores, 1, 100)
                found[f"{place}.gain"] = mean_and_error(np.subtract(scores, first).tolist(), 1, 100)
    for kind in results["label-free"]:
        for way in WAYS:
            _, scores = _chosen(results, kind, way)
            if scores:
                found[f"{kind}.{way}".replace(" ", "_")] = mean_and_error(scores, 1, 100)
    return found


EXPERIMENT = Experiment(Path(__file__).parent, tables, rows="searches", figures=figures)

if __name__ == "__main__":
    main()
