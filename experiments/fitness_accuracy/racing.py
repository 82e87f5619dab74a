"""``python -m experiments.fitness_accuracy.racing --responses DIR``: what racing saves, and what it costs.

A generation is twelve models that resemble two parents: a published merge of theirs, and random ones of the 60 models
whose answers agree most with the parents'. They answer 40 items in blocks of 8, once with racing
(`evomerge.search.racing.pool`, the default rule) and once without. Regret is measured on the full scores: of the
candidate with the best estimate at the end, and of the half that a strategy would keep. The prior is learnt from the
half of the merges that the generation's merge is not in.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from experiments.fitness_accuracy.calibration import calibrate, others
from experiments.fitness_accuracy.data import Benchmark, load, simulate
from experiments.fitness_accuracy.learn import CALIBRATION, SEED, all_merges, learn_from
from experiments.fitness_accuracy.validation import half, using
from experiments.harness import Experiment, Results
from fitness.config import RacingConfig
from fitness.estimation import EstimatorInputs
from fitness.estimation.posterior import posterior
from fitness.estimation.racing_rules import Race, common_correlation
from fitness.estimation.subset import default_subset
from fitness.results import Estimate

CANDIDATES, NEAREST, ITEMS, BLOCK, KEEP = 12, 60, 40, 8, 6
RULES: Mapping[str, tuple[float, float] | None] = {
    "error 0.1 alone": (0.1, 0.0),
    "error 0.1": (0.1, RacingConfig().indifference),
    "halving": None,
}
"""Label to the error and the indifference of `fitness.racing`; None: successive halving."""
FIRST_DRAW = 2  # the indifference was chosen on the generations of draws 0 and 1


@dataclass(frozen=True)
class Outcome:
    """One generation's race. Regrets in pp: what is lost to the same generation without racing."""

    benchmark: str
    rule: str
    saved: float
    best_regret: float
    kept_regret: float
    best_regret_without: float


@dataclass(frozen=True, eq=False)
class Generation:
    """Candidates' answers to all items float64[C, I], what is known of them, and the order of the asked items."""

    answers: np.ndarray
    known: EstimatorInputs
    order: np.ndarray

    def estimates(self, asked: Sequence[int]) -> list[Estimate]:
        """Return each candidate's estimate from its first `asked` answers."""
        return [
            posterior(self.known.prior, row[self.order[:count]], self.order[:count])
            for row, count in zip(self.answers, asked, strict=True)
        ]


def relatives(benchmark: Benchmark, parents: Sequence[int]) -> np.ndarray:
    """Return the rows of the models whose answers agree most with the parents', the closest first."""
    strangers = others(benchmark)
    distance = np.abs(benchmark.scores[strangers][:, None] - benchmark.scores[list(parents)]).mean((1, 2))
    return np.asarray(strangers[np.argsort(distance)[:NEAREST]])


def generation(benchmark: Benchmark, merge: int, parents: Sequence[int], draw: int) -> Generation:
    """Return the merge with random relatives of its parents."""
    rng = np.random.default_rng([SEED, draw, merge])
    parent_TI = benchmark.scores[list(parents)]
    rows = [merge, *rng.choice(relatives(benchmark, parents), CANDIDATES - 1, replace=False)]
    banks = calibrate("merges", benchmark, CALIBRATION, SEED, draw).banks
    known = EstimatorInputs(parent_TI.shape[1], parents=parent_TI, banks=banks)
    asked = default_subset(known.prior, ITEMS, SEED, draw)
    return Generation(benchmark.scores[rows], known, rng.permutation(asked))


def race(given: Generation, error: float, indifference: float) -> list[int]:
    """Return how many items each candidate was asked."""
    looks = ITEMS // BLOCK - 1
    running = Race(CANDIDATES, KEEP, error, looks, indifference=indifference)
    asked = np.zeros(CANDIDATES, int)
    for look in range(1, looks + 1):
        asked[running.active] = look * BLOCK
        answered_CI = given.answers[:, given.order[: look * BLOCK]].copy()
        answered_CI[np.arange(look * BLOCK) >= asked[:, None]] = np.nan
        estimates = given.estimates(asked.tolist())
        running.update_estimates(estimates, common_correlation(answered_CI), look * BLOCK / ITEMS)
    asked[running.active] = ITEMS
    return asked.tolist()


