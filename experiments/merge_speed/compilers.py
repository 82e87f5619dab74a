"""Ways to compute a merge: in one pass, compiled by numba or by torch's own compiler, and by torch's operations.

Each merges the same whole models on one thread, in turns, so that only the code differs, and CPU time is counted.
What compiling takes is measured in processes of their own, without and with what an earlier one has compiled.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from evomerge.merging.engine import engine as engine_module
from evomerge.merging.engine import kernels
from evomerge.merging.engine.compiled import Agreed, Bounds, Competing, Elect, Farthest, How, Sum
from evomerge.merging.engine.engine import MergeEngine
from evomerge.merging.methods import ranking
from evomerge.merging.sources.checkpoints import Checkpoint
from experiments.harness import Experiment, Results
from experiments.machine import machine
from experiments.merge_speed.cases import QUICK, SIZES, make_models, recipe
from search_spaces.recipes import mergekit_yaml

METHODS = ("linear", "dare_ties", "della", "sce", "magmax", "emr", "consensus", "pcb")
"""One for each kind of kernel: a sum, an election, and those with a kernel of their own."""
SORTS = ("ties",)
"""Methods that prepare ranks."""
WAYS = ("numba", "torch.compile", "blocks", "whole tensors")
"""The last two: one operation after another, on blocks that stay in the processor's cache, or on all entries."""
MODULE = "experiments.merge_speed.compilers"
WHOLE = 1 << 26
"""Entries of a block that no tensor exceeds."""


# --- the kernels once more, for torch's compiler: numbers are tensors, so that others need no new code ---


def fused(out: Tensor, base: Tensor | None, models: list[Tensor], states: Any, how: Any) -> None:
    """Fill `out`, as `evomerge.merging.engine.compiled.fill` does."""
    start = 0.0 if base is None else base.float()
    merged = FORMULAS[type(how)]([values.float() - start for values in models], states, how) * how.scale + start
    out.copy_(merged.bfloat16() if how.rounds else merged)


def _sum(deltas: list[Tensor], states: Any, how: Any) -> Tensor:
    kept = [_kept(delta, t, states, how.kept) for t, delta in enumerate(deltas)]
    total = reduce(torch.add, [delta * how.weights[t] for t, delta in enumerate(kept)])
    return total if how.divisor is None else total / how.divisor


def _elect(deltas: list[Tensor], states: Any, how: Any) -> Tensor:
    kept = [_kept(delta, t, states, how.kept) for t, delta in enumerate(deltas)]
    weighted = [delta * how.weights[t] for t, delta in enumerate(kept)]
    sign = torch.where(reduce(torch.add, weighted) >= 0, 1.0, -1.0)
    sizes = [(values * sign).clamp(min=0) for values in weighted]
    shares = how.weights if how.shares is None else how.shares
    if how.largest:
        return reduce(torch.maximum, sizes) * sign
    size = reduce(torch.add, [each if how.shares is None else each * shares[t] for t, each in enumerate(sizes)])
    if how.normalize or how.smallest is not None:
        weight = reduce(torch.add, [torch.where(each > 0, shares[t], 0.0) for t, each in enumerate(sizes)])
        floor = torch.where(weight == 0, 1.0, weight) if how.smallest is None else torch.maximum(weight, how.smallest)
        size = size / floor
    return size * sign


def _farthest(deltas: list[Tensor], _: Any, how: Any) -> Tensor:
    weighted = [delta * how.weights[t] for t, delta in enumerate(deltas)]
    highest, lowest = reduce(torch.maximum, weighted), reduce(torch.minimum, weighted)
    return torch.where(highest + lowest >= 0, highest, lowest)


def _agreed(deltas: list[Tensor], _: Any, how: Any) -> Tensor:
    weighted = [delta * how.weights[t] for t, delta in enumerate(deltas)]
    total = reduce(torch.add, weighted)
    matters = [(delta.abs() > (total - delta).abs() * how.threshold).float() for delta in weighted]
    return torch.where(reduce(torch.add, matters) >= how.least, total, 0.0)


def _competing(deltas: list[Tensor], states: Any, how: Any) -> Tensor:
    scores = [(torch.maximum(score, how.least[t]) - how.least[t]) / how.span[t] for t, score in enumerate(states)]
    sizes = [delta.abs().clamp(how.low[t], how.high[t]) * delta.sign() for t, delta in enumerate(deltas)]
    total = reduce(torch.add, [size * how.weights[t] * scores[t] for t, size in enumerate(sizes)])
    return total / torch.maximum(reduce(torch.add, scores), how.smallest)


