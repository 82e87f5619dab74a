"""``python -m experiments.strategies`` runs all searches that are not in the results yet; ``--quick`` a tiny set.

Every contender searches the same space with the same budget of item evaluations, once per seed; the guess that it
would offer is scored on held-out items along the way. Results are written after every search, so that a stopped
experiment goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from experiments.machine import machine
from experiments.strategies.contenders import LEVERS, STRATEGIES
from experiments.strategies.curves import Curve, Job, known, search
from experiments.strategies.report import SHARE, best_known, markdown, plot

FOLDER = Path(__file__).parent
SPENT = (500, 1000, 1500, 2000, 3000, 4000, 6000, 8000)
SEEDS = 20
HELD_OUT = 200


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing, then write the table and the plot."""
    parser = argparse.ArgumentParser(prog="python -m experiments.strategies", description=main.__doc__)
    parser.add_argument("--quick", action="store_true", help="two contenders, one seed, seconds; writes to --out")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="searches per contender")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of results.json, curves.svg and README.md")
    options = parser.parse_args(arguments)
    contenders, spent, seeds, items = (*STRATEGIES, *LEVERS), SPENT, range(options.seeds), HELD_OUT
    if options.quick:
        contenders, spent, seeds, items = (STRATEGIES[0], STRATEGIES[1]), (200, 400), range(1), 40
    curves = _read(options.out / "results.json")
    recipe = known(items)
    done = {(curve.contender, curve.seed) for curve in curves}
    jobs = [
        Job(contender, seed, (*spent, *contender.longer), items)
        for seed in seeds
        for contender in contenders
        if (contender.name, seed) not in done
    ]
    options.out.mkdir(parents=True, exist_ok=True)
    for curve in _run(jobs, options.jobs):
        curves.append(curve)
        _write(options.out / "results.json", curves, recipe)
        print(f"{curve.contender}, seed {curve.seed}: {curve.held_out[-1]:.3f} ({curve.seconds:.0f} s)", flush=True)
    present = [contender for contender in contenders if any(curve.contender == contender.name for curve in curves)]
    level = SHARE * best_known(curves, recipe)
    plot(present, curves, level, options.out / "curves.svg")
    print(markdown(present, curves, level))


def _run(jobs: Sequence[Job], processes: int) -> Iterable[Curve]:
    if processes == 1:
        yield from map(search, jobs)
        return
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        yield from pool.imap_unordered(search, jobs)


def _read(file: Path) -> list[Curve]:
    if not file.is_file():
        return []
    return [Curve(**curve) for curve in json.loads(file.read_text(encoding="utf-8"))["curves"]]


def _write(file: Path, curves: Sequence[Curve], recipe: float) -> None:
    ordered = sorted(curves, key=lambda curve: (curve.contender, curve.seed))
    best = best_known(ordered, recipe)
    head = json.dumps({"known_recipe": recipe, "best_known": best, "machine": machine(1, "numpy", "torch")})[1:-1]
    lines = ",\n  ".join(json.dumps(asdict(curve)) for curve in ordered)
    file.write_text(f'{{{head}, "curves": [\n  {lines}\n]}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()
