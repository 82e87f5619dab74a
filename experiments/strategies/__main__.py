"""``python -m experiments.strategies`` runs all searches that are not in the results yet; ``--quick`` a tiny set.

Every contender searches the same space with the same budget of item evaluations, once per seed; its guess
is scored on held-out items along the way. Results are written after every search, so that a stopped experiment
continues where it was.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from experiments.harness import Experiment, Results
from experiments.machine import machine
from experiments.strategies.contenders import LEVERS, STRATEGIES, Contender
from experiments.strategies.curves import Curve, Job, known, search
from experiments.strategies.report import SHARE, best_known, markdown, plot

ALL = (*STRATEGIES, *LEVERS)
SPENT = (500, 1000, 1500, 2000, 3000, 4000, 6000, 8000)
SEEDS = 20
HELD_OUT = 200


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing, then write the table and the plot."""
    parser = EXPERIMENT.parser(__doc__, quick="two contenders, one seed, seconds")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="searches per contender")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    given = parser.parse_args(arguments)
    contenders, spent, seeds, items = ALL, SPENT, range(given.seeds), HELD_OUT
    if given.quick:
        contenders, spent, seeds, items = STRATEGIES[:2], (200, 400), range(1), 40
    out = EXPERIMENT.destination(given)
    results = EXPERIMENT.read(out)
    curves = [Curve(**curve) for curve in results.get("curves", ())]
    recipe = known(items)
    done = {(curve.contender, curve.seed) for curve in curves}
    jobs = [
        Job(contender, seed, (*spent, *contender.longer), items)
        for seed in seeds
        for contender in contenders
        if (contender.name, seed) not in done
    ]
    for curve in _run(jobs, given.jobs):
        curves.append(curve)
        results = gathered(curves, recipe)
        EXPERIMENT.write(out, results)
        print(f"{curve.contender}, seed {curve.seed}: {curve.held_out[-1]:.3f} ({curve.seconds:.0f} s)", flush=True)
    print(tables(results)[0])
    EXPERIMENT.publish(out, results)
    if out is not None:
        plot(*_shown(results), out / "curves.svg")


def _run(jobs: Sequence[Job], processes: int) -> Iterable[Curve]:
    if processes == 1:
        yield from map(search, jobs)
        return
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        yield from pool.imap_unordered(search, jobs)


def gathered(curves: Sequence[Curve], recipe: float) -> Results:
    """Return the results: the curves in order, the best scores known, and the machine that the last curve ran on."""
    ordered = sorted(curves, key=lambda curve: (curve.contender, curve.seed))
    best, where = best_known(ordered, recipe), machine(1, "numpy", "torch")
    rows = [asdict(curve) for curve in ordered]
    return {"known_recipe": recipe, "best_known": best, "machine": where, "curves": rows}


def tables(results: Results) -> list[str]:
    """Return the README's table."""
    return [markdown(*_shown(results))]


def _shown(results: Results) -> tuple[list[Contender], list[Curve], float]:
    """Return the contenders that have curves, the curves, and the level that is to be reached."""
    curves = [Curve(**curve) for curve in results["curves"]]
    names = {curve.contender for curve in curves}
    present = [contender for contender in ALL if contender.name in names]
    return present, curves, SHARE * best_known(curves, results["known_recipe"])


EXPERIMENT = Experiment(Path(__file__).parent, tables, rows="curves", indent=None)

if __name__ == "__main__":
    main()