def _kept(delta: Tensor, t: int, states: Any, kept: Any) -> Tensor:
    if kept is None:
        return delta
    if isinstance(kept, Bounds):
        inside = states[t] < kept.end[t]
        inside = inside if kept.first is None else inside & (states[t] >= kept.first[t])
        delta = torch.where(inside, delta, 0.0)
        return delta if kept.factor is None else delta * kept.factor[t]
    chance = states[1][t] * kept.slope[t] + kept.offset[t]
    delta = delta / torch.maximum(chance, kept.smallest) if kept.rescales else delta
    return torch.where(states[0][t] < chance * kept.levels - kept.levels * 0.5, delta, 0.0)


FORMULAS: dict[type, Callable[[list[Tensor], Any, Any], Tensor]] = {
    Sum: _sum,
    Elect: _elect,
    Farthest: _farthest,
    Agreed: _agreed,
    Competing: _competing,
}


def _in_torch(compiled: Callable[..., None]) -> Callable[..., None]:
    """Return what stands for the kernels' `fill`: it hands over tensors instead of arrays and numbers."""

    def array(values: Any) -> Any:
        if values is None:
            return None
        if isinstance(values, tuple):
            return [array(each) for each in values]
        found = torch.from_numpy(values)
        return found.view(torch.bfloat16) if found.dtype == torch.uint16 else found

    def number(value: Any) -> Any:
        if hasattr(value, "_replace"):
            return type(value)(*map(number, value))
        return value if value is None or value is True else torch.tensor(value)

    def fill(out: Any, base: Any, models: Any, states: Any, how: How) -> None:
        compiled(array(out), array(base), array(models), array(states), number(how))

    return fill


@contextmanager
def way(name: str) -> Iterator[None]:
    """Let engines merge in one of the ways."""
    if name == "numba":
        yield
    elif name == "torch.compile":
        with patch.object(kernels, "fill", _COMPILED):
            yield
    else:
        with patch.object(engine_module, "find_spec", lambda _: None):
            yield


_COMPILED = _in_torch(torch.compile(fused, fullgraph=True, dynamic=True))


# --- measuring ---


def applied(method: str, paths: list[str], repetitions: int) -> list[dict[str, Any]]:
    """Return nanoseconds per parameter and candidate of each way, and whether the weights are numba's."""
    recipes = [mergekit_yaml.build(recipe(method, paths, 2, turn)) for turn in range(repetitions + 1)]
    checkpoints = {path: Checkpoint.open(path) for path in paths}
    by_blocks, whole = (MergeEngine(checkpoints, base=paths[0], large=0, block=block) for block in (None, WHOLE))
    times: dict[str, list[float]] = {name: [] for name in WAYS}
    bits: dict[str, list[int]] = {name: [] for name in WAYS}
    count = by_blocks.footprint(recipes[0]).parameters
    for turn, candidate in enumerate(recipes):
        for name in WAYS:
            engine = whole if name == "whole tensors" else by_blocks
            with way(name):
                start = time.process_time()
                module = engine.apply(candidate)
                used = time.process_time() - start
            bits[name].append(sum(int(v.view(torch.int32).long().sum()) for v in module.parameters()))
            if turn:  # the first prepares and compiles
                times[name].append(used)
    return [
        {
            "what": method,
            "way": name,
            "each": round(median(times[name]) / count * 1e9, 3),
            "equal": bits[name] == bits["numba"],
        }
        for name in WAYS
    ]


def sorted_by(method: str, paths: list[str], repetitions: int) -> list[dict[str, Any]]:
    """Return nanoseconds per parameter of preparing a method that ranks entries, by numba's sort and by torch's."""
    candidate = mergekit_yaml.build(recipe(method, paths, 2, 0))
    checkpoints = {path: Checkpoint.open(path) for path in paths}
    found = {"numba": ranking.find_spec, "blocks": lambda _: None}
    times: dict[str, list[float]] = {name: [] for name in found}
    for turn in range(repetitions + 1):
        for name, find_spec in found.items():
            with patch.object(ranking, "find_spec", find_spec):
                engine = MergeEngine(checkpoints, base=paths[0])
                start = time.process_time()
                engine.prepare(candidate)
                if turn:
                    times[name].append(time.process_time() - start)
    count = engine.footprint(candidate).parameters
    return [
        {"what": f"{method}: prepare", "way": name, "each": round(median(used) / count * 1e9, 1), "equal": True}
        for name, used in times.items()
    ]


def first(name: str, paths: list[str]) -> float:
    """Return the CPU seconds of the first candidate of all methods, with those of compilers that it starts."""
    engine = MergeEngine({path: Checkpoint.open(path) for path in paths}, base=paths[0], large=0)
    recipes = [mergekit_yaml.build(recipe(method, paths, 2, 0)) for method in METHODS]
    for candidate in recipes:
        engine.prepare(candidate)
    with way(name):
        start = _used()
        for candidate in recipes:
            engine.apply(candidate)
        return _used() - start


