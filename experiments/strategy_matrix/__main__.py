"""``python -m experiments.strategy_matrix`` runs what is missing of the matrix; ``--quick`` one row of it, few items.

Each strategy searches each space of the zoo with 12 evaluations, far too few to find anything: what is handed over
must still be no loss. The recipe of `best.yaml` is compared with every source and baseline on the held-out items, by
the paired test of the final table with Holm's correction; the same for the found recipe, which would be handed over
without a verdict. Pairs that a search file refuses are listed with the reason. Results are written after every search,
so that the command continues where it was stopped.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import evomerge
from evomerge.runs.history import RunHistory
from evomerge.runs.result import ROWS, paired_p_value, read_rows
from evomerge.runs.run import Run
from experiments.harness import Experiment, Results
from experiments.machine import machine
from fitness.estimation.intervals import holm
from search_spaces.recipes.mergekit_yaml import read

ZOO = Path(__file__).parent.parent / "zoo"
MODELS = ("base", "ops", "ja", "eo")
TASKS = ("zoo_target_ja", "zoo_short_en")
"""The second is for strategies that need two."""
TWO_TASKS = ("map_elites", "cma_me", "cycleqd", "nsga2", "nsga3", "map")
EVALUATIONS, ITEMS = 12, 25
SIGNIFICANT = 0.05
ALTERNATIVES = ("source", "uniform", "task_arithmetic", "start")

SMALL = {"population": 4}
STAGE = {"kind": "cma_es", **SMALL}
STRATEGIES: dict[str, dict[str, Any]] = {
    "auto": {"kind": "auto"},
    "cma_es": STAGE,
    "gradient, then cma_es": {"kind": "gradient", "items": 16, "steps": 6, "then": STAGE},
    "eda": {"kind": "eda", **SMALL},
    "catcma": {"kind": "catcma", **SMALL},
    "m2n2": {"kind": "m2n2", "archive": 4, "mutation": 0.5},
    "genetic": {"kind": "genetic", **SMALL},
    "genome_plus": {"kind": "genetic", "preset": "genome_plus", **SMALL},
    "map_elites": {"kind": "map_elites", **SMALL},
    "cma_me": {"kind": "cma_me", "emitters": 1, **SMALL},
    "cycleqd": {"kind": "cycleqd", "warm_up": 4, **SMALL},
    "nsga2": {"kind": "nsga2", **SMALL},
    "nsga3": {"kind": "nsga3", **SMALL},
    "map": {"kind": "map", "points": 10},
    "greedy": {"kind": "greedy", "samples": 4},
    "ppo": {"kind": "ppo", **SMALL},
    "nevergrad": {"kind": "nevergrad:TwoPointsDE"},
    "optuna": {"kind": "optuna:TPE"},
    "evo_merging": {"kind": "evo_merging", "evaluations": 6, "first": STAGE, "second": STAGE},
    "random": {"kind": "random"},
    "grid": {"kind": "grid"},
    "least_change": {"kind": "least_change"},
    "staged": {"kind": "staged", "evaluations": 6, "first": STAGE, "second": {"kind": "random"}},
}
SPACES: dict[str, dict[str, Any]] = {
    "task_arithmetic": {"method": "task_arithmetic", "layers_per_group": 3},
    "linear": {"method": "linear", "layers_per_group": 3},
    "ties": {"method": "ties", "layers_per_group": 6},
    "dare_ties": {"method": "dare_ties", "layers_per_group": 6},
    "two methods": {"method": ["task_arithmetic", "ties"], "layers_per_group": 6},
    "methods by layer": {"method": ["task_arithmetic", "ties"], "layers_per_group": 3, "method_scope": "layers"},
    "mixture": {"kind": "mixture", "chunks": "layers"},
    "signed mixture": {"kind": "mixture", "chunks": 4, "weights": "signed"},
    "data_flow": {"kind": "data_flow", "repeats": 1},
    "layer_actions": {"kind": "layer_actions", "merges": ["task_arithmetic"]},
    "tailoring": {"kind": "tailoring", "remove": 1},
    "two_stage": {"kind": "two_stage", "parameters": {"layers_per_group": 6}, "flow": {"repeats": 1}},
}


def search_file(strategy: str, space: str, items: int, held_out: str | float) -> dict[str, Any]:
    """Return the search of one pair."""
    several = strategy in ("nsga2", "nsga3", "map")
    tasks = TASKS[: 2 if strategy in TWO_TASKS else 1]
    return {
        "models": {name: str(ZOO / "models" / name) for name in MODELS},
        "space": SPACES[space],
        "strategy": STRATEGIES[strategy],
        "fitness": {
            "tasks": list(tasks),
            "include_path": [str(ZOO / "tasks")],
            "subset": {"items": items, "estimator": "mean"},
            "objectives": "per_task" if several else "weighted_sum",
            "held_out": held_out,
        },
        "budget": EVALUATIONS,
        "workers": {"threads": 1},
    }


def judged(strategy: str, space: str, items: int = ITEMS, held_out: str | float = "test") -> Results:
    """Search one pair; return how its recipes compare with the alternatives, or why the pair is refused."""
    pair = {"strategy": strategy, "space": space}
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run"
        try:
            result = evomerge.search(search_file(strategy, space, items, held_out), run=path)
        except ValueError as error:
            if path.exists():
                raise  # it was not refused before it began
            return pair | {"refused": str(error).splitlines()[0]}
        with Run.read(path) as run:
            history = RunHistory(run.events())
        assert (path / ROWS).is_file()
        rows = read_rows(path)
        handed = read(path / "best.yaml")
    scores = {name: history.reference_scores["held_out", recipe.hash] for name, recipe in rows.items()}
    kinds = {row.name: row.kind for row in result.held_out}
    alternatives = [name for name, kind in kinds.items() if kind in ALTERNATIVES]
    if space == "tailoring":  # the others have a layer more
        alternatives = [name for name in alternatives if kinds[name] == "start"]
    weights = dict.fromkeys(TASKS[: 2 if strategy in TWO_TASKS else 1], 1.0)
    best = history.reference_scores["held_out", handed.hash]

    def lost(one: str | None) -> list[str]:
        own = best if one is None else scores[one]
        adjusted = holm([paired_p_value(own, scores[name], weights) for name in alternatives])
        return [
            name
            for name, p in zip(alternatives, adjusted, strict=True)
            if p < SIGNIFICANT and own.scores.mean() < scores[name].scores.mean()
        ]

    assert result.verdict is not None
    return pair | {
        "outcome": result.verdict.outcome,
        "recommended": result.verdict.recommended,
        "best.yaml": round(float(best.scores.mean()), 4),
        "found": round(float(scores["found"].scores.mean()), 4),
        "best alternative": round(max(float(scores[name].scores.mean()) for name in alternatives), 4),
        "lost to": lost(None),
        "found lost to": lost("found"),
        "answers": result.search_items,
        "seconds": round(time.perf_counter() - started, 1),
    }


def tables(results: Results) -> list[str]:
    """Return the README's tables: the matrix, and its sums."""
    found = {(pair["strategy"], pair["space"]): pair for pair in results["pairs"]}
    strategies = [name for name in STRATEGIES if any(pair[0] == name for pair in found)]
    spaces = [name for name in SPACES if any(pair[1] == name for pair in found)]
    lines = ["| | " + " | ".join(spaces) + " |", "|---" * (len(spaces) + 1) + "|"]
    lines += [
        f"| {strategy} | " + " | ".join(_cell(found.get((strategy, space))) for space in spaces) + " |"
        for strategy in strategies
    ]
    ran = [pair for pair in results["pairs"] if "refused" not in pair]
    sums = [
        "| pairs searched | best.yaml significantly worse | found recipe significantly worse | better | "
        "indistinguishable | worse, and another handed over |",
        "|---|---|---|---|---|---|",
        f"| {len(ran)} | {sum(bool(pair['lost to']) for pair in ran)} | "
        f"{sum(bool(pair['found lost to']) for pair in ran)} | "
        + " | ".join(
            str(sum(pair["outcome"] == outcome for pair in ran)) for outcome in ("better", "indistinguishable", "worse")
        )
        + " |",
    ]
    return ["\n".join(lines), "\n".join(sums)]


