"""``python -m experiments.digits_niches`` runs the comparison; ``--quick`` runs all methods for a few evaluations.

From *trained halves*: five pairs of networks, each half trained on five digits; from *scratch*: two random networks and
noise on every child. The accuracy is that on the 360 test images, of the network that is best on the 1437
training images among those that a method holds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from experiments.digits_niches.methods import METHODS, Case, Line, Outcome, best_line, run
from experiments.machine import machine

FOLDER = Path(__file__).parent
PAIRS = range(5)
SEEDS = range(5)
SHOWN = (100, 1000, 2000, 10_000, 20_000, 50_000)


def cases() -> list[Case]:
    """All runs; what the claims rest on comes first."""
    return [
        *(Case("M2N2", None, seed, 50_000) for seed in SEEDS),
        *(Case(method, pair, seed, 10_000) for seed in SEEDS for pair in PAIRS for method in ("M2N2", "GA")),
        *(Case("M2N2, no split point", pair, 0, 2_000) for pair in PAIRS),
        *(Case(method, pair, 0, 10_000) for pair in PAIRS for method in ("M2N2, no attraction", "MAP-Elites")),
        *(Case("GA", None, seed, 20_000) for seed in range(2)),
        *(Case("MAP-Elites", None, seed, 10_000) for seed in range(2)),
        *(Case("CMA-ES, separable", None, seed, 10_000) for seed in range(2)),
    ]


def quick_cases() -> list[Case]:
    """Every method once each way, for a few evaluations."""
    return [
        Case(method, pair, 0, 60) for method in METHODS for pair in (0, None) if pair is None or "CMA" not in method
    ]


# --- tables ---


def markdown(outcomes: Sequence[Outcome], lines: Sequence[Line]) -> str:
    """The README's tables: test accuracy in per cent against evaluations."""
    parts = []
    for title, scratch in (("From trained halves", False), ("From scratch", True)):
        mine = [outcome for outcome in outcomes if (outcome.case.pair is None) == scratch]
        if not mine:
            continue
        most = max(count for outcome in mine for count in outcome.evaluations)
        shown = [count for count in SHOWN if count <= most] or [most]
        head = " | ".join(f"{count:,}" for count in shown)
        parts += [f"{title}:\n", f"| method | runs | {head} | train at the end | evaluations/s |"]
        parts.append("|---" * (len(shown) + 4) + "|")
        parts += [_row(method, mine, shown) for method in METHODS if any(o.case.method == method for o in mine)]
        if not scratch and lines:
            test = _percent([line.test for line in lines])
            train = _percent([line.train for line in lines])
            parts.append(f"| best single ratio | {len(lines)} | {' | '.join([test] * len(shown))} | {train} | |")
        parts.append("")
    return "\n".join(parts)


def _row(method: str, outcomes: Sequence[Outcome], shown: Sequence[int]) -> str:
    mine = [outcome for outcome in outcomes if outcome.case.method == method]
    cells = [_percent(at) if (at := test_at(mine, count)) else "" for count in shown]
    train = _percent([outcome.train[-1] for outcome in mine])
    rate = statistics.median(outcome.scored / outcome.seconds for outcome in mine)
    return f"| {method} | {len(mine)} | {' | '.join(cells)} | {train} | {rate:.0f} |"


def test_at(outcomes: Sequence[Outcome], evaluations: int) -> list[float]:
    """Test accuracy after so many evaluations, of the runs that got there and were tested then."""
    return [o.test[o.evaluations.index(evaluations)] for o in outcomes if evaluations in o.evaluations]


def _percent(shares: Sequence[float]) -> str:
    mean = 100 * statistics.mean(shares)
    if len(shares) < 2:
        return f"{mean:.1f}"
    return f"{mean:.1f} ± {100 * statistics.stdev(shares) / len(shares) ** 0.5:.1f}"


# --- plot ---


