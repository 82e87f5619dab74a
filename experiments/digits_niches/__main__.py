"""``python -m experiments.digits_niches`` runs the comparison; ``--quick`` runs all methods for a few evaluations.

From *trained halves*: pairs of networks, each half trained on five digits; from *scratch*: two random networks and
noise on every child. The accuracy is measured on the 360 test images, for the network that is best on the 1437
training images among those that a method holds.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from scipy.stats import ttest_1samp

from experiments.digits_niches.methods import METHODS, Case, Line, Outcome, best_line, run, use_threads
from experiments.harness import Experiment, Results, mean_and_error, plotted
from experiments.machine import machine

PAIRS = range(5)
"""Pairs of halves that all methods begin with, M2N2 and the genetic algorithm with each of the seeds."""
MORE_PAIRS = range(5, 20)
"""Further pairs, with one seed."""
SEEDS = range(5)
SHOWN = (100, 1000, 2000, 10_000, 20_000, 50_000)


PUBLISHED: dict[str, tuple[tuple[int, ...], dict[str, tuple[float | None, ...]]]] = {
    "From trained halves": (
        (100, 500, 1000, 2000, 4000, 6000, 8000, 10_000),
        {
            "M2N2": (61.6, 63.9, 64.4, 65.4, 67.1, 67.3, 68.3, 68.4),
            "M2N2, no attraction": (57.8, 61.9, 62.2, 62.6, 65.0, 65.5, 66.0, 66.2),
            "MAP-Elites": (56.0, 59.2, 60.3, 61.3, 61.6, 61.6, 61.7, 62.3),
            "M2N2, no split point": (57.6, 57.4, 57.8, 57.8, None, None, None, 57.8),
            "GA": (51.3, 52.0, 52.0, None, None, None, None, 52.0),
        },
    ),
    "From scratch": (
        (1000, 2000, 10_000, 20_000, 30_000, 40_000, 50_000),
        {
            "M2N2": (33.7, 45.5, 82.4, 85.9, 86.5, 87.0, 87.2),
            "CMA-ES, full covariance": (48.8, 59.8, 78.5, 81.6, 84.3, 85.2, 86.0),
            "M2N2, no crossover": (35.0, 40.5, 62.6, 70.4, 74.1, 76.2, 77.1),
            "GA, no crossover": (36.0, 45.0, 61.6, 66.1, 69.5, 70.5, 71.4),
            "GA": (43.0, 50.9, 64.5, 66.6, 67.4, 67.9, 68.3),
            "MAP-Elites": (37.0, 41.0, 52.4, 55.3, 58.4, 60.7, 60.2),
        },
    ),
}
"""Test accuracy in per cent by evaluations, read off the figure of arXiv 2508.16204 to about half a point; ten runs."""
OURS = {"CMA-ES, full covariance": "CMA-ES, unit covariance"}
"""Published methods that have another name here."""


def cases() -> list[Case]:
    """Return all runs; those that the README's statements rest on come first."""
    return [
        *(Case("M2N2", None, seed, 50_000) for seed in SEEDS),
        *(Case(method, pair, seed, 10_000) for seed in SEEDS for pair in PAIRS for method in ("M2N2", "GA")),
        *(Case("M2N2, no split point", pair, 0, 10_000) for pair in PAIRS),
        *(Case(method, pair, 0, 10_000) for pair in PAIRS for method in ("M2N2, no attraction", "MAP-Elites")),
        *(Case(method, pair, 0, 10_000) for pair in MORE_PAIRS for method in ("M2N2", "M2N2, no attraction")),
        *(Case(method, None, seed, 50_000) for seed in SEEDS for method in FROM_SCRATCH),
        *(Case("CMA-ES, separable", None, seed, 10_000) for seed in range(2)),
        *(
            Case(method, pair, 0, 10_000)
            for pair in MORE_PAIRS
            for method in ("GA", "MAP-Elites", "M2N2, no split point")
        ),
    ]


