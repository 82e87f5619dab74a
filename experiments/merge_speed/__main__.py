"""``python -m experiments.merge_speed`` measures; ``--quick`` runs the same on a tiny model.

For each method and size, `apply` is called for one candidate after another, in turns with plain copies of a long array
in the same process: the limit is the bytes that a candidate must touch over the copies' bandwidth. mergekit does the
same merges. All times are medians, of both programs, and none is of a first run.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from experiments.harness import Experiment, Results
from experiments.machine import machine
from experiments.merge_speed import memory
from experiments.merge_speed.cases import FIVE, QUICK, SIZES, Copy, Size, make_models, recipe
from search_spaces.recipes import mergekit_yaml
from search_spaces.recipes.methods import METHODS

MEASURED_UP_TO = 200_000_000  # parameters, for the memory's peak
RUNS = 3
"""Of what takes long: preparing all but the largest models, and mergekit's merges after a first one."""


@dataclass(frozen=True)
class Result:
    """One line of the table; times are nanoseconds per parameter and candidate."""

    size: str
    method: str
    experts: int
    parameters: int
    prepare: float
    """Once per search."""
    wall: float
    cpu: float
    bytes_touched: float
    """Per parameter."""
    limit: float | None
    """Wall time at the bandwidth of a copy; None: not measured."""
    in_memory: float | None
    """mergekit's CPU time, in memory; None: not run."""
    load: float | None
    """Processes that ran or wanted to, of all users, in the last minute."""
    held: int | None = None
    """Bytes that merging takes at its peak; None: not measured."""
    bound: int | None = None
    """What `evomerge plan` says they are at most."""


def measure(
    size: Size, methods: Sequence[str], count: int, *, repetitions: int, threads: int, seed: int, alone: bool = False
) -> Iterator[Result]:
    """Time the methods on one size, and yield each result when it is there."""
    import torch

    from evomerge.merging.sources.checkpoints import Checkpoint

    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        paths = make_models(size, Path(folder), count, seed)
        checkpoints = {path: Checkpoint.open(path) for path in paths}
        tiny = make_models(QUICK[0], Path(folder) / "tiny", count, seed)
        for method in methods:
            result = _measure(size, method, checkpoints, count, repetitions, Copy(threads), alone=alone)
            if method in memory.METHODS and result.parameters <= MEASURED_UP_TO:
                warm_up, candidate = (recipe(method, models, count, 0) for models in (tiny, paths))
                held, bound = memory.peak(warm_up, candidate, Path(folder), threads) or (None, None)
                result = replace(result, held=held, bound=bound)
            print(markdown([result]).splitlines()[-1], flush=True)
            yield result


def _measure(
    size: Size, method: str, checkpoints: Any, count: int, repetitions: int, copy: Copy, *, alone: bool
) -> Result:
    from evomerge.merging.engine.engine import MergeEngine
    from experiments.merge_speed import authority

    paths = list(checkpoints)
    recipes = [mergekit_yaml.build(recipe(method, paths, count, turn)) for turn in range(repetitions + 1)]
    prepared = []
    for _ in range(RUNS if method in FIVE and size not in SIZES[2:] else 1):
        engine = MergeEngine(checkpoints, base=paths[0])
        start = time.perf_counter()
        engine.prepare(recipes[0])
        prepared.append(time.perf_counter() - start)
    module = engine.apply(recipes[0])
    copy.run()
    walls, cpus, copies = [], [], []
    for candidate in recipes[1:]:
        copies += [copy.run(), copy.run()]
        start, cpu = time.perf_counter(), time.process_time()
        engine.apply(candidate)
        walls.append(time.perf_counter() - start)
        cpus.append(time.process_time() - cpu)
    cost = engine.footprint(recipes[0])
    per = 1e9 / cost.parameters
    theirs = None
    if method in FIVE and not alone:
        data = recipe(method, paths, count, 0)
        theirs = median([authority.in_memory(data, module) for _ in range(RUNS + 1)][1:]) * per
    return Result(
        size=size.name,
        method=method,
        experts=len(recipes[0].models) - (METHODS[method].base != "none"),
        parameters=cost.parameters,
        prepare=round(median(prepared) * per, 1),
        wall=round(median(walls) * per, 3),
        cpu=round(median(cpus) * per, 3),
        bytes_touched=round(cost.touched_bytes / cost.parameters, 2),
        limit=round(cost.touched_bytes / median(copies) * per, 3),
        in_memory=None if theirs is None else round(theirs, 1),
        load=round(os.getloadavg()[0], 1),
    )


def tables(results: Results) -> list[str]:
    """Return the README's table."""
    return [markdown([Result(**result) for result in results["results"]])]


