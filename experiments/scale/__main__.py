"""``python -m experiments.scale`` measures how far one driver reaches; ``--quick`` runs the same on small sizes.

The driver, the event log and the strategies are the real ones; workers are simulated (`simulation.py`).

- *sustained*: evaluations per second, and the share of time in which workers are idle, with 1 to 1,000 workers whose
  evaluations take so long that all of them together finish 225 a second (or 10 a second each, where that is less).
- *limit*: the same with evaluations that take almost no time: the most that the driver can do.
- *resume*: processor seconds until a run of 100,000 events resumes, and the size of its log.
"""

from __future__ import annotations

import logging
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evomerge.config.search_file import BudgetConfig
from evomerge.runs.run import Asked, Run, Told
from evomerge.search.loop import Search
from evomerge.strategies import CmaEsConfig, M2n2Config, RandomConfig, StrategyConfig
from evomerge.strategies.base import Evaluated
from experiments.harness import Experiment, Results
from experiments.scale.simulation import ITEMS, Load, SimulatedPool, space
from fitness.estimation.evaluation_plan import FixedItemsPlan
from fitness.objectives import Objectives
from search_spaces.spaces.coefficients import CoefficientSpace

RATE = 225.0
"""Evaluations per second that the workers together can do in the sustained case."""
OBJECTIVES = Objectives({"simulated": 1.0})


@dataclass(frozen=True)
class Sizes:
    """What is measured."""

    workers: Sequence[int] = (1, 10, 100, 1000)
    per_worker: int = 16
    least: int = 1000
    events: int = 100_000
    layers: Sequence[int] = (8, 32)


QUICK = Sizes(workers=(1, 50), per_worker=4, least=100, events=400, layers=(4,))


def strategies(workers: int) -> dict[str, StrategyConfig]:
    """Return the strategies that are measured: one that waits for its generation, and two that never wait."""
    population = max(8, workers)
    return {
        "cma_es (synchronous)": CmaEsConfig(population=population, restarts=False),
        "m2n2 (steady-state)": M2n2Config(archive=100),
        "random (steady-state)": RandomConfig(population=population),
    }


def searching(run: Run, searched: CoefficientSpace, config: StrategyConfig, evaluations: int) -> Search:
    """Return a search over `run` that has replayed its events."""
    resolved = config.resolved(searched, noise=0.1, evaluations=evaluations)
    plan = FixedItemsPlan(ITEMS, OBJECTIVES)
    return Search(run, searched, resolved.build(searched, 0), BudgetConfig(evaluations=evaluations), plan)


def drive(layers: int, config: StrategyConfig, workers: int, load: Load, evaluations: int) -> dict[str, Any]:
    """Search with simulated workers; return rates and shares."""
    with tempfile.TemporaryDirectory() as folder, Run.create(Path(folder) / "run", "", {}) as run:
        state = searching(run, space(layers), config, evaluations)
        pool = SimulatedPool(workers, load, seed=0)
        began = time.process_time()
        state.search(pool)
        processor = time.process_time() - began
        return {
            "workers": workers,
            "evaluations": evaluations,
            "per_second": round(pool.rate(), 1),
            "possible_per_second": round(workers / load.mean(), 1),
            "idle_share": round(pool.idle_share(), 4),
            "driver_ms": round(1000 * processor / evaluations, 2),
        }


def sustained(sizes: Sizes) -> list[dict[str, Any]]:
    """Measure with workers that can do 225 evaluations a second together, or 10 a second each."""
    rows, layers = [], sizes.layers[0]
    for workers in sizes.workers:
        seconds = max(workers / RATE, 0.1)
        load = Load(median=seconds / Load(median=1.0).mean())
        for name, config in strategies(workers).items():
            evaluations = max(sizes.least, sizes.per_worker * workers)
            rows.append({"layers": layers, "strategy": name} | drive(layers, config, workers, load, evaluations))
            print(rows[-1], flush=True)
    return rows


def limit(sizes: Sizes) -> list[dict[str, Any]]:
    """Measure the driver alone: workers finish at once."""
    rows = []
    for layers in sizes.layers:
        for name, config in strategies(100).items():
            found = drive(layers, config, 100, Load(median=1e-6), sizes.least)
            row = {"layers": layers, "strategy": name, "per_second": found["per_second"]}
            rows.append(row | {"driver_ms": found["driver_ms"]})
            print(rows[-1], flush=True)
    return rows


