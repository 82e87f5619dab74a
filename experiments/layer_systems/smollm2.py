"""``python -m experiments.layer_systems.smollm2`` removes a quarter of SmolLM2's 30 layers; it continues where it was.

GPTailor's question at our scale, without healing: what is left of a merge of SmolLM2's two experts when layers go.
First the plain cuts, every block of neighbouring layers for several sizes; then searches over `tailoring` for eight
layers gone, with as many answers as each other. Candidates are compared by the log-likelihood of right answers, since
few of them answer anything right.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evomerge.config.load import load_mapping
from evomerge.merging.engine.engine import MergeEngine
from evomerge.merging.output.writer import write_checkpoint
from evomerge.merging.sources.checkpoints import Checkpoint
from evomerge.search.problem import Problem
from evomerge.search.scoring_workers import local_worker
from evomerge.workers.base import Request
from experiments.harness import Experiment, Results, mean_and_error
from experiments.layer_systems.searching import Searched
from experiments.machine import machine
from experiments.search_efficiency.smollm2 import TASKS, prepare_models
from fitness.items import positions_by_task
from search_spaces.recipes.fields import PathLayer
from search_spaces.recipes.layer_path import path_recipe
from search_spaces.recipes.recipe import Recipe
from search_spaces.spaces.space import Genotype

DEPTH, REMOVED = 30, 8
CUTS = (REMOVED, 4, 2, 1)
"""Layers that plain cuts remove."""
WEIGHTS = (0.5, 1.0)
"""Of both experts' task vectors in the merge that layers are removed from."""
BLOCKS = ("layers before the last", "best block")
"""Which block a plain cut removes."""
ITEMS, CONFIRMED, HELD_OUT = 16, 30, 60
"""Of each task: what a candidate, a finalist and a winner is asked."""
EVALUATIONS, SEEDS = 60, 20
STRATEGIES: Mapping[str, tuple[str, bool]] = {
    "EDA": ("eda", False),
    "random": ("random", False),
    "EDA after all blocks": ("eda", True),
}
"""Strategy, and whether all plain cuts are its first candidates."""


@dataclass
class Tailored(Searched):
    """Layers of SmolLM2's models, scored by the log-likelihood of right answers, in nats.

    Parameters
    ----------
    work
        Holds the models and tasks.
    """

    work: Path = Path()
    each: tuple[int, int] = (CONFIRMED, HELD_OUT)

    def settings(self) -> dict[str, Any]:
        """Return the search file."""
        return self._file({"metric": "answer_loss"})

    def _file(self, of_task: Mapping[str, str]) -> dict[str, Any]:
        fitness = {
            "tasks": [{"task": task, **of_task} for task in self.tasks],
            "include_path": [str(self.work / "tasks")],
            "held_out": "test",
        }
        space, models = dict(self.space), dict(self.models)
        strategy = {"kind": "random"}
        return {"models": models, "space": space, "fitness": fitness, "workers": {"threads": 1}, "strategy": strategy}

    def some(self, items: Sequence[str], each: int) -> tuple[str, ...]:
        """Return so many items of each task."""
        places = positions_by_task(items).values()
        return tuple(items[at] for of_task in places for at in of_task[:each])

    def confirming(self) -> tuple[str, ...]:
        """Return the search items that finalists are asked."""
        return self.some(self.problem.search_items, self.each[0])

    @cached_property
    def _exact(self) -> Any:
        """A worker for the tasks' own metrics."""
        return local_worker(Problem(load_mapping(self._file({})), scan=False)).worker

    def measured(self, recipe: Recipe) -> dict[str, float]:
        """Return log-likelihood and accuracy on held-out items of each task."""
        items = self.some(self.problem.held_out_items, self.each[1])
        found = {}
        for name, worker in (("log-likelihood", self.worker), ("accuracy", self._exact)):
            evaluation = worker.evaluate(Request(recipe, items))
            if evaluation.status != "ok":
                raise RuntimeError(f"a recipe cannot be scored: {evaluation.reason}")
            for task, places in positions_by_task(items).items():
                found[f"{name} {task}"] = float(evaluation.scores[places].mean())
        return found


def without(models: Mapping[str, str], first: int, count: int) -> Recipe:
    """Return the merge without a block of layers."""
    path = [PathLayer(models["merge"], at) for at in range(DEPTH) if not first <= at < first + count]
    return path_recipe(path, models["merge"], DEPTH)


