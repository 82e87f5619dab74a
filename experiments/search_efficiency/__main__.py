"""``python -m experiments.search_efficiency`` runs all searches that have not been run; ``--quick`` a tiny set.

Every contender searches every problem that it is made for, once per seed. Each search is kept in ``--work``, so that a
stopped experiment continues where it was, and a contender whose settings have changed is run again. ``--minutes`` ends
with the search in progress.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from experiments.harness import Experiment, Results
from experiments.machine import machine
from experiments.search_efficiency.contenders import CONTENDERS, Contender, enters
from experiments.search_efficiency.metering import Curve
from experiments.search_efficiency.problems import PROBLEMS, Problem, problem
from experiments.search_efficiency.report import figures, plot, tables

SEEDS = 20
QUICK_PROBLEMS, QUICK_CONTENDERS, QUICK_BUDGET = ("simulated, 24 genes",), ("default", "CMA-ES", "best fixed λ"), 500


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing, then write the tables and the plot."""
    import torch

    parser = EXPERIMENT.parser(__doc__, quick="three contenders, one problem, two seeds, 500 answers")
    parser.add_argument("--work", type=Path, default=Path("build/search_efficiency"), help="where searches are kept")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="searches per contender and problem")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no search after so many minutes")
    parser.add_argument("--problems", nargs="+", default=list(PROBLEMS), choices=list(PROBLEMS), metavar="NAME")
    parser.add_argument("--contenders", nargs="+", default=[one.name for one in CONTENDERS], metavar="NAME")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    names, chosen, seeds, work = given.problems, given.contenders, given.seeds, given.work
    out = EXPERIMENT.destination(given)
    if given.quick:
        names, chosen, seeds = QUICK_PROBLEMS, QUICK_CONTENDERS, 2
        work = (out or Path("build")) / "quick"
    contenders = [one for one in CONTENDERS if one.name in chosen]
    until = time.monotonic() + 60 * given.minutes
    for name, contender, seed in _jobs(names, contenders, seeds):
        found = problem(name).until(QUICK_BUDGET) if given.quick else problem(name)
        file = file_of(work, found, contender, seed)
        if not enters(contender, found) or file.exists():
            continue
        if time.monotonic() > until:
            break
        curve = contender.search(found, seed)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(asdict(curve)), encoding="utf-8")
        print(
            f"{name}, {contender.name}, seed {seed}: {curve.held_out[-1]:.3f} ({curve.seconds[-1]:.1f} s)", flush=True
        )
    results = gathered(work, names, given.quick)
    print("\n\n".join(tables(results)))
    EXPERIMENT.publish(out, results)
    if out is not None:
        plot(results, out / "curves.svg")


def _jobs(names: Sequence[str], contenders: Sequence[Contender], seeds: int) -> Iterator[tuple[str, Contender, int]]:
    """Yield the searches, all of one seed before those of the next."""
    for seed in range(seeds):
        for name in names:
            for contender in contenders:
                if seed == 0 or not contender.deterministic:
                    yield name, contender, seed


def file_of(work: Path, found: Problem, contender: Contender, seed: int) -> Path:
    """Return where a search is kept; other settings or checkpoints have another name."""
    settings = hashlib.sha256(f"{contender.settings} {found.checkpoints}".encode()).hexdigest()[:8]
    words = (re.sub(r"[^\w.]+", "_", word) for word in (found.name, contender.name))
    return work.joinpath(*words) / f"{settings}-{seed}.json"


def gathered(work: Path, names: Sequence[str], quick: bool = False) -> Results:
    """Return facts of the problems, and a row for each problem and contender with the seeds that are done."""
    problems, rows = {}, []
    for name in names:
        found = problem(name).until(QUICK_BUDGET) if quick else problem(name)
        start = np.array(found.space.start)
        problems[name] = {
            "genes": found.space.dimension,
            "search_items": len(found.search_items),
            "start": round(found.held_out(start), 4),
            "known": round(found.known, 4),
        }
        for contender in CONTENDERS:
            files = [file_of(work, found, contender, seed) for seed in range(SEEDS)]
            curves = [Curve(**json.loads(file.read_text(encoding="utf-8"))) for file in files if file.exists()]
            if curves:
                rows.append(_row(name, contender, curves))
    return {"machine": machine(1, "numpy", "torch", "cma", "pymoo"), "problems": problems, "curves": rows}


def _row(name: str, contender: Contender, curves: Sequence[Curve]) -> Results:
    return {
        "problem": name,
        "contender": contender.name,
        "settings": contender.settings,
        "seeds": [curve.seed for curve in curves],
        "spent": curves[0].spent,
        "answers": [curve.answers for curve in curves],
        "held_out": [[round(score, 4) for score in curve.held_out] for curve in curves],
        "seconds": [[round(second, 2) for second in curve.seconds] for curve in curves],
    }


EXPERIMENT = Experiment(Path(__file__).parent, tables, rows="curves", indent=1, figures=figures)

if __name__ == "__main__":
    main()
