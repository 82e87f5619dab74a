"""``python -m experiments.layer_systems`` measures, and continues from results.json; ``--quick`` keeps nothing.

Four systems of the field that act on layers, each on the zoo with equal numbers of candidates and of items for all
contenders: GPTailor's space (`tailoring`), RMM (`layer_actions` and `ppo`), M2N2 on task vectors (`mixture`), and the
data flow of Sakana on a model that needs a repeated layer (`data_flow`).
"""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from evomerge.merging.engine.engine import MergeEngine
from evomerge.merging.output.writer import write_checkpoint
from evomerge.merging.sources.checkpoints import Checkpoint
from evomerge.strategies import StrategyConfig
from experiments.data_flow.edits import MODELS
from experiments.harness import Experiment, Results
from experiments.layer_systems.searching import Searched
from experiments.layer_systems.walks import CONTENDERS, walked
from experiments.layer_systems.walks import EVALUATIONS as WALKS
from experiments.machine import machine
from search_spaces.recipes.baselines import task_arithmetic_recipe
from search_spaces.recipes.fields import PathLayer
from search_spaces.recipes.layer_path import path_recipe

SEEDS = 20
DEPTH = 6
GEN, OPS = "zoo_target_gen", "zoo_ops_en"
HALF = 0.5
M2N2, PPO, EDA, RANDOM = {"kind": "m2n2"}, {"kind": "ppo"}, {"kind": "eda"}, {"kind": "random"}
TASK_VECTORS = {"kind": "mixture", "chunks": 64, "relative_to": "base"}
OF_LAYERS, MUTATING = {**TASK_VECTORS, "chunks": "layers"}, {**M2N2, "mutation": 1.0}

QUICK, SMALL, LONG, LARGE, LARGEST = (8, 10), (60, 30), (160, 20), (160, 50), (240, 100)
"""Candidates of a search, and items of each."""
SIZES = {"": SMALL, ", 8,000 answers": LARGE, ", 24,000 answers": LARGEST}
"""Of M2N2's searches on task vectors."""


class Contender(NamedTuple):
    """A search that is run with each seed; `size` holds its candidates, and the items of each."""

    part: str
    name: str
    space: Mapping[str, Any]
    strategy: Mapping[str, Any]
    task: str
    size: tuple[int, int]
    halving: bool = False


PATHS = {"PPO": PPO, "random paths": RANDOM, "EDA": EDA}
"""Contenders of RMM; its paths begin with the base's, and no expert is known."""
TAILORS = {
    "EDA": (EDA, False),
    "random": (RANDOM, False),
    "EDA, halving": (EDA, True),
    "random, halving": (RANDOM, True),
}
"""Contenders of GPTailor: strategy, and whether generations are raced."""


def contenders() -> list[Contender]:
    """Return all searches of the zoo's four models."""
    steps = {"kind": "layer_actions", "merges": ["ties", "dare_ties"]}
    return [
        *niches(),
        Contender("M2N2", "layers, 24,000 answers", OF_LAYERS, M2N2, GEN, LARGEST),
        Contender("M2N2", "averages", {"kind": "mixture", "chunks": 64}, M2N2, GEN, SMALL),
        *(Contender("RMM", name, steps, strategy, OPS, LONG) for name, strategy in PATHS.items()),
        *(tailored(remove, name) for remove in (2, 1) for name in TAILORS),
        *alone(),
    ]


def niches() -> list[Contender]:
    """Return M2N2's contenders on task vectors."""
    kinds = {"task vectors": (TASK_VECTORS, M2N2), "layers and mutation": (OF_LAYERS, MUTATING)}
    return [
        Contender("M2N2", f"{kind}{answers}", space, strategy, GEN, size)
        for kind, (space, strategy) in kinds.items()
        for answers, size in SIZES.items()
    ]


def alone() -> list[Contender]:
    """Return the same without attraction."""
    return [
        one._replace(name=f"{one.name}, no attraction", strategy={**one.strategy, "attraction": False})
        for one in niches()
    ]


