"""``python -m experiments.fitness_accuracy.finalists --responses DIR``: how many finalists a search needs.

The candidates of a search are 60 models that resemble two parents: a published merge of theirs and those models whose
answers agree most with the parents'. Each has answered 20 items, another 20 in each generation of 15, from which its
score is estimated. The best few are the finalists, among which sequential halving chooses by answers to all items
(`evomerge.search.sequential_halving`). Regret is what the chosen one's full score lacks to the best candidate's.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evomerge.search.sequential_halving import rounds
from experiments.fitness_accuracy.calibration import calibrate
from experiments.fitness_accuracy.data import Benchmark, load, simulate
from experiments.fitness_accuracy.learn import CALIBRATION, SEED, all_merges, learn_from
from experiments.fitness_accuracy.racing import relatives
from experiments.fitness_accuracy.validation import half, using
from experiments.harness import Experiment, Results
from fitness.estimation import EstimatorInputs
from fitness.estimation.posterior import posterior
from fitness.estimation.subset import default_subset, generator, random

CANDIDATES, POPULATION, ITEMS = 60, 15, 20
FINALISTS = (1, 2, 4, 6, 8, 15, 30)


@dataclass(frozen=True)
class Outcome:
    """One search's end. `answers`: of the finalists, as a multiple of the benchmark's items; `regret` in pp."""

    benchmark: str
    estimator: str
    finalists: int
    answers: float
    regret: float


def halved(answers: np.ndarray, ranked: Sequence[int], rng: np.random.Generator) -> tuple[int, int]:
    """Return the finalist that sequential halving chooses, and how many answers that takes.

    Parameters
    ----------
    answers
        float64[C, I].
    ranked
        The finalists' rows, the best by their estimates first.
    """
    order, asked, racing, before = rng.permutation(answers.shape[1]), 0, list(ranked), 0
    for left, share in rounds(len(racing)):
        if len(racing) == 1:
            break
        count = max(1, round(share * len(order)))
        racing = racing[:left]
        asked += left * (count - before)
        before = count
        racing.sort(key=lambda row: -answers[row, order[:count]].mean())
    return racing[0], asked


def outcomes(benchmark: Benchmark, draw: int, side: int) -> list[Outcome]:
    """End the searches of one half of the merges with each number of finalists."""
    found = []
    for merge, parents in all_merges(benchmark):
        if half(benchmark, parents) != side:
            continue
        rng = np.random.default_rng([SEED, draw, merge])
        answers = benchmark.scores[[merge, *relatives(benchmark, parents)[: CANDIDATES - 1]]]
        banks = calibrate("merges", benchmark, CALIBRATION, SEED, draw).banks
        given = EstimatorInputs(answers.shape[1], parents=benchmark.scores[list(parents)], banks=banks).prior
        estimate_EC = np.empty((2, CANDIDATES))
        for place, row in enumerate(rng.permutation(CANDIDATES)):
            generation = place // POPULATION
            plain = random(answers.shape[1], ITEMS, generator(draw, generation))
            asked = default_subset(given, ITEMS, draw, generation)
            estimate_EC[:, row] = answers[row, plain].mean(), posterior(given, answers[row, asked], asked).value
        true_C = 100 * answers.mean(1)
        for name, estimate_C in zip(("mean", "inherited"), estimate_EC, strict=True):
            ranked = np.argsort(-estimate_C, kind="stable")
            for count in FINALISTS:
                chosen, used = halved(answers, ranked[:count].tolist(), rng)
                regret = float(true_C.max() - true_C[chosen])
                found.append(Outcome(benchmark.name, name, count, used / answers.shape[1], regret))
    return found


def summary(found: Sequence[Outcome]) -> dict[str, dict[str, dict[str, float]]]:
    """Return estimator to number of finalists to answers, regret and its standard error, averaged over benchmarks."""
    names = sorted({each.benchmark for each in found})
    result: dict[str, dict[str, dict[str, float]]] = {}
    for estimator in dict.fromkeys(each.estimator for each in found):
        for count in FINALISTS:
            own = [
                [each for each in found if (each.benchmark, each.estimator, each.finalists) == (name, estimator, count)]
                for name in names
            ]
            regrets = [np.array([each.regret for each in some]) for some in own]
            spread = [float(values.std() / max(1, len(values) - 1) ** 0.5) for values in regrets]
            result.setdefault(estimator, {})[str(count)] = {
                "answers": float(np.mean([each.answers for some in own for each in some])),
                "regret": float(np.mean([values.mean() for values in regrets])),
                "error": float(np.linalg.norm(spread) / len(names)),
            }
    return result


def tables(results: Results) -> list[str]:
    """Return the table of regrets."""
    lines = [
        "| finalists | their answers, × items | regret after means of 20 | regret after `inherited` |",
        "|---" * 4 + "|",
    ]
    rows = results["finalists"]
    for count in results["numbers"]:
        shown = [f"{rows[name][str(count)]['regret']:.2f} ± {rows[name][str(count)]['error']:.2f}" for name in rows]
        answers = rows["inherited"][str(count)]["answers"]
        lines.append(f"| {count} | {answers:.1f} | {' | '.join(shown)} |")
    return ["\n".join(lines)]


def main(arguments: Sequence[str] | None = None) -> None:
    """End the searches, print the table and write the results."""
    parser = EXPERIMENT.parser(__doc__, quick="one draw; simulated responses unless --responses is given")
    parser.add_argument("--responses", type=Path, help="folder with *.npz matrices and merges.json")
    parser.add_argument("--draws", type=int, default=2, help="searches per merge")
    given = parser.parse_args(arguments)
    if given.responses is None and not given.quick:
        parser.error("no responses: give --responses DIR, or --quick to simulate some")
    benchmarks = load(given.responses) if given.responses else simulate(SEED)
    out, start, found = EXPERIMENT.destination(given), time.perf_counter(), list[Outcome]()
    for side in (0, 1):
        with using(learn_from(benchmarks, (0,), lambda *merge, side=side: half(*merge) != side)):
            for draw in range(1 if given.quick else given.draws):
                found += [each for benchmark in benchmarks for each in outcomes(benchmark, draw, side)]
    results: Results = {
        "numbers": list(FINALISTS),
        "searches": len(found) // len(FINALISTS) // 2,
        "seconds": round(time.perf_counter() - start, 1),
        "machine": {"cpu": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()},
        "finalists": summary(found),
    }
    print("\n\n".join(tables(results)))
    EXPERIMENT.publish(out, results)


EXPERIMENT = Experiment(Path(__file__).parent, tables, module="finalists", file="finalists.json", marker="finalists")

if __name__ == "__main__":
    main()