def write_log(run: Run, searched: CoefficientSpace, config: StrategyConfig, evaluations: int) -> None:
    """Record a whole search as the driver does, except that no recipe is decoded: its hash is a number."""
    resolved = config.resolved(searched, noise=0.1, evaluations=evaluations)
    strategy, pool = resolved.build(searched, 0), SimulatedPool(1, Load(median=1e-6), seed=0)
    plan = FixedItemsPlan(ITEMS, OBJECTIVES)
    for _ in range(evaluations):
        (candidate,) = strategy.ask(1)
        run.record(Asked(candidate, f"{candidate.id:016x}"))
        evaluation = plan.judge(pool.evaluation(1.0))
        run.record(Told(candidate.id, evaluation, False, float(candidate.id)))
        strategy.tell([Evaluated(candidate.id, evaluation)])


def resume(sizes: Sizes) -> list[dict[str, Any]]:
    """Write long runs, and measure how long it takes to resume them."""
    rows = []
    searched = space(sizes.layers[0])
    evaluations = sizes.events // 2
    for name, config in strategies(100).items():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "run"
            with Run.create(path, "", {}) as run:
                write_log(run, searched, config, evaluations)
            size = (path / "events.sqlite").stat().st_size
            began = time.process_time()
            with Run.open(path) as run:
                state = searching(run, searched, config, evaluations)
                seconds = time.process_time() - began
            if len(state.history.told) != evaluations:
                raise SystemExit("the resumed run has lost evaluations")
        rows.append(
            {
                "strategy": name,
                "events": 2 * evaluations,
                "resume_seconds": round(seconds, 3),
                "megabytes_per_100000_evaluations": round(size / evaluations * 1e5 / 1e6, 1),
            }
        )
        print(rows[-1], flush=True)
    return rows


PARTS: dict[str, Callable[[Sizes], list[dict[str, Any]]]] = {"limit": limit, "sustained": sustained, "resume": resume}


SHOWN = (
    *(("m2n2 (steady-state)", workers) for workers in (10, 100, 1000)),
    *(("random (steady-state)", workers) for workers in (100, 1000)),
    *(("cma_es (synchronous)", workers) for workers in (10, 1000)),
)
"""Rows of the sustained case that the README shows."""


def tables(results: Results) -> list[str]:
    """Return the README's table of the sustained case."""
    lines = [
        "| strategy | workers | evaluations per second | possible | idle share |",
        "|---|---|---|---|---|",
    ]
    rows = {(row["strategy"], row["workers"]): row for row in results["sustained"]}
    for strategy, workers in SHOWN:
        if (row := rows.get((strategy, workers))) is not None:
            idle = 100 * row["idle_share"]
            share = f"{idle:.1f}" if idle < 10 else f"{idle:.0f}"
            lines.append(
                f"| {strategy} | {workers:,} | {row['per_second']} | {row['possible_per_second']:.0f} | {share} % |"
            )
    return ["\n".join(lines)]


def figures(results: Results) -> dict[str, str]:
    """Return the figures of the README's sentences."""
    found = {
        f"limit.{row['layers']}.{row['strategy'].partition(' ')[0]}": f"{row['per_second']:.0f}"
        for row in results["limit"]
    }
    for row in results["resume"]:
        found[f"resume.{row['strategy'].partition(' ')[0]}"] = f"{row['resume_seconds']:.0f} s"
    largest = max(row["megabytes_per_100000_evaluations"] for row in results["resume"])
    return found | {"megabytes": f"{largest:.0f} MB"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure all, or one part, and write the results."""
    parser = EXPERIMENT.parser(__doc__, quick="small sizes, seconds")
    parser.add_argument("--part", choices=PARTS, help="measure this one again; the others stay as they are in the file")
    given = parser.parse_args(arguments)
    logging.getLogger("evomerge").setLevel(logging.ERROR)
    sizes = QUICK if given.quick else Sizes()
    out = EXPERIMENT.destination(given)
    results = EXPERIMENT.read(out) if given.part else {}
    results["python"] = platform.python_version()
    for name in [given.part] if given.part else PARTS:
        results[name] = PARTS[name](sizes)
    EXPERIMENT.publish(out, results)


EXPERIMENT = Experiment(Path(__file__).parent, tables, figures=figures)

if __name__ == "__main__":
    main()