def _used() -> float:
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def _in_process(call: str, caches: Path) -> Any:
    """Return what a function of this module returns in a process of its own, with caches of its own."""
    program = f"import json\nfrom {MODULE} import *\ntorch.set_num_threads(1)\nprint(json.dumps({call}))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "TORCHINDUCTOR_COMPILE_THREADS": "1",  # compilers that end before they are counted
            "NUMBA_CACHE_DIR": str(caches / "numba"),
            "TORCHINDUCTOR_CACHE_DIR": str(caches / "torch"),
        },
    )
    if done.returncode:
        raise RuntimeError(f"{call}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _megabytes(*packages: str) -> float:
    """Return what packages take on the disk."""
    files = [file for package in packages for file in metadata.files(package) or () if file.suffix != ".pyc"]
    return round(sum(Path(str(file.locate())).stat().st_size for file in files) / 1e6)


# --- the page ---


def tables(results: Results) -> list[str]:
    """Return the README's table."""
    lines = [f"| | {' | '.join(WAYS)} | blocks / numba | same weights as numba's |", "|---" * (len(WAYS) + 3) + "|"]
    for what in dict.fromkeys(row["what"] for row in results["rows"]):
        rows = {row["way"]: row for row in results["rows"] if row["what"] == what}
        cells = [f"{rows[name]['each']:.3g}" if name in rows else "" for name in WAYS]
        equal = ", ".join(name for name in rows if name != "numba" and rows[name]["equal"])
        lines.append(f"| {what} | {' | '.join(cells)} | {_ratio(rows, 'blocks'):.1f} | {equal} |")
    for label, key in (("first candidates, CPU s", "cold"), ("the same, compiled before", "warm")):
        seconds = [f"{results[key][name]:.1f}" if name in results[key] else "" for name in WAYS]
        lines.append(f"| {label} | {' | '.join(seconds)} | | |")
    return ["\n".join(lines)]


def _ratio(rows: dict[str, Any], name: str) -> float:
    return float(rows[name]["each"] / rows["numba"]["each"])


def figures(results: Results) -> dict[str, str]:
    """Return the figures of the README's sentences."""
    found: dict[str, str] = {"compilers.megabytes": f"{results['megabytes']:.0f}"}
    by_method = [{row["way"]: row for row in results["rows"] if row["what"] == method} for method in METHODS]
    for name, key in (("torch.compile", "fused"), ("blocks", "blocks"), ("whole tensors", "whole")):
        ratios = [_ratio(rows, name) for rows in by_method if rows]
        found[f"compilers.{key}"] = f"{min(ratios):.1f} to {max(ratios):.1f}"
    for key in ("cold", "warm"):
        for name, seconds in results[key].items():
            found[f"compilers.{key}.{name}"] = f"{seconds:.0f}"
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is not there yet, method by method, and write each when it is known."""
    parser = EXPERIMENT.parser(__doc__, quick="a tiny model, one repetition")
    parser.add_argument("--method", action="append", choices=(*METHODS, *SORTS), help="measure these again")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    out, size, repetitions = EXPERIMENT.destination(given), SIZES[0], given.repetitions
    if given.quick:
        size, repetitions = QUICK[0], 1
    results: Results = EXPERIMENT.read(out) or {"rows": [], "cold": {}, "warm": {}}
    results |= {"seed": given.seed, "size": size.name, "megabytes": _megabytes("numba", "llvmlite")}
    results["machine"] = machine(1, "torch", "numba")
    known = {row["what"].partition(":")[0] for row in results["rows"]} - set(given.method or ())
    with tempfile.TemporaryDirectory() as folder:
        paths = make_models(size, Path(folder), 2, given.seed)
        for name in [name for name in WAYS[:3] if name not in results["warm"]]:
            for key in ("cold", "warm"):
                results[key][name] = round(_in_process(f"first({name!r}, {paths!r})", Path(folder) / name), 2)
            print(name, results["cold"][name], results["warm"][name], flush=True)
        for method in [method for method in given.method or (*METHODS, *SORTS) if method not in known]:
            call = f"applied({method!r}, {paths!r}, {repetitions})"
            if method in SORTS:  # small tensors are sorted by torch in any case
                larger = paths if given.quick else make_models(SIZES[1], Path(folder) / "larger", 2, given.seed)
                call = f"sorted_by({method!r}, {larger!r}, {min(repetitions, 3)})"
            rows = _in_process(call, Path(folder))
            results["rows"] = [row for row in results["rows"] if row["what"] != rows[0]["what"]] + rows
            print(*rows, sep="\n", flush=True)
            EXPERIMENT.write(out, results)
    order = [*METHODS, *(f"{method}: prepare" for method in SORTS)]
    results["rows"].sort(key=lambda row: order.index(row["what"]))
    EXPERIMENT.publish(out, results)


EXPERIMENT = Experiment(
    Path(__file__).parent,
    tables,
    module="compilers",
    file="compilers.json",
    marker="compilers",
    rows="rows",
    figures=figures,
)

if __name__ == "__main__":
    main()
