"""``python -m experiments.fitness_accuracy --responses DIR`` measures; ``--quick`` simulates a small set instead."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from experiments.fitness_accuracy.data import load, simulate
from experiments.fitness_accuracy.tables import TABLES, Plan, Row, measure, summarise
from experiments.harness import Experiment, Results

QUICK = Plan(sizes=(10, 30), draws=2, calibration=80, few=20, tested=10)


def tables(results: Results) -> list[str]:
    """Return the README's tables, all in one place, each with its title."""
    parts = []
    for name, by_label in results["tables"].items():
        table = {label: {int(size): Row(**row) for size, row in rows.items()} for label, rows in by_label.items()}
        parts.append(markdown(TABLES[name].title, table))
    return ["\n".join(parts)]


def markdown(title: str, table: Mapping[str, Mapping[int, Row]]) -> str:
    """Return a table of errors, then one of the other figures at 20 items or the size closest to it."""
    sizes = sorted({size for rows in table.values() for size in rows})
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
    """Measure, print the tables and write the results."""
    parser = EXPERIMENT.parser(__doc__, quick="few draws; simulated responses unless --responses is given")
    parser.add_argument("--responses", type=Path, help="folder with *.npz matrices and merges.json")
    parser.add_argument("--tables", nargs="+", choices=sorted(TABLES), default=list(TABLES), help="which tables")
    parser.add_argument("--only", default="", help="methods whose label contains this; the others' results stay")
    parser.add_argument("--draws", type=int, help="repetitions")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    if given.responses is None and not given.quick:
        parser.error("no responses: give --responses DIR, or --quick to simulate some")
    base = QUICK if given.quick else Plan()
    plan = Plan(**{**asdict(base), "seed": given.seed, "draws": given.draws or base.draws})
    try:
        benchmarks = load(given.responses) if given.responses else simulate(given.seed)
    except ValueError as error:
        parser.error(str(error))
    out = EXPERIMENT.destination(given)
    start, found = time.perf_counter(), EXPERIMENT.read(out).get("tables", {}) if given.only else {}
    for name in given.tables:
        table = summarise(list(measure(name, benchmarks, plan, given.only)))
        if not table:
            print(f"### {TABLES[name].title}: nothing to measure", flush=True)
            continue
        measured = {label: {str(size): asdict(row) for size, row in rows.items()} for label, rows in table.items()}
        found[name] = {**found.get(name, {}), **measured}
        print(markdown(TABLES[name].title, table), flush=True)
    results: Results = {
        "plan": asdict(plan),
        "benchmarks": {b.name: {"shape": b.scores.shape, "merges": len(b.merges)} for b in benchmarks},
        "seconds": round(time.perf_counter() - start, 1),
        "machine": {"cpu": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()},
        "tables": found,
    }
    EXPERIMENT.publish(out, results)


EXPERIMENT = Experiment(Path(__file__).parent, tables)

if __name__ == "__main__":
    main()