UNIT = "CMA-ES, unit covariance"
FROM_SCRATCH = (UNIT, "GA", "M2N2, no crossover", "GA, no crossover", "MAP-Elites")
"""What M2N2 is compared with from scratch."""


def quick_cases() -> list[Case]:
    """Return a run of each method for a few evaluations: from scratch, and from halves if it is meant for them."""
    scratch_only = {method for method in METHODS if "CMA" in method or "no crossover" in method}
    return [
        Case(method, pair, 0, 60)
        for method in METHODS
        for pair in (0, None)
        if pair is None or method not in scratch_only
    ]


# --- tables ---


def tables(results: Results) -> list[str]:
    """Return the README's tables: accuracies by method, by pair, and how fast the authors' program is and ours."""
    outcomes, lines = read(results)
    rest = [by_pair(outcomes, lines), beside_the_paper(outcomes)] if lines else []
    return [by_method(outcomes, lines), *rest, *([speeds(results["speed"])] if results["speed"] else [])]


def by_method(outcomes: Sequence[Outcome], lines: Sequence[Line]) -> str:
    """Return test accuracy in per cent against evaluations, from trained halves and from scratch."""
    parts = []
    for title, scratch in (("From trained halves", False), ("From scratch", True)):
        mine = [outcome for outcome in outcomes if (outcome.case.pair is None) == scratch]
        if not mine:
            continue
        most = max(count for outcome in mine for count in outcome.evaluations)
        shown = [count for count in SHOWN if count <= most] or [most]
        head = " | ".join(f"{count:,}" for count in shown)
        parts += [f"{title}:\n", f"| method | runs | {head} | train at the end |"]
        parts.append("|---" * (len(shown) + 3) + "|")
        parts += [_row(method, mine, shown) for method in METHODS if any(o.case.method == method for o in mine)]
        if not scratch and lines:
            test = _percent([line.test for line in lines])
            train = _percent([line.train for line in lines])
            parts.append(f"| best single ratio | {len(lines)} | {' | '.join([test] * len(shown))} | {train} |")
        parts.append("")
    return "\n".join(parts)


def by_pair(outcomes: Sequence[Outcome], lines: Sequence[Line]) -> str:
    """Return the test accuracy of each pair of halves: theirs, the best ratio's, M2N2's and the genetic algorithm's."""
    rows = ["| pair | halves | best ratio | M2N2, five seeds | GA |", "|---|---|---|---|---|"]
    for line in lines[: len(PAIRS)]:
        found = {
            method: [o.test[-1] for o in outcomes if (o.case.method, o.case.pair) == (method, line.pair)]
            for method in ("M2N2", "GA")
        }
        halves = ", ".join(f"{100 * half:.0f}" for half in line.halves)
        seeds = ", ".join(f"{100 * test:.1f}" for test in found["M2N2"])
        mean = 100 * statistics.mean(found["GA"])
        rows.append(f"| {line.pair} | {halves} | {100 * line.test:.1f} | {seeds} | {mean:.1f} |")
    return "\n".join(rows)


def beside_the_paper(outcomes: Sequence[Outcome]) -> str:
    """Return the published test accuracies and ours at the same numbers of evaluations, with errors over pairs."""
    parts = []
    for title, scratch in (("From trained halves", False), ("From scratch", True)):
        counts, curves = PUBLISHED[title]
        parts += [f"{title}:\n", f"| method | | {' | '.join(f'{count:,}' for count in counts)} |"]
        parts.append("|---" * (len(counts) + 2) + "|")
        for method, curve in curves.items():
            parts.append(f"| {method} | paper | {' | '.join('' if x is None else f'{x:.1f}' for x in curve)} |")
            own = OURS.get(method, method)
            mine = [o for o in outcomes if o.case.method == own and (o.case.pair is None) == scratch]
            if mine:
                ours = [_over_pairs(mine, count) for count in counts]
                parts.append(f"| {own if own != method else ''} | ours | {' | '.join(ours)} |")
        parts.append("")
    return "\n".join(parts)