def prepared(work: Path) -> dict[str, str]:
    """Make the models, unless they are there; return name to folder, the base first."""
    prepare_models(work, None)
    models = {name: str(work / name) for name in ("base", "sums", "dates")}
    if not (work / "merge").exists():
        space = {
            "kind": "layer_coefficients",
            "method": "task_arithmetic",
            "groups": "model",
            "weight": {"low": 0.0, "high": 1.5},
        }
        problem = Tailored(space, TASKS, models, work).problem
        engine = MergeEngine({folder: Checkpoint.open(folder) for folder in models.values()}, base=models["base"])
        write_checkpoint(engine, problem.space.decode(np.array(WEIGHTS)), work / "merge")
    return models | {"merge": str(work / "merge")}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is missing, and write after each cut and search."""
    parser = EXPERIMENT.parser(__doc__, quick="two cuts of one size and a search of two candidates, few items")
    parser.add_argument("--work", type=Path, default=Path("build/smollm2_table"), help="where models are kept")
    parser.add_argument("--minutes", type=float, default=1e9, help="start nothing after so many")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="searches per strategy")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    began = time.monotonic()
    out = EXPERIMENT.destination(given)
    results = EXPERIMENT.read(out) if not given.quick else {}
    for key in ("cuts", "searches"):
        results.setdefault(key, [])
    models = prepared(given.work.resolve())
    each = (1, 1) if given.quick else (CONFIRMED, HELD_OUT)
    space = {"kind": "tailoring", "anchor": "merge", "remove": REMOVED}
    problem = Tailored(space, TASKS, models, given.work.resolve(), each)
    for key, row in missing(results, problem, given.seeds, quick=given.quick):
        results[key].append(row)
        results["machine"] = machine(1, "torch", "transformers")
        EXPERIMENT.write(out, results)
        print(key, row, round(time.monotonic() - began), "s", flush=True)
        gc.collect()
        if time.monotonic() - began > 60 * given.minutes:
            break
    print("\n".join(tables(results)))
    EXPERIMENT.publish(out, results)


def missing(results: Results, problem: Tailored, seeds: int, *, quick: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the plain cuts and searches that the results do not have, with the key of their list."""
    done = {(row["removed"], row["by"]) for row in results["cuts"]}
    for removed in (0, *((REMOVED,) if quick else CUTS)):
        for by in BLOCKS if removed else BLOCKS[:1]:
            if (removed, by) not in done:
                first = best_block(problem, removed, quick=quick) if by == BLOCKS[1] else DEPTH - 1 - removed
                measured = problem.measured(without(problem.models, first, removed))
                yield "cuts", {"removed": removed, "by": by, "first": first, **measured}
    found = {(row["name"], row["seed"]) for row in results["searches"]}
    evaluations, items = (2, 2) if quick else (EVALUATIONS, 2 * ITEMS)
    for seed in range(1 if quick else seeds):
        for name, (kind, after) in STRATEGIES.items():
            if (name, seed) not in found:
                blocks = plain(problem)[: evaluations // 2 if quick else None] if after else []
                size: dict[str, Any] = {
                    "evaluations": evaluations - len(blocks),
                    "items": items,
                    "founders": blocks or None,
                }
                winner, _ = problem.best({"kind": kind}, seed=seed, **size)
                yield "searches", {"name": name, "seed": seed, **problem.measured(winner)}


def best_block(problem: Tailored, removed: int, *, quick: bool) -> int:
    """Return where the block begins that is best to remove, by as many search items as a candidate is asked."""
    asked = problem.some(problem.problem.search_items, min(ITEMS, problem.each[0]))
    places = range(2 if quick else DEPTH - removed + 1)
    cuts = {first: without(problem.models, first, removed) for first in places}
    return max(cuts, key=lambda first: problem.scored(cuts[first], asked).fitness)


def plain(problem: Tailored) -> list[Genotype]:
    """Return the point of each block of layers in the space that removes them, the space's start first."""
    space, points = problem.problem.space, []
    keys = [at for at, gene in enumerate(space.genes) if gene.name.startswith("keep")]
    for first in sorted(range(DEPTH - REMOVED + 1), key=lambda first: first != DEPTH - 1 - REMOVED):
        point = space.start.copy()
        point[keys] = 0.75
        point[keys[first : first + REMOVED]] = 0.25
        points.append(point)
    return points


KEYS = tuple(f"{kind} {task}" for kind in ("log-likelihood", "accuracy") for task in TASKS)


def tables(results: Results) -> list[str]:
    """Return the README's table: log-likelihoods in nats and accuracies in %, of cuts and of searches."""
    lines = [
        "| layers gone | by | seeds | sums: log-likelihood | dates: log-likelihood | sums right, % | dates right, % |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in sorted(results["cuts"], key=lambda row: row["removed"]):
        lines.append(_line(row["removed"], f"{row['by']}{_places(row)}" if row["removed"] else "", [row]))
    for name in STRATEGIES:
        rows = [row for row in results["searches"] if row["name"] == name]
        if rows:
            lines.append(_line(REMOVED, name, rows))
    return ["\n".join(lines)]


def _places(row: Mapping[str, Any]) -> str:
    last = row["first"] + row["removed"] - 1
    return f": {row['first']}" + (f" to {last}" if last > row["first"] else "")


def _line(removed: int, by: str, rows: Sequence[Mapping[str, Any]]) -> str:
    cells = [_mean(rows, key) for key in KEYS]
    seeds = str(len(rows)) if "seed" in rows[0] else ""
    return "|" + "".join(f" {cell} |" if cell else " |" for cell in (str(removed), by, seeds, *cells))


def _mean(rows: Sequence[Mapping[str, Any]], key: str) -> str:
    right = key.startswith("accuracy")
    return mean_and_error([row[key] for row in rows], 0 if right else 1, 100 if right else 1)


def _right(rows: Sequence[Mapping[str, Any]]) -> float:
    """Return the mean share of right answers over both tasks; not a number without rows."""
    keys = [key for key in KEYS if key.startswith("accuracy")]
    return sum(row[key] for row in rows for key in keys) / (len(keys) * len(rows)) if rows else math.nan


def figures(results: Results) -> dict[str, str]:
    """Return the figures of sentences."""
    found: dict[str, str] = {}
    whole = _right([row for row in results["cuts"] if not row["removed"]])
    named = [(f"{row['removed']}.{row['by']}", [row]) for row in results["cuts"]]
    named += [(name, [row for row in results["searches"] if row["name"] == name]) for name in STRATEGIES]
    for name, rows in named:
        if rows:
            found |= {f"smollm2.{name}.{key}".replace(" ", "_"): _mean(rows, key) for key in KEYS}
            found[f"smollm2.{name}.kept".replace(" ", "_")] = f"{100 * _right(rows) / whole:.0f}"
    return found


EXPERIMENT = Experiment(
    Path(__file__).parent,
    tables,
    module="smollm2",
    file="smollm2.json",
    marker="smollm2",
    rows="searches",
    figures=figures,
)

if __name__ == "__main__":
    main()
