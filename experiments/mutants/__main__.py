"""``python -m experiments.mutants`` changes lines of the core one at a time and runs the tests on each change.

The changes are those of cosmic-ray (`pip install cosmic-ray coverage`): another operator, another number, a loop that
does not run, ... Lines are drawn from the modules in ``modules.py`` by a seed, one change each; changes in annotations
alone are none. First the fast tests run once, unchanged, and it is noted which test executes which line. On each mutant
those tests run that execute its line, until one fails. A mutant is killed if one fails or they do not end. Results are
written after each mutant. ``--go-on`` keeps those that are there; ``--tests FILE...`` runs each of these files on the
survivors in the module that it is named after.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from datetime import date
from pathlib import Path
from typing import Any

from experiments.harness import Experiment, Results
from experiments.machine import machine
from experiments.mutants.changes import Mutant, drawn, listed, made_again
from experiments.mutants.equivalent import EQUIVALENT
from experiments.mutants.listed import LISTED
from experiments.mutants.modules import FOLDERS, MODULES
from experiments.mutants.suite import Suite, warm_up

COUNT, SEED = 100, 0
ORIGIN = ("date", "commit")
"""Of a draw."""
LONGEST = 90
"""Characters of a line that the table shows."""


Row = dict[str, Any]
"""A mutant in the results."""


def reason(mutant: Mutant) -> str:
    """Return why no test could notice a mutant; empty if one could."""
    return EQUIVALENT.get((mutant.module, mutant.before, mutant.after), "")


def counts(mutants: Sequence[Mutant]) -> tuple[int, int, int]:
    """Return how many mutants there are, how many were killed, and how many of the others could not be."""
    return (
        len(mutants),
        sum(bool(mutant.killed) for mutant in mutants),
        sum(not mutant.killed and bool(reason(mutant)) for mutant in mutants),
    )


def tried(rows: Sequence[Row]) -> list[Mutant]:
    """Return the mutants on which tests have run."""
    return [mutant for mutant in (Mutant(**row) for row in rows) if mutant.killed is not None]


def tables(results: Results) -> list[str]:
    """Return the README's tables: what was killed by draw and by module, all mutants drawn, and those of the list."""
    draws = {f"seed {row['seed']}": tried(row["mutants"]) for row in results["draws"]}
    of_list = tried(results["listed"])
    head = ("", "commit", "mutants", "killed at first", "killed now", "cannot be", "survive")
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    commits = [row["commit"] for row in results["draws"]]
    for (name, mutants), commit in zip([*draws.items(), ("the list", of_list)], [*commits, ""], strict=True):
        every, killed, equivalent = counts(mutants)
        first = sum(bool(mutant.killed) and not mutant.late for mutant in mutants)
        row = (name, commit, every, first, killed, equivalent, every - killed - equivalent)
        lines.append(f"| {' | '.join(map(str, row))} |")
    found = [mutant for mutants in draws.values() for mutant in mutants]
    modules = ["| module | drawn | killed | cannot be |", "|---|---|---|---|"]
    for path in MODULES:
        every, killed, equivalent = counts([mutant for mutant in found if mutant.module == path])
        if every:
            modules.append(f"| `{path}` | {every} | {killed} | {equivalent} |")
    return ["\n".join(lines), "\n".join(modules), _rows(draws), _rows({"list": of_list})]


def _rows(draws: dict[str, list[Mutant]]) -> str:
    rows = ["| draw | place | line | becomes | killed by |", "|---|---|---|---|---|"]
    for name, mutants in draws.items():
        for mutant in mutants:
            before, after = (_code(text) for text in (mutant.before, mutant.after))
            rows.append(f"| {name} | {mutant.module}:{mutant.line} | {before} | {after} | {_fate(mutant)} |")
    return "\n".join(rows)


def _fate(mutant: Mutant) -> str:
    if mutant.killed:
        place = mutant.killer.removeprefix("tests/").partition("[")[0]
        return f"`{place}`" if "::" in place else place.strip("()")
    return f"cannot be: {reason(mutant)}" if reason(mutant) else "**nothing**"


def _code(text: str) -> str:
    short = text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
    return f"`{short.replace('|', chr(92) + '|')}`" if short else "(removed)"


def figures(results: Results) -> dict[str, str]:
    """Return the figures of sentences."""
    found = {}
    draws = {f"seed.{row['seed']}": tried(row["mutants"]) for row in results["draws"]}
    origins = {f"{name}.{key}": row[key] for name, row in zip(draws, results["draws"], strict=True) for key in ORIGIN}
    for name, mutants in [*draws.items(), ("listed", tried(results["listed"]))]:
        every, killed, equivalent = counts(mutants)
        found[name] = f"{killed} of {every}"
        found[f"{name}.first"] = f"{sum(bool(mutant.killed) and not mutant.late for mutant in mutants)} of {every}"
        found[f"{name}.equivalent"] = str(equivalent)
        found[f"{name}.survived"] = str(every - killed - equivalent)
    reached = {
        f"{name}.tried": f"{len(draws[name])} of {len(row['mutants'])}"
        for name, row in zip(draws, results["draws"], strict=True)
    }
    return found | origins | reached


