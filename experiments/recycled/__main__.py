"""``python -m experiments.recycled`` trains the checkpoints, measures, and writes results; ``--quick`` keeps nothing.

The setting of Recycle Them (Khalifa et al., arXiv:2412.04144) on the zoo: 16 checkpoints of two short training runs
from the zoo's base, one on long operations in English and one on reading Japanese, mixed by shares that sum to one. The
aim is the mean of two tasks, one for each run. CMA-ES stands beside random shares, the greedy soup, the average and the
best checkpoint.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaForCausalLM

from experiments.harness import Experiment, Results, mean_and_error
from experiments.layer_systems.searching import Searched
from experiments.machine import machine
from experiments.zoo.tokenizer import build_tokenizer
from experiments.zoo.train import MODELS, STAGES, descending, save

TASKS = ("zoo_ops_en", "zoo_read_ja")
RUNS = ("ops", "ja")
CHECKPOINTS, EVERY, BATCH = 8, 10, 64
"""Of each run, how many and how many steps apart; problems per step."""
SEEDS, EVALUATIONS, ITEMS = 20, 60, 40
STRATEGIES: Mapping[str, Mapping[str, Any]] = {
    "CMA-ES": {"kind": "cma_es"},
    "random shares": {"kind": "random"},
    "greedy soup": {"kind": "greedy", "merge": "soup"},
}


def checkpoints(out: Path, every: int, batch: int) -> Iterator[tuple[str, str]]:
    """Train both runs from the base, one thread; yield each checkpoint's name and folder."""
    tokenizer = build_tokenizer()
    for index, run in enumerate(RUNS):
        stage = replace(STAGES[run], steps=CHECKPOINTS * every, batch=batch)
        model = LlamaForCausalLM.from_pretrained(MODELS / "base", dtype=torch.float32)
        for step, _ in enumerate(descending(model, stage, tokenizer, index), 1):
            if step % every == 0:
                name = f"{run}_{step}"
                save(deepcopy(model), tokenizer, out / name)  # saving rounds it
                yield name, str(out / name)


def fixed(mixed: Searched) -> dict[str, float]:
    """Return the held-out scores of the best checkpoint by search items, and of the average of all."""
    space = mixed.problem.space
    singles = [space.decode(point) for point in space.initial_population()]
    best = max(singles, key=lambda recipe: mixed.scored(recipe, mixed.confirming()).fitness)
    return {"best checkpoint": mixed.held_out(best), "average": mixed.held_out(space.decode(space.start))}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write."""
    parser = EXPERIMENT.parser(__doc__, quick="one seed, few steps and candidates")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="searches per strategy")
    given = parser.parse_args(arguments)
    out = EXPERIMENT.destination(given)
    seeds, evaluations, items, every, batch = (
        (1, 2, 4, 1, 4) if given.quick else (given.seeds, EVALUATIONS, ITEMS, EVERY, BATCH)
    )
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        mixed = Searched(
            {"kind": "mixture", "chunks": 1, "weights": "simplex"},
            TASKS,
            dict(checkpoints(Path(folder), every, batch)),
        )
        searches = []
        for seed in range(seeds):
            for name, strategy in STRATEGIES.items():
                found = mixed.run(strategy, seed=seed, evaluations=evaluations, items=items)
                searches.append({"name": name, "seed": seed, "score": found["score"]})
                print(searches[-1], flush=True)
        results = {"searches": searches, "fixed": fixed(mixed), "machine": machine(1, "torch", "transformers")}
    print(*tables(results), sep="\n")
    EXPERIMENT.publish(out, results)


def _scores(results: Results, name: str) -> list[float]:
    return [row["score"] for row in results["searches"] if row["name"] == name]


def tables(results: Results) -> list[str]:
    """Return the README's table: held-out scores, %, mean ± standard error over seeds."""
    lines = ["| shares by | seeds | held-out score, mean of both tasks, % |", "|---|---|---|"]
    lines += [f"| {name} | | {100 * score:.1f} |" for name, score in results["fixed"].items()]
    for name in STRATEGIES:
        scores = _scores(results, name)
        lines.append(f"| {name} | {len(scores)} | {mean_and_error(scores, 1, 100)} |")
    return ["\n".join(lines)]


def figures(results: Results) -> dict[str, str]:
    """Return the figures of sentences; differences are paired over seeds."""
    pairs = [np.subtract(_scores(results, "CMA-ES"), _scores(results, other)) for other in list(STRATEGIES)[1:]]
    return {
        **{name.replace(" ", "_"): f"{100 * score:.1f}" for name, score in results["fixed"].items()},
        **{name.replace(" ", "_"): mean_and_error(_scores(results, name), 1, 100) for name in STRATEGIES},
        "above_random": mean_and_error(pairs[0].tolist(), 1, 100),
        "above_soup": mean_and_error(pairs[1].tolist(), 1, 100),
    }


EXPERIMENT = Experiment(Path(__file__).parent, tables, rows="searches", figures=figures)

if __name__ == "__main__":
    main()