def speeds(found: dict[str, Any]) -> str:
    """Return evaluations per second of the authors' program and of ours."""
    ours = " | ".join(f"{found[name]:.0f} | {found[f'{name}.ratio']}" for name in ("one", "ours"))
    head = "| load at the start | authors' program | ours, one thread | ratio | ours, a thread for each core | ratio |"
    return "\n".join([head, "|---" * 6 + "|", f"| {found['load']} | {found['authors']:.0f} | {ours} |"])


def _row(method: str, outcomes: Sequence[Outcome], shown: Sequence[int]) -> str:
    mine = [outcome for outcome in outcomes if outcome.case.method == method]
    cells = [_over_pairs(mine, count) for count in shown]
    train = _percent([statistics.mean(o.train[-1] for o in own) for own in _by_pair(mine)])
    return f"| {method} | {len(mine)} | {' | '.join(cells)} | {train} |"


def _by_pair(outcomes: Sequence[Outcome]) -> list[list[Outcome]]:
    """Return the runs of each pair of halves; from scratch, where there are none, each run by itself."""
    pairs: dict[tuple[str, int | None], list[Outcome]] = {}
    for outcome in outcomes:
        place = ("seed", outcome.case.seed) if outcome.case.pair is None else ("pair", outcome.case.pair)
        pairs.setdefault(place, []).append(outcome)
    return list(pairs.values())


def _over_pairs(outcomes: Sequence[Outcome], evaluations: int) -> str:
    """Return mean and standard error of test accuracy: seeds of one pair are no independent runs, pairs are."""
    means = [statistics.mean(at) for own in _by_pair(outcomes) if (at := test_at(own, evaluations))]
    return _percent(means) if means else ""


def _ends(outcomes: Sequence[Outcome]) -> dict[int, float]:
    """Return each pair's final test accuracy, as the mean over its seeds."""
    return {own[0].case.pair or 0: statistics.mean(o.test[-1] for o in own) for own in _by_pair(outcomes)}


def test_at(outcomes: Sequence[Outcome], evaluations: int) -> list[float]:
    """Return the test accuracy after so many evaluations, for the runs that were tested then."""
    return [o.test[o.evaluations.index(evaluations)] for o in outcomes if evaluations in o.evaluations]


def _percent(shares: Sequence[float]) -> str:
    return mean_and_error(shares, 1, 100)


def figures(results: Results) -> dict[str, str]:
    """Return the figures of the README's sentences."""
    outcomes, lines = read(results)
    with_halves = [o for o in outcomes if o.case.pair is not None]
    ends = {method: _ends([o for o in with_halves if o.case.method == method]) for method in ("M2N2", "GA")}
    over_ratio = [ends["M2N2"][line.pair] - line.test for line in lines]
    over_ga = [ends["M2N2"][pair] - end for pair, end in ends["GA"].items()]
    same_seed = [o for o in with_halves if o.case.method == "M2N2" and o.case.seed == 0]
    alone = _ends([o for o in with_halves if o.case.method == "M2N2, no attraction"])
    no_split = _ends([o for o in with_halves if o.case.method == "M2N2, no split point"])
    attraction = [end - alone[pair] for pair, end in _ends(same_seed).items() if pair in alone]

    def halves(method: str) -> str:
        return _percent([o.test[-1] for o in with_halves if o.case.method == method])

    def scratch(method: str, count: int) -> str:
        mine = [o for o in outcomes if o.case.method == method and o.case.pair is None]
        return _over_pairs(mine, count)

    return {
        "halves": _percent([half for line in lines for half in line.halves]),
        "pairs": str(len(ends["M2N2"])),
        "m2n2": _percent(list(ends["M2N2"].values())),
        "over_ratio": _percent(over_ratio),
        "over_ratio.p": f"{ttest_1samp(over_ratio, 0).pvalue:.2g}",
        "over_ga": _percent(over_ga),
        "over_ga.pairs": str(len(over_ga)),
        "over_ga.p": f"{ttest_1samp(over_ga, 0).pvalue:.1g}",
        "ratio": _percent([line.test for line in lines]),
        "ratio.no_split": _percent([line.test for line in lines if line.pair in no_split]),
        "no_split": _percent(list(no_split.values())),
        "no_split.pairs": str(len(no_split)),
        "no_attraction": halves("M2N2, no attraction"),
        "attraction": _percent(attraction),
        "attraction.p": f"{ttest_1samp(attraction, 0).pvalue:.2g}",
        "attraction.pairs": f"{len(attraction)}",
        "cma": scratch(UNIT, 50_000),
        "same_seed": _percent([o.test[-1] for o in same_seed]),
        "map_elites": halves("MAP-Elites"),
        "scratch.10000": scratch("M2N2", 10_000),
        "scratch.50000": scratch("M2N2", 50_000),
        "speed": str(results["speed"].get("ours.ratio", "")),
        "speed.one": str(results["speed"].get("one.ratio", "")),
    }