def main(arguments: Sequence[str] | None = None) -> None:
    """Try the mutants and write what became of them."""
    parser = EXPERIMENT.parser(__doc__, quick="three mutants")
    parser.add_argument("--count", type=int, default=COUNT, help="mutants to draw")
    parser.add_argument("--seed", type=int, default=SEED, help="of the draw")
    parser.add_argument("--part", choices=("drawn", "listed"), help="these only; the results keep the others")
    parser.add_argument("--go-on", action="store_true", help="keep the draw in the results; try what was not tried")
    parser.add_argument(
        "--tests",
        nargs="+",
        default=(),
        help="run each of these files again on the survivors in the module that it is named after",
    )
    parser.add_argument("--work", type=Path, help="folder that keeps the copied tree and which test executes what")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after the mutant that ends later")
    given = parser.parse_args(arguments)
    out = EXPERIMENT.destination(given)
    results: Results = {"draws": [], "listed": [], **EXPERIMENT.read(out), "machine": machine(1, "pytest", "torch")}
    keep = given.go_on or bool(given.tests)
    limit = time.monotonic() + 60 * given.minutes
    with tempfile.TemporaryDirectory(prefix="m") as temporary:
        warm_up()
        suite = Suite.of(given.work or Path(temporary))
        parts: list[tuple[list[Row], Sequence[tuple[Mutant, str]]]] = []
        if given.part != "drawn":
            results["listed"] = kept(results["listed"] if keep else [], found := listed(suite.tree))
            parts.append((results["listed"], found))
        if given.part != "listed":
            found = drawn(2 if given.quick else given.count, given.seed, suite.tree)
            parts.append((draw(results, given.seed, found, suite.commit, keep=keep), found))
        if not suite.lines and not given.tests:
            suite.trace(FOLDERS, sorted({*MODULES, *(module for module, _, _ in LISTED)}))
        for rows, sources in parts:
            for place, mutant, changed in to_try(rows, sources, suite.tree, again=bool(given.tests)):
                if time.monotonic() > limit:
                    break
                named = [file for file in given.tests if Path(file).stem == f"test_{Path(mutant.module).stem}"]
                tests = named if given.tests else suite.tests_of(mutant.module, mutant.line)
                if given.tests and not named:
                    continue
                killer = suite.killer(mutant.module, changed, tests) if tests else ""
                number = mutant.tests if given.tests else len(tests)
                rows[place] = asdict(
                    replace(mutant, killed=bool(killer), killer=killer, tests=number, late=bool(given.tests))
                )
                print(f"{killer or 'SURVIVED'}: {mutant.module}:{mutant.line} {mutant.after}", flush=True)
                EXPERIMENT.write(out, results)
        killers = {row["killer"] for rows, _ in parts for row in rows if "::" in row["killer"]}
        if not given.tests and killers and (failing := suite.failing(sorted(killers & suite.seconds.keys()))):
            raise SystemExit(f"{failing} fails without a change: what it killed must be tried again")
    print("\n" + tables(results)[0])
    EXPERIMENT.publish(out, results)


def kept(before: Sequence[Row], found: Sequence[tuple[Mutant, str]]) -> list[Row]:
    """Return rows of these mutants, with what is known of each from before."""
    known = {(row["module"], row["before"], row["after"]): row for row in before}
    rows = []
    for mutant, _ in found:
        row = known.get((mutant.module, mutant.before, mutant.after), {})
        rows.append({**asdict(mutant), **row, "line": mutant.line})
    return rows


def draw(results: Results, seed: int, found: Sequence[tuple[Mutant, str]], commit: str, *, keep: bool) -> list[Row]:
    """Return the rows of a draw in the results; it is put there if it is new. One that is kept is not drawn again."""
    before = next((one for one in results["draws"] if one["seed"] == seed), None)
    if before is not None and keep:
        rows: list[Row] = before["mutants"]
        return rows
    rows = [asdict(mutant) for mutant, _ in found]
    new = {"seed": seed, "date": date.today().isoformat(), "commit": commit, "mutants": rows}
    results["draws"] = sorted(
        [*(one for one in results["draws"] if one is not before), new], key=lambda one: one["seed"]
    )
    return rows


def to_try(
    rows: Sequence[Row], found: Sequence[tuple[Mutant, str]], tree: Path, *, again: bool
) -> Iterator[tuple[int, Mutant, str]]:
    """Yield the mutants that were not tried, or those that survived again, each with its place and its source."""
    sources = {(mutant.module, mutant.before, mutant.after): changed for mutant, changed in found}
    for place, row in enumerate(rows):
        mutant = Mutant(**row)
        if mutant.killed is not (False if again else None) or (again and reason(mutant)):
            continue
        changed = sources.get((mutant.module, mutant.before, mutant.after)) or made_again(mutant, tree)
        if changed is None:
            print(f"no longer in the code: {mutant.module}:{mutant.line} {mutant.before}", flush=True)
        else:
            yield place, mutant, changed


EXPERIMENT = Experiment(Path(__file__).parent, tables, figures=figures)

if __name__ == "__main__":
    main()