def tailored(remove: int, name: str) -> Contender:
    """Return a contender over GPTailor's space with `ops` as anchor and so many layers gone."""
    space = {"kind": "tailoring", "anchor": "ops", "remove": remove}
    return Contender(
        f"GPTailor, {remove} of 6 layers removed", name, space, TAILORS[name][0], OPS, SMALL, TAILORS[name][1]
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is missing, write ``results.json`` after each contender, and the tables into the README."""
    parser = EXPERIMENT.parser(__doc__, quick="one seed, few candidates")
    parser.add_argument("--minutes", type=float, default=1e9, help="stop before the next contender after so many")
    parser.add_argument("--only", default="", help="contenders of the systems whose names begin with this, such as RMM")
    given = parser.parse_args(arguments)
    out = EXPERIMENT.destination(given)
    os.environ["OMP_NUM_THREADS"] = "1"
    results = EXPERIMENT.read(out) if not given.quick else {}
    results.setdefault("searches", [])
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        for step in steps(results, Path(name), given.only, quick=given.quick):
            if time.perf_counter() - began > 60 * given.minutes:
                break
            step()
            results["machine"] = machine(1, "torch", "transformers")
            EXPERIMENT.write(out, results)
    print("\n".join(tables(results)))
    EXPERIMENT.publish(out, results)


def steps(results: Results, folder: Path, only: str, *, quick: bool) -> Iterator[Callable[[], None]]:
    """Yield what is still to be measured; each adds to `results`."""
    seeds = 1 if quick else SEEDS
    if "fixed" not in results:
        yield lambda: results.update(fixed=fixed())
    for name, config in CONTENDERS.items():
        if not _has(results, "planted walks", name):
            yield partial(_add, results, partial(_walked, name, config, seeds, 20 if quick else WALKS))
    if "repeats" not in results:
        yield lambda: results.update(repeats=repeats())
    zoo = contenders()[: 1 if quick else None]
    for place, contender in enumerate(zoo):
        if contender.part.startswith(only) and not _has(results, contender.part, contender.name):
            sized = contender._replace(size=QUICK) if quick else contender
            yield partial(_add, results, partial(searched, sized, Searched(sized.space, (sized.task,)), seeds))
        if not place and not _has(results, "data flow", "EDA"):
            yield partial(_add, results, partial(planted, folder, results["repeats"], QUICK if quick else SMALL, seeds))


def _add(results: Results, measure: Callable[[], list[dict[str, Any]]]) -> None:
    results["searches"] += measure()


def _walked(name: str, config: StrategyConfig, seeds: int, evaluations: int) -> list[dict[str, Any]]:
    return [walked(name, config, seed, evaluations) for seed in range(seeds)]


def _has(results: Results, part: str, name: str) -> bool:
    return any((row["part"], row["name"]) == (part, name) for row in results["searches"])


def searched(contender: Contender, problem: Searched, seeds: int) -> list[dict[str, Any]]:
    """Return one row per seed."""
    evaluations, items = contender.size
    given = {"evaluations": evaluations, "items": items, "halving": contender.halving}
    return [
        {"part": contender.part, "name": contender.name} | problem.run(contender.strategy, seed=seed, **given)
        for seed in range(seeds)
    ]


def fixed() -> dict[str, float]:
    """Return the held-out scores of the alternatives that need no search."""
    gen, ops = Searched({"kind": "data_flow"}, (GEN,)), Searched({"kind": "data_flow"}, (OPS,))
    merges = {scale: task_arithmetic_recipe(MODELS, DEPTH, scale, out_dtype="float32") for scale in (0.7, 0.8)}
    scores = {f"task arithmetic {scale}": gen.held_out(recipe) for scale, recipe in merges.items()}
    kept = [
        [PathLayer(MODELS["ops"], at) for at in layers]
        for layers in (range(6), (0, 1, 2, 3, 5), (0, 1, 2, 5), (0, 1, 5))
    ]
    paths = [path_recipe(path, MODELS["ops"], DEPTH, out_dtype="float32") for path in kept]
    return scores | {f"ops, {len(path)} layers": ops.held_out(recipe) for path, recipe in zip(kept, paths, strict=True)}


# --- a model that needs a repeated layer ---


def halved(layer: int, times: int) -> list[PathLayer]:
    """Return the path of `ops` with one layer at half strength, so many times in a row."""
    layers = [at for at in range(DEPTH) for _ in range(times if at == layer else 1)]
    return [PathLayer(MODELS["ops"], at, HALF if at == layer else 1.0) for at in layers]


def repeats() -> list[dict[str, float]]:
    """Return what halving each layer of `ops` costs on the held-out items, and what repeating it gives back."""
    problem = Searched({"kind": "data_flow"}, (OPS,))

    def score(layer: int, times: int) -> float:
        return problem.held_out(path_recipe(halved(layer, times), MODELS["ops"], DEPTH, out_dtype="float32"))

    return [{"layer": layer, "once": score(layer, 1), "twice": score(layer, 2)} for layer in range(DEPTH)]


def _gain(row: Mapping[str, float]) -> float:
    return row["twice"] - row["once"]


def planted(
    folder: Path, found: Sequence[Mapping[str, float]], size: tuple[int, int], seeds: int
) -> list[dict[str, Any]]:
    """Search paths through the halved model that a repeat helps most."""
    layer = int(max(found, key=_gain)["layer"])
    given, other = folder / "given", folder / "other"
    checkpoints = {reference: Checkpoint.open(reference) for reference in MODELS.values()}
    recipe = path_recipe(halved(layer, 1), MODELS["ops"], DEPTH, out_dtype="float32")
    write_checkpoint(MergeEngine(checkpoints, base=MODELS["ops"]), recipe, given)
    write_checkpoint(
        MergeEngine(checkpoints, base=MODELS["ops"]), path_recipe(halved(0, 1), MODELS["ops"], DEPTH), other
    )
    space = {"kind": "data_flow", "models": ["given"], "repeats": 2, "scales": "none", "order": "free"}
    problem = Searched(space, (OPS,), {"given": str(given), "other": str(other)})
    return [
        row
        for name, strategy in (("EDA", EDA), ("random", RANDOM))
        for row in searched(Contender("data flow", name, space, strategy, OPS, size), problem, seeds)
    ]


# --- tables ---


def _scores(results: Results, part: str, name: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.array([100 * row["score"] for row in results["searches"] if (row["part"], row["name"]) == (part, name)])


def _mean(scores: np.ndarray[Any, np.dtype[np.float64]]) -> str:
    error = scores.std(ddof=1) / len(scores) ** 0.5 if len(scores) > 1 else float("nan")
    return f"{scores.mean():.1f} ± {error:.1f}"


def tables(results: Results) -> list[str]:
    """Return the tables of the searches, of fixed merges, and of halved layers."""
    pairs = dict.fromkeys((row["part"], row["name"]) for row in results["searches"])
    lines = ["| system | contender | seeds | score, % | layers |", "|---|---|---|---|---|"]
    for part, name in sorted(pairs, key=lambda pair: pair[0]):
        scores = _scores(results, part, name)
        layers = np.mean([row["layers"] for row in results["searches"] if (row["part"], row["name"]) == (part, name)])
        lines.append(f"| {part} | {name} | {len(scores)} | {_mean(scores)} | {layers:.1f} |")
    without = ["| without a search | held-out, % |", "|---|---|"]
    without += [f"| {name} | {100 * score:.1f} |" for name, score in results.get("fixed", {}).items()]
    halves = ["| layer of ops at half strength | once, % | twice in a row, % |", "|---|---|---|"]
    halves += [
        f"| {row['layer']} | {100 * row['once']:.1f} | {100 * row['twice']:.1f} |" for row in results.get("repeats", [])
    ]
    return ["\n".join(lines), "\n".join(without), "\n".join(halves)]


def figures(results: Results) -> dict[str, str]:
    """Return the figures of sentences: each contender's score, fixed scores, shares kept."""
    pairs = dict.fromkeys((row["part"], row["name"]) for row in results["searches"])
    found = {f"{part}.{name}": _mean(_scores(results, part, name)) for part, name in pairs}
    fixed_scores = results.get("fixed", {})
    found |= {f"fixed.{name}": f"{100 * score:.1f}" for name, score in fixed_scores.items()}
    whole = fixed_scores.get("ops, 6 layers")
    if whole is not None:
        kept = {name: 100 * score for name, score in fixed_scores.items() if name.startswith("ops")}
        kept |= {
            f"{part}.{name}": _scores(results, part, name).mean() for part, name in pairs if part.startswith("GPTailor")
        }
        found |= {f"kept.{name}": f"{score / whole:.1f}" for name, score in kept.items()}
    for part, one, other in (
        ("planted walks", "PPO", "random paths"),
        ("RMM", "PPO", "random paths"),
        ("RMM", "PPO", "EDA"),
        *((f"GPTailor, {remove} of 6 layers removed", "EDA", "random") for remove in (1, 2)),
        *((f"GPTailor, {remove} of 6 layers removed", "EDA, halving", "EDA") for remove in (1, 2)),
        ("M2N2", "task vectors", "averages"),
        *(("M2N2", f"layers and mutation{answers}", f"task vectors{answers}") for answers in SIZES),
        ("M2N2", "layers and mutation, 24,000 answers", "layers, 24,000 answers"),
        *(("M2N2", with_it.name, without.name) for with_it, without in zip(niches(), alone(), strict=True)),
        ("data flow", "EDA", "random"),
    ):
        if {(part, one), (part, other)} <= pairs.keys():
            found[f"{part}.{one}.over.{other}"] = _mean(_scores(results, part, one) - _scores(results, part, other))
    if results.get("repeats"):
        best = max(results["repeats"], key=_gain)
        found |= {f"halved.{times}": f"{100 * best[times]:.1f}" for times in ("once", "twice")}
    return {re.sub(r"[^\w.]+", "_", name): figure for name, figure in found.items()}


EXPERIMENT = Experiment(Path(__file__).parent, tables, figures=figures, rows="searches")

if __name__ == "__main__":
    main()