# --- plot ---


def plot(outcomes: Sequence[Outcome], lines: Sequence[Line], file: Path) -> None:
    """Draw mean test accuracy, with its standard error over pairs, against evaluations; published curves dotted."""
    with plotted(file, 2, figsize=(10, 4), sharey=True) as axes:
        for ax, scratch in zip(axes, (False, True), strict=True):
            published = PUBLISHED["From scratch" if scratch else "From trained halves"]
            names = {own: method for method, own in OURS.items()}
            for method in METHODS:
                mine = [o for o in outcomes if o.case.method == method and (o.case.pair is None) == scratch]
                if not mine:
                    continue
                counts = max((o.evaluations for o in mine), key=len)
                accuracy = [
                    [100 * statistics.mean(at) for own in _by_pair(mine) if (at := test_at(own, count))]
                    for count in counts
                ]
                means = [statistics.mean(at) for at in accuracy]
                errors = [statistics.stdev(at) / len(at) ** 0.5 if len(at) > 1 else 0.0 for at in accuracy]
                drawn = ax.errorbar(counts, means, errors, label=f"{method} ({len(mine)} runs)", capsize=2)
                curve = published[1].get(names.get(method, method), ())
                known = [(count, at) for count, at in zip(published[0], curve, strict=False) if at is not None]
                if known:
                    ax.plot(*zip(*known, strict=True), ":", color=drawn[0].get_color())
            if not scratch and lines:
                ax.axhline(
                    100 * statistics.mean(line.test for line in lines), color="grey", ls="--", label="best ratio"
                )
            ax.set(xscale="log", xlabel="evaluations", title="from scratch" if scratch else "from trained halves")
            if ax.get_legend_handles_labels()[0]:
                ax.legend(fontsize=8)
        axes[0].set_ylabel("test accuracy, %")


# --- the authors' program ---


def compare_speed(python: Path, program: Path, passes: int = 4000) -> dict[str, float]:
    """Time the authors' program and ours in turns, from trained halves; evaluations per second, medians of three.

    The start of the authors' program (imports, compiling, training the halves) is not counted: it is timed with few
    passes and subtracted. Ours is timed as in every run, with one thread and with one for each core.
    """
    few, load = 20, os.getloadavg()[0]
    threads = {"one": 1, "ours": os.cpu_count() or 1}
    rates: dict[str, list[float]] = {"authors": [], **{name: [] for name in threads}}
    for _ in range(3):
        start, whole = (_authors_seconds(python, program, count) for count in (few, few + passes))
        rates["authors"].append(passes / (whole - start))
        for name, count in threads.items():
            use_threads(count)
            outcome = run(Case("M2N2", 0, 0, passes))
            rates[name].append(outcome.scored / outcome.seconds)
    use_threads(1)
    found = {name: round(statistics.median(values), 1) for name, values in rates.items()}
    ratios = {f"{name}.ratio": round(found[name] / found["authors"], 1) for name in threads}
    return found | ratios | {"load": round(load, 1)}