def plot(outcomes: Sequence[Outcome], lines: Sequence[Line], file: Path) -> None:
    """Draw mean test accuracy, with its standard error, against evaluations."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "evomerge"  # equal results, equal file
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), sharey=True)
    for ax, scratch in zip(axes, (False, True), strict=True):
        for method in METHODS:
            mine = [o for o in outcomes if o.case.method == method and (o.case.pair is None) == scratch]
            if mine:
                counts = mine[0].evaluations
                accuracy = [test_at(mine, count) for count in counts]
                means = [100 * statistics.mean(at) for at in accuracy]
                errors = [100 * statistics.stdev(at) / len(at) ** 0.5 if len(at) > 1 else 0.0 for at in accuracy]
                ax.errorbar(counts, means, errors, label=f"{method} ({len(mine)} runs)", capsize=2)
        if not scratch and lines:
            ax.axhline(100 * statistics.mean(line.test for line in lines), color="grey", ls="--", label="best ratio")
        ax.set(xscale="log", xlabel="evaluations", title="from scratch" if scratch else "from trained halves")
        if ax.get_legend_handles_labels()[0]:
            ax.legend(fontsize=8)
    axes[0].set_ylabel("test accuracy, %")
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)


# --- the authors' program ---


def compare_speed(python: Path, program: Path, passes: int = 1000) -> dict[str, float]:
    """Time the authors' program and ours by turns, from trained halves; evaluations per second, medians of three.

    The start of the authors' program (imports, compiling, training the halves) is not counted: it is timed with few
    passes and subtracted. Ours is timed as in every run.
    """
    few = 20
    rates: dict[str, list[float]] = {"authors": [], "ours": []}
    for _ in range(3):
        start, whole = (_authors_seconds(python, program, count) for count in (few, few + passes))
        rates["authors"].append(passes / (whole - start))
        outcome = run(Case("M2N2", 0, 0, passes))
        rates["ours"].append(outcome.scored / outcome.seconds)
    found = {name: round(statistics.median(values), 1) for name, values in rates.items()}
    return found | {"ratio": round(found["ours"] / found["authors"], 1)}


@contextmanager
def _busy() -> Iterator[None]:
    """Give each core a process that never rests."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


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
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=_one_thread) as pool:
        yield from (future.result() for future in as_completed([pool.submit(run, case) for case in todo]))


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def read(folder: Path) -> tuple[list[Outcome], list[Line], dict[str, Any]]:
    """Return what `results.json` holds: runs, lines, and the comparison of speeds."""
    found = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    runs = [Outcome(**{**outcome, "case": Case(**outcome["case"])}) for outcome in found["runs"]]
    lines = [Line(**{**line, "halves": tuple(line["halves"])}) for line in found["lines"]]
    return runs, lines, found["speed"]


def _write(folder: Path, outcomes: Sequence[Outcome], lines: Sequence[Line], speed: dict[str, Any]) -> None:
    rows = ",\n  ".join(json.dumps(asdict(outcome)) for outcome in outcomes)
    rest = {"lines": [asdict(line) for line in lines], "speed": speed, "machine": machine(1, "numpy", "torch")}
    text = f'{{\n "runs": [\n  {rows}\n ],{json.dumps(rest, indent=1)[1:]}\n'
    (folder / "results.json").write_text(text, encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run, print the tables, write `results.json` and the plot."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.digits_niches",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="every method for 60 evaluations; writes nothing")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--go-on", action="store_true", help="keep the runs that results.json has already")
    parser.add_argument(
        "--authors",
        nargs=2,
        type=Path,
        metavar=("PYTHON", "FOLDER"),
        help="also time github.com/SakanaAI/natural_niches in FOLDER, with a Python that has jax, alone and not",
    )
    parser.add_argument("-o", "--out", type=Path, help="folder to write to; by default this one, none with --quick")
    given = parser.parse_args(arguments)
    _one_thread()
    out = given.out or (None if given.quick else FOLDER)
    outcomes, lines, speed = read(out) if given.go_on and out is not None else ([], [], {})
    lines = lines or [best_line(pair) for pair in ([] if given.quick else PAIRS)]
    done = {outcome.case for outcome in outcomes}
    wanted = quick_cases() if given.quick else cases()
    for outcome in _outcomes([case for case in wanted if case not in done], given.jobs):
        outcomes.append(outcome)
        case = outcome.case
        print(f"{case.method}, pair {case.pair}, seed {case.seed}: {outcome.test[-1]:.3f}", flush=True)
        if out is not None:  # at once: a run that is broken off can go on
            _write(out, outcomes, lines, speed)
    outcomes.sort(key=lambda outcome: wanted.index(outcome.case))
    if given.authors:
        python, program = given.authors[0].absolute(), given.authors[1]
        speed = {"alone": [compare_speed(python, program) for _ in range(2)]}
        with _busy():
            speed["busy"] = [compare_speed(python, program) for _ in range(2)]
        print(speed)
    print("\n" + markdown(outcomes, lines), end="")
    if out is not None:
        _write(out, outcomes, lines, speed)
        plot(outcomes, lines, out / "curves.svg")


if __name__ == "__main__":
    main()
