"""``python -m experiments.field_searches`` measures, and continues from results.json; ``--quick`` keeps nothing.

Systems of the field that are a strategy of ours with other settings, each on the zoo beside what its paper compares it
with, at equal numbers of items: Model Kinship and Model-GLUE, Bayesian optimisation, Model Swarms and GENOME+,
Evo-Merging, CycleQD, Sakana's parameter space; and AdaMMS's choice of a factor without right answers.
"""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from experiments.field_searches.labels import FACTORS, line
from experiments.field_searches.labels import ITEMS as LABELLED
from experiments.field_searches.labels import TASKS as TASKS_OF_A_LINE
from experiments.field_searches.parts import PARTS, Part
from experiments.harness import Experiment, Results, mean_and_error
from experiments.layer_systems.searching import Searched
from experiments.machine import machine
from experiments.recycled.__main__ import BATCH, EVERY, checkpoints

SEEDS = 20


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is missing, write ``results.json`` after each search, and the table into the README."""
    parser = EXPERIMENT.parser(__doc__, quick="one seed, few candidates")
    parser.add_argument("--minutes", type=float, default=1e9, help="stop before the next search after so many")
    parser.add_argument("--only", default="", help="parts whose names begin with this, such as TIES")
    given = parser.parse_args(arguments)
    out = EXPERIMENT.destination(given)
    results = EXPERIMENT.read(out) if not given.quick else {}
    results.setdefault("searches", [])
    results.setdefault("founders", {})
    torch.set_num_threads(1)
    began = time.perf_counter()
    if "label-free" not in results:
        sizes = ((0.4, 0.6, 0.8), 1, 20) if given.quick else (FACTORS, SEEDS, LABELLED)
        results["label-free"] = {kind: line(kind, *sizes) for kind in TASKS_OF_A_LINE}
    with tempfile.TemporaryDirectory() as folder:
        for row in missing(results, Path(folder), given.only, quick=given.quick):
            results["searches"].append(row)
            results["machine"] = machine(1, "torch", "transformers", "optuna")
            EXPERIMENT.write(out, results)
            print(row, round(time.perf_counter() - began), "s", flush=True)
            if time.perf_counter() - began > 60 * given.minutes:
                break
    print(*tables(results), sep="\n")
    EXPERIMENT.publish(out, results)


def missing(results: Results, folder: Path, only: str, *, quick: bool) -> Iterator[dict[str, Any]]:
    """Yield the searches that the results do not have, part by part; a part's models are opened only then.

    The best founder of each part is added to the results as well.
    """
    found = {(row["part"], row["name"], row["seed"]) for row in results["searches"]}
    for name, part in PARTS.items():
        seeds = range(1 if quick else SEEDS)
        left = [(key, seed) for seed in seeds for key in part.strategies if (name, key, seed) not in found]
        if not name.startswith(only) or (not left and name in results["founders"]):
            continue
        problem = opened(part, folder, quick=quick)
        results["founders"].setdefault(name, problem.founder())
        evaluations, items = (3, 4) if quick else (part.evaluations, part.items)
        for key, seed in left:
            strategy = dict(part.strategies[key])
            if quick and "evaluations" in strategy:
                strategy["evaluations"] = 1
            searched = problem.run(strategy, seed=seed, evaluations=evaluations, items=items)
            yield {"part": name, "name": key} | searched


def opened(part: Part, folder: Path, *, quick: bool) -> Searched:
    """Return the part's problem with its models in memory; checkpoints are trained first."""
    models = dict(checkpoints(folder, *((1, 4) if quick else (EVERY, BATCH)))) if part.checkpoints else {}
    return Searched(part.space, part.tasks, models)


def _column(results: Results, part: str, name: str, key: str) -> dict[int, float]:
    """Return a value of a strategy's searches by seed."""
    return {row["seed"]: row[key] for row in results["searches"] if (row["part"], row["name"]) == (part, name)}


def rows(results: Results, name: str) -> Iterator[tuple[str, str, str, str, str]]:
    """Yield what a part's rows hold: name, seeds, candidates, score and how far it is ahead of the part's first."""
    first = next(iter(PARTS[name].strategies))
    compared = _column(results, name, first, "score")
    score = results.get("founders", {}).get(name)
    if compared and score is not None:
        yield (
            "best founder",
            "",
            "",
            f"{100 * score:.1f}",
            _ahead(dict.fromkeys(compared, score), compared),
        )
    for key in PARTS[name].strategies:
        scores = _column(results, name, key, "score")
        if scores:
            asked = mean_and_error(list(_column(results, name, key, "candidates").values()), 0)
            gain = _ahead(scores, compared) if key != first else ""
            yield key, str(len(scores)), asked, mean_and_error(list(scores.values()), 1, 100), gain


def _ahead(scores: Mapping[int, float], others: Mapping[int, float]) -> str:
    """Return the mean difference over the seeds that both have."""
    return mean_and_error([scores[seed] - others[seed] for seed in sorted(scores.keys() & others.keys())], 1, 100)


def tables(results: Results) -> list[str]:
    """Return the README's tables: held-out scores and candidates, mean ± standard error over seeds."""
    lines = [
        "| | strategy | seeds | candidates | held-out score, % | ahead of the first of its part by |",
        "|---|---|---|---|---|---|",
    ]
    for name in PARTS:
        lines += ["|" + "".join(f" {cell} |" if cell else " |" for cell in (name, *row)) for row in rows(results, name)]
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
    for name in PARTS:
        for key, seeds, _, score, gain in rows(results, name):
            place = re.sub(r"[^\w.-]+", "_", f"{name}.{key}".replace("+", "_plus"))
            found |= {place: score, f"{place}.gain": gain, f"{place}.seeds": seeds}
    for kind in results["label-free"]:
        for way in WAYS:
            _, scores = _chosen(results, kind, way)
            if scores:
                found[f"{kind}.{way}".replace(" ", "_")] = mean_and_error(scores, 1, 100)
    return found


EXPERIMENT = Experiment(Path(__file__).parent, tables, rows="searches", figures=figures)

if __name__ == "__main__":
    main()