def _cell(pair: Mapping[str, Any] | None) -> str:
    if pair is None or "refused" in pair:
        return "" if pair is None else "refused"
    mark = "**loss**" if pair["lost to"] else {"better": "+", "indistinguishable": "=", "worse": "→"}[pair["outcome"]]
    return f"{pair['best.yaml']:.2f} {mark}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Search what is missing, then write the tables."""
    parser = EXPERIMENT.parser(__doc__, quick="one strategy, 4 items a candidate, few held-out items")
    parser.add_argument("--strategies", nargs="+", default=list(STRATEGIES), choices=list(STRATEGIES))
    parser.add_argument("--spaces", nargs="+", default=list(SPACES), choices=list(SPACES))
    parser.add_argument("--minutes", type=float, default=None, help="stop after so many, between two searches")
    given = parser.parse_args(arguments)
    out = EXPERIMENT.destination(given)
    results = EXPERIMENT.read(out) or {"pairs": []}
    done = {(pair["strategy"], pair["space"]) for pair in results["pairs"]}
    started = time.monotonic()
    for strategy in given.strategies[:1] if given.quick else given.strategies:
        for space in given.spaces:
            if (strategy, space) in done or (given.minutes and time.monotonic() - started > 60 * given.minutes):
                continue
            results["pairs"].append(judged(strategy, space, *((4, 0.5) if given.quick else ())))
            results["machine"] = machine(1, "torch", "transformers", "lm_eval")
            EXPERIMENT.write(out, results)
            print(results["pairs"][-1], flush=True)
    print("\n\n".join(tables(results)))
    EXPERIMENT.publish(out, results)


EXPERIMENT = Experiment(Path(__file__).parent, tables, rows="pairs")

if __name__ == "__main__":
    main()