def halving(given: Generation) -> list[int]:
    """Return how many items each candidate is asked if the better half continues each time their number has doubled."""
    asked, racing, count = np.zeros(CANDIDATES, int), np.arange(CANDIDATES), BLOCK
    while True:
        asked[racing] = min(count, ITEMS)
        if count >= ITEMS or len(racing) == 1:
            return asked.tolist()
        value = np.array([each.value for each in given.estimates(asked.tolist())])
        racing = racing[np.argsort(-value[racing], kind="stable")[: -(-len(racing) // 2)]]
        count *= 2


def outcomes(benchmark: Benchmark, draws: int, side: int) -> list[Outcome]:
    """Race the generations of one half of the merges with every rule."""
    found = []
    for merge, parents in all_merges(benchmark):
        if half(benchmark, parents) != side:
            continue
        for draw in range(FIRST_DRAW, FIRST_DRAW + draws):
            given = generation(benchmark, merge, parents, draw)
            true = 100 * given.answers.mean(1)
            whole = np.array([each.value for each in given.estimates([ITEMS] * CANDIDATES)])
            for rule, chosen in RULES.items():
                asked = halving(given) if chosen is None else race(given, *chosen)
                value = np.array([each.value for each in given.estimates(asked)])
                kept, kept_whole = np.argsort(-value)[:KEEP], np.argsort(-whole)[:KEEP]
                found.append(
                    Outcome(
                        benchmark.name,
                        rule,
                        100 * (1 - sum(asked) / ITEMS / CANDIDATES),
                        float(true[whole.argmax()] - true[value.argmax()]),
                        float(true[kept_whole].mean() - true[kept].mean()),
                        float(true.max() - true[whole.argmax()]),
                    )
                )
    return found


def summary(found: Sequence[Outcome]) -> dict[str, dict[str, dict[str, float]]]:
    """Return rule to benchmark (and `average`) to the figures' means and the standard errors of regrets."""
    names = sorted({each.benchmark for each in found})
    result: dict[str, dict[str, dict[str, float]]] = {}
    for rule in RULES:
        by_name = {}
        for name in names:
            own = [asdict(each) for each in found if each.benchmark == name and each.rule == rule]
            figures = {
                key: float(np.mean([each[key] for each in own])) for key in own[0] if key not in ("benchmark", "rule")
            }
            for key in ("best_regret", "kept_regret"):
                figures[f"{key}_error"] = float(np.std([each[key] for each in own], ddof=1) / len(own) ** 0.5)
            by_name[name] = figures
        average = {key: float(np.mean([each[key] for each in by_name.values()])) for key in by_name[names[0]]}
        for key in ("best_regret_error", "kept_regret_error"):
            average[key] = float(np.linalg.norm([each[key] for each in by_name.values()]) / len(names))
        result[rule] = {**by_name, "average": average}
    return result


def tables(results: Results) -> list[str]:
    """Return the table of savings and regrets."""
    lines = [
        "| rule | benchmark | answers saved | regret of the best | regret of the kept half | best without racing |"
    ]
    lines.append("|---|---|---|---|---|---|")
    rows: Mapping[str, Mapping[str, Mapping[str, float]]] = results["racing"]
    for rule, by_name in rows.items():
        for name, row in by_name.items():
            best, kept = (f"{row[key]:+.2f} ± {row[f'{key}_error']:.2f}" for key in ("best_regret", "kept_regret"))
            lines.append(
                f"| {rule} | {name} | {row['saved']:.0f} % | {best} | {kept} | {row['best_regret_without']:.2f} |"
            )
    return ["\n".join(lines)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Race, print the table and write the results."""
    parser = EXPERIMENT.parser(__doc__, quick="one draw; simulated responses unless --responses is given")
    parser.add_argument("--responses", type=Path, help="folder with *.npz matrices and merges.json")
    parser.add_argument("--draws", type=int, default=4, help="generations per merge")
    given = parser.parse_args(arguments)
    if given.responses is None and not given.quick:
        parser.error("no responses: give --responses DIR, or --quick to simulate some")
    benchmarks = load(given.responses) if given.responses else simulate(SEED)
    draws = 1 if given.quick else given.draws
    out, start = EXPERIMENT.destination(given), time.perf_counter()
    found = []
    for side in (0, 1):
        with using(learn_from(benchmarks, (0,), lambda *merge, side=side: half(*merge) != side)):
            found += [each for benchmark in benchmarks for each in outcomes(benchmark, draws, side)]
    results: Results = {
        "draws": draws,
        "generations": len(found) // len(RULES),
        "seconds": round(time.perf_counter() - start, 1),
        "machine": {"cpu": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()},
        "racing": summary(found),
    }
    print("\n\n".join(tables(results)))
    EXPERIMENT.publish(out, results)


EXPERIMENT = Experiment(Path(__file__).parent, tables, module="racing", file="racing.json", marker="racing")

if __name__ == "__main__":
    main()