def _authors_seconds(python: Path, program: Path, passes: int) -> float:
    (program / "results").mkdir(exist_ok=True)
    command = [str(python), "main.py", "--use_pre_trained", "--runs", "1", "--total_forward_passes", str(passes)]
    started = time.perf_counter()
    subprocess.run(command, cwd=program, check=True, capture_output=True)
    return time.perf_counter() - started


# --- the whole ---


def _outcomes(todo: Sequence[Case], jobs: int) -> Iterator[Outcome]:
    """Run the cases, each in one thread of a process of its own where there are several jobs."""
    if jobs == 1:
        yield from map(run, todo)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=use_threads, initargs=(1,)) as pool:
        yield from (future.result() for future in as_completed([pool.submit(run, case) for case in todo]))


def read(results: Results) -> tuple[list[Outcome], list[Line]]:
    """Return the runs and the best ratios that the results hold."""
    runs = [Outcome(**{**outcome, "case": Case(**outcome["case"])}) for outcome in results.get("runs", ())]
    return runs, [Line(**{**line, "halves": tuple(line["halves"])}) for line in results.get("lines", ())]


def gathered(outcomes: Sequence[Outcome], lines: Sequence[Line], speed: dict[str, Any]) -> Results:
    """Return the results as plain data."""
    rows = {"runs": [asdict(outcome) for outcome in outcomes], "lines": [asdict(line) for line in lines]}
    return rows | {"speed": speed, "machine": machine(1, "numpy", "torch")}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run, print the tables, write the results and the plot."""
    parser = EXPERIMENT.parser(__doc__, quick="every method for 60 evaluations")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--go-on", action="store_true", help="keep the runs that results.json has already")
    parser.add_argument(
        "--authors",
        nargs=2,
        type=Path,
        metavar=("PYTHON", "FOLDER"),
        help="only time ours and github.com/SakanaAI/natural_niches in FOLDER, with a Python that has jax",
    )
    given = parser.parse_args(arguments)
    use_threads(1)
    out = EXPERIMENT.destination(given)
    before = EXPERIMENT.read(out) if given.go_on or given.authors else {}
    (outcomes, lines), speed = read(before), before.get("speed", {})
    lined = {line.pair for line in lines}
    lines += [best_line(pair) for pair in ([] if given.quick else (*PAIRS, *MORE_PAIRS)) if pair not in lined]
    done = {outcome.case for outcome in outcomes}
    wanted = quick_cases() if given.quick else cases()
    todo = [] if given.authors else [case for case in wanted if case not in done]
    for outcome in _outcomes(todo, given.jobs):
        outcomes.append(outcome)
        case = outcome.case
        print(f"{case.method}, pair {case.pair}, seed {case.seed}: {outcome.test[-1]:.3f}", flush=True)
        EXPERIMENT.write(out, gathered(outcomes, lines, speed))  # at once: a run that is broken off can go on
    outcomes = sorted((o for o in outcomes if o.case in wanted), key=lambda outcome: wanted.index(outcome.case))
    if given.authors:
        python, program = given.authors[0].absolute(), given.authors[1]
        speed = compare_speed(python, program)
    results = gathered(outcomes, lines, speed)
    print("\n" + "\n\n".join(tables(results)))
    EXPERIMENT.publish(out, results)
    if out is not None:
        plot(outcomes, lines, out / "curves.svg")


EXPERIMENT = Experiment(Path(__file__).parent, tables, rows="runs", figures=figures)

if __name__ == "__main__":
    main()