def markdown(results: Sequence[Result]) -> str:
    """Return a table of some results."""
    lines = [
        "| model | method | experts | prepare | apply, wall | apply, CPU | bytes | limit | of the limit "
        "| mergekit in memory, CPU | per candidate | first merge | memory / bound, MB | load |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        limit = "|" if result.limit is None else f"{result.limit:.2f} | {result.limit / result.wall:.0%}"
        lines.append(
            f"| {result.size} | {result.method} | {result.experts} | {result.prepare:.0f} | {result.wall:.2f} "
            f"| {result.cpu:.2f} | {result.bytes_touched:g} | {limit} "
            f"{_beside_mergekit(result)} | {_memory(result)} {'' if result.load is None else f'{result.load:.1f}'} |"
        )
    return "\n".join(lines)


def _beside_mergekit(result: Result) -> str:
    """Return mergekit's time in memory and its ratio to ours: of further candidates, and of the first, prepared."""
    if result.in_memory is None:
        return " | | |"
    later, first = result.in_memory / result.cpu, result.in_memory / (result.cpu + result.prepare)
    return f" | {result.in_memory:.0f} | {later:.0f} | {first:.1f}"


LARGE = ("0.1 B", "0.5 B")
AIMS = {"linear": 0.6, "task_arithmetic": 0.6, "slerp": 0.6, "ties": 0.5, "dare_ties": 0.5}
"""Aims at the larger sizes: `apply` as a share of the memory's bandwidth."""


def figures(results: Results) -> dict[str, str]:
    """Return the figures of the README's sentences."""
    rows = [Result(**row) for row in results["results"]]
    beside = [row.in_memory / row.cpu for row in rows if row.in_memory is not None]
    first = [row.in_memory / (row.cpu + row.prepare) for row in rows if row.in_memory is not None]

    def shares(aim: float) -> list[float]:
        return [r.limit / r.wall for r in rows if r.size in LARGE and AIMS.get(r.method) == aim and r.limit is not None]

    simple, elected = shares(0.6), shares(0.5)
    found = {
        "simple.reached": f"{sum(round(share, 2) >= 0.6 for share in simple)} of {len(simple)}",
        "elected.reached": f"{sum(round(share, 2) >= 0.5 for share in elected)} of {len(elected)}",
    }
    if beside:  # a part of the sizes may be measured alone
        found |= {"ratio": f"{min(beside):.0f} to {max(beside):.0f}"}
        found |= {"ratio.first": f"{min(first):.1f} to {max(first):.0f}"}
    for name, own in (("simple", simple), ("elected", elected)):
        found |= {name: f"{100 * min(own):.0f} to {100 * max(own):.0f} %"} if own else {}
    return found


def _memory(result: Result) -> str:
    if result.held is None or result.bound is None:
        return "|"
    return f"{result.held / 1e6:.0f} / {result.bound / 1e6:.0f}{' (over)' if _is_over(result) else ''} |"


def _is_over(result: Result) -> bool:
    return result.held is not None and result.bound is not None and result.held > result.bound


def methods_for(size: Size) -> tuple[str, ...]:
    """Return what is timed on a size: on the smallest every method that needs no text, five on the others."""
    if size in (SIZES[0], *QUICK):
        return tuple(method for method, spec in METHODS.items() if not spec.statistics)
    return FIVE


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table, write or complete the results and the table of the README beside them."""
    parser = EXPERIMENT.parser(__doc__, quick="a tiny model, one repetition")
    parser.add_argument(
        "--size", choices=[size.name for size in SIZES], help="this size only; keeps the others' results"
    )
    parser.add_argument("--method", action="append", help="this method only; may be repeated")
    parser.add_argument("--experts", type=int, choices=(2, 3), default=2)
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument(
        "--threads", type=int, default=2, help="of ours; mergekit's CPU time is counted whatever it uses"
    )
    parser.add_argument("--alone", action="store_true", help="without mergekit, whose merges take longest")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    out = EXPERIMENT.destination(given)
    sizes = QUICK if given.quick else [size for size in SIZES if given.size in (None, size.name)]
    about = {"seed": given.seed, "machine": machine(given.threads, "torch", "numba", "mergekit", "transformers")}
    results: Results = {"results": [], **EXPERIMENT.read(out), **about}
    found: list[Result] = []
    for size in sizes:
        methods = given.method or methods_for(size)
        repetitions = 1 if given.quick else given.repetitions
        for result in measure(
            size,
            methods,
            given.experts,
            repetitions=repetitions,
            threads=given.threads,
            seed=given.seed,
            alone=given.alone,
        ):
            found.append(result)
            results["results"] = _merged(results["results"], [result])
            EXPERIMENT.publish(out, results)
    print("\n" + tables(results)[0])
    over = [f"{result.method} at {result.size}" for result in found if _is_over(result)]
    if over:
        parser.exit(1, f"more memory than the plan says: {', '.join(over)}\n")


def _merged(before: Sequence[dict[str, Any]], found: Sequence[Result]) -> list[dict[str, Any]]:
    """Return the results beside earlier ones of other sizes, methods and numbers of models, in order."""

    def place(result: dict[str, Any]) -> tuple[float, int, int]:
        return float(result["size"].split()[0]), result["experts"], list(METHODS).index(result["method"])

    placed = {place(result): result for result in [*before, *map(asdict, found)]}
    return [placed[key] for key in sorted(placed)]


EXPERIMENT = Experiment(Path(__file__).parent, tables, figures=figures)

if __name__ == "__main__":
    main()
