"""``python -m experiments.finalists`` searches the zoo with several seeds and chooses among 1 to 15 finalists.

Each search is CMA-ES as the default strategy has it without gradients (sigma 0.1, 25 fresh items). Its best 15
candidates by their search scores then answer all search items and all held-out items, once. From these answers follows
which of them sequential halving finds for each number of finalists, how many answers it asks, and the held-out score of
what it finds.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import evomerge
from evomerge.config.load import load_recorded
from evomerge.runs.history import RunHistory
from evomerge.runs.result import Entry
from evomerge.runs.run import Run
from evomerge.search import sequential_halving
from evomerge.search.problem import Problem
from evomerge.search.recorded_scoring import RecordedScorer
from evomerge.search.scoring_workers import start_pool
from experiments.harness import Experiment, Results, mean_and_error
from experiments.machine import machine
from fitness.estimation.subset import generator
from fitness.results import Evaluation
from search_spaces.recipes.baselines import source_recipe

ZOO = Path(__file__).parent.parent / "zoo"
COUNTS = (1, 2, 4, 6, 8, 15)
EVALUATIONS = 120


def search_file(evaluations: int) -> dict[str, Any]:
    """Return the search."""
    return {
        "models": {name: str(ZOO / "models" / name) for name in ("base", "ops", "ja", "eo")},
        "space": {
            "method": "task_arithmetic",
            "layers_per_group": 1,
            "weight": {"low": -0.5, "high": 2.0, "start": 0.7},
        },
        "strategy": {"kind": "cma_es", "sigma": 0.1},
        "fitness": {
            "tasks": ["zoo_target_mc"],
            "include_path": [str(ZOO / "tasks")],
            "subset": {"items": 25, "estimator": "mean", "rotate": True},
            "held_out": "test",
            "finalists": 1,
        },
        "budget": evaluations,
        "workers": {"threads": 1},
    }


def answers_of(seed: int, evaluations: int, most: int) -> Results:
    """Search once; return what the best candidates answer on all items, and by which items they were chosen."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run"
        evomerge.search(search_file(evaluations), run=path, overrides=[f"seed={seed}"])
        problem = Problem(load_recorded(path, ()))
        with Run.open(path) as run:
            history = RunHistory(run.events())
            asked = history.asked
            best = [one for one in history.ranking() if asked[one].candidate.kind != "founder"][:most]
            scorer = RecordedScorer(run, history, start_pool(problem))
            recipes = [problem.space.decode(asked[one].candidate.genotype) for one in best]
            entries = [Entry(f"candidate {one}", "found", recipe) for one, recipe in zip(best, recipes, strict=True)]
            search_CI = [scorer.confirm(entry, problem.search_items).scores.tolist() for entry in entries]
            held_out = [
                float(scorer.score("held_out", entry, problem.held_out_items).scores.mean()) for entry in entries
            ]
            known = [list(history.evaluation(one).items) for one in best]
    return {
        "seed": seed,
        "items": list(problem.search_items),
        "search": search_CI,
        "held-out": held_out,
        "known": known,
    }


def chosen(found: Results, count: int) -> tuple[float, int]:
    """Return the held-out score of what halving finds among the first `count`, and how many answers it asks."""
    items = found["items"]
    place = {item: at for at, item in enumerate(items)}
    finalists = [Entry(str(at), "found", source_recipe(str(at), 2)) for at in range(min(count, len(found["search"])))]
    asked = {one.name: set(found["known"][int(one.name)]) for one in finalists}
    order = sequential_halving.in_order(items, set().union(*asked.values()), generator(found["seed"], 0))
    new = 0

    def score(entry: Entry, wanted: tuple[str, ...]) -> Evaluation:
        nonlocal new
        new += len(set(wanted) - asked[entry.name])
        asked[entry.name] |= set(wanted)
        given = found["search"][int(entry.name)]
        scores = np.array([given[place[item]] for item in wanted], np.float32)
        answers = Evaluation("ok", items=wanted, scores=scores)
        return replace(answers, objectives=(float(scores.mean()),), standard_errors=(0.0,))

    best, _ = sequential_halving.best(finalists, order, score)
    return found["held-out"][int(best.name)], new


def tables(results: Results) -> list[str]:
    """Return the README's table: a line for each number of finalists."""
    searches = results["searches"]
    lines = [
        "| finalists | found, held out | difference to 15, paired | answers that choose | the best of 15 loses |",
        "|---|---|---|---|---|",
    ]
    most = [search["chosen"][str(COUNTS[-1])][0] for search in searches]
    top = [search["best"] for search in searches]
    for count in COUNTS:
        own = [search["chosen"][str(count)] for search in searches]
        apart = mean_and_error([score - other for (score, _), other in zip(own, most, strict=True)], 1, 100)
        lost = mean_and_error([best - score for (score, _), best in zip(own, top, strict=True)], 1, 100)
        answers = np.mean([asked for _, asked in own])
        held_out = mean_and_error([score for score, _ in own], 1, 100)
        lines.append(f"| {count} | {held_out} | {apart} | {answers:,.0f} | {lost} |")
    return ["\n".join(lines)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Search with the seeds that are missing, then write the table."""
    parser = EXPERIMENT.parser(__doc__, quick="one seed, 8 evaluations, 3 finalists")
    parser.add_argument("--seeds", type=int, default=20)
    given = parser.parse_args(arguments)
    out = EXPERIMENT.destination(given)
    results = EXPERIMENT.read(out) or {"searches": []}
    done = {search["seed"] for search in results["searches"]}
    for seed in range(1 if given.quick else given.seeds):
        if seed in done:
            continue
        found = answers_of(seed, *((8, 3) if given.quick else (EVALUATIONS, COUNTS[-1])))
        by_count = {str(count): chosen(found, count) for count in COUNTS}
        results["searches"].append({"seed": seed, "best": max(found["held-out"]), "chosen": by_count})
        results["machine"] = machine(1, "torch", "transformers", "lm_eval")
        EXPERIMENT.write(out, results)
        print(json.dumps(results["searches"][-1]), flush=True)
    print(tables(results)[0])
    EXPERIMENT.publish(out, results)


EXPERIMENT = Experiment(Path(__file__).parent, tables, rows="searches")

if __name__ == "__main__":
    main()
