"""``python -m experiments.fitness_accuracy --responses DIR`` measures; ``--quick`` simulates a small set instead."""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from experiments.fitness_accuracy.data import load, simulate
from experiments.fitness_accuracy.tables import TABLES, Plan, Row, measure, summarise

FOLDER = Path(__file__).parent
QUICK = Plan(sizes=(10, 30), draws=2, calibration=80, few=20, tested=10)


def markdown(title: str, table: Mapping[str, Mapping[int, Row]], sizes: Sequence[int]) -> str:
    """A table of errors, then one of the other figures at 20 items or the size closest to it."""
    middle = min(sizes, key=lambda size: abs(size - 20))
    lines = [f"### {title}", "", "Mean absolute error, pp:", ""]
    lines += ["| estimator | " + " | ".join(f"n={size}" for size in sizes) + " |", "|---" * (len(sizes) + 1) + "|"]
    for label, rows in table.items():
        lines.append(f"| {label} | " + " | ".join(f"{rows[size].error:.2f}" for size in sizes) + " |")
    lines += ["", f"At n={middle} (coverage: smallest to largest over all n):", ""]
    lines += [
        "| estimator | rank correlation | top-1 regret | winner's optimism | 95 % interval covers |",
        "|---|---|---|---|---|",
    ]
    for label, rows in table.items():
        row, covered = rows[middle], [rows[size].coverage for size in sizes]
        lines.append(
            f"| {label} | {row.rank:.2f} | {row.regret:.2f} | {row.optimism:+.2f} | "
            f"{min(covered):.0f}–{max(covered):.0f} % |"
        )
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the tables and write `results.json` and `tables.md`."""
    parser = argparse.ArgumentParser(prog="python -m experiments.fitness_accuracy", description=__doc__)
    parser.add_argument("--responses", type=Path, help="folder with *.npz matrices and merges.json")
    parser.add_argument(
        "--quick", action="store_true", help="few draws; simulated responses unless --responses is given"
    )
    parser.add_argument("--tables", nargs="+", choices=sorted(TABLES), default=list(TABLES), help="which tables")
    parser.add_argument("--draws", type=int, help="repetitions")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "-o", "--out", type=Path, help="folder for results.json; by default this one, none with --quick"
    )
    given = parser.parse_args(arguments)
    if given.responses is None and not given.quick:
        parser.error("no responses: give --responses DIR, or --quick to simulate some")
    base = QUICK if given.quick else Plan()
    plan = Plan(**{**asdict(base), "seed": given.seed, "draws": given.draws or base.draws})
    try:
        benchmarks = load(given.responses) if given.responses else simulate(given.seed)
    except ValueError as error:
        parser.error(str(error))
    start, results, text = time.perf_counter(), {}, []
    for name in given.tables:
        table = summarise(list(measure(name, benchmarks, plan)))
        if not table:
            print(f"### {TABLES[name].title}: nothing to measure", flush=True)
            continue
        sizes = sorted({size for rows in table.values() for size in rows})
        results[name] = {label: {size: asdict(row) for size, row in rows.items()} for label, rows in table.items()}
        text.append(markdown(TABLES[name].title, table, sizes))
        print(text[-1], flush=True)
    out = given.out or (None if given.quick else FOLDER)
    if out is not None:
        report = {
            "plan": asdict(plan),
            "benchmarks": {b.name: {"shape": b.scores.shape, "merges": len(b.merges)} for b in benchmarks},
            "seconds": round(time.perf_counter() - start, 1),
            "machine": {"cpu": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()},
            "tables": results,
        }
        out.mkdir(parents=True, exist_ok=True)
        (out / "results.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
