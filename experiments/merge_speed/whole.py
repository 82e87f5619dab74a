"""Whole processes: `evomerge merge` and `mergekit-yaml` on the same recipe, in turns, from the start to the files.

Rounds add up: each is written when it ends, and the command continues from those that are there, so that a measurement
fits into quiet hours of a shared machine.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any, TypedDict

import yaml

from experiments.harness import Experiment, Results
from experiments.machine import machine
from experiments.merge_speed.cases import QUICK, SIZES, Size, make_models, recipe

METHODS = ("linear", "slerp", "ties", "dare_ties")
PROGRAMS = ("evomerge", "mergekit")
AIM = 1 / 3
"""Of mergekit's wall time."""
CHUNK = 1 << 24


class Used(TypedDict):
    """What a process took: seconds, and its largest resident memory in bytes."""

    wall: float
    cpu: float
    peak: int


def measure(size: Size, given: Namespace, results: Results, write: Callable[[], None], until: float) -> None:
    """Add rounds until each method has as many as asked, or no time is left."""
    with ExitStack() as stack:
        folder = given.models or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        paths = _models(size, folder / size.name.replace(" ", "_"), given.seed)
        warm_up = _models(QUICK[0], folder / "tiny", given.seed)
        out = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "merged"
        _round(_recipe("linear", warm_up, folder), out, given.threads)  # reads the programs' own files
        for path in paths:
            _read(Path(path))
        for turn in range(given.rounds):
            for method in given.method or METHODS:
                own = [row for row in results["rounds"] if (row["size"], row["method"]) == (size.name, method)]
                if len(own) > turn:
                    continue
                if time.monotonic() > until:
                    return
                used = _round(_recipe(method, paths, folder), out, given.threads)
                row = {"size": size.name, "method": method, "load": round(os.getloadavg()[0], 1), **used}
                results["rounds"].append(row)
                write()
                print(table([row]).splitlines()[-1], flush=True)


def _models(size: Size, folder: Path, seed: int) -> list[str]:
    """Return the folders of a base and two fine-tunes, made where they are not there yet."""
    done = folder / "done"
    if not done.exists():
        make_models(size, folder, 2, seed)
        done.touch()
    return [str(folder / name) for name in ("base", "expert1", "expert2")]


def _recipe(method: str, paths: list[str], folder: Path) -> Path:
    data = {**recipe(method, paths, 2, 0), "dtype": "bfloat16"}
    file = folder / f"{method}.yaml"
    file.write_text(yaml.safe_dump({key: data[key] for key in data if key not in ("out_dtype", "evomerge")}))
    return file


def _read(folder: Path) -> None:
    """Read a model's files, so that both programs find them in the system's memory."""
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            while file.read(CHUNK):
                pass


def _round(file: Path, out: Path, threads: int) -> dict[str, Used]:
    """Run both programs, one after the other."""
    commands = {
        "evomerge": [sys.executable, "-m", "evomerge.cli", "merge", str(file), str(out)],
        "mergekit": [str(Path(sys.executable).parent / "mergekit-yaml"), str(file), str(out)],
    }
    used = {}
    for program, command in commands.items():
        shutil.rmtree(out, ignore_errors=True)
        used[program] = _run(command, threads)
    return used


def _run(command: Sequence[str], threads: int) -> Used:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(threads)}
    start = time.perf_counter()
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    wall = time.perf_counter() - start
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed with {process.returncode}")
    return {"wall": round(wall, 2), "cpu": round(used.ru_utime + used.ru_stime, 2), "peak": used.ru_maxrss * 1024}


def table(rounds: Sequence[Mapping[str, Any]]) -> str:
    """Return the table of the medians of some rounds."""
    lines = [
        "| model | method | rounds | load | evomerge merge, s | CPU | peak, MB | mergekit-yaml, s | CPU | peak, MB "
        "| wall, ours / theirs | peak, ours / theirs |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for (size, method), rows in _grouped(rounds).items():
        ours, theirs = _medians(rows)
        load = median(row["load"] for row in rows)
        lines.append(
            f"| {size} | {method} | {len(rows)} | {load:.1f} {_cells(ours)} {_cells(theirs)} "
            f"| {ours['wall'] / theirs['wall']:.2f} | {ours['peak'] / theirs['peak']:.2f} |"
        )
    return "\n".join(lines)


def _grouped(rounds: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], list[Mapping[str, Any]]]:
    """Return the rounds of each size and method, in the order of both lists."""
    names = [size.name for size in (*QUICK, *SIZES)]
    keys = {(row["size"], row["method"]) for row in rounds}
    ordered = sorted(keys, key=lambda key: (names.index(key[0]), METHODS.index(key[1])))
    return {key: [row for row in rounds if (row["size"], row["method"]) == key] for key in ordered}


def _medians(rows: Sequence[Mapping[str, Any]]) -> tuple[Used, Used]:
    ours, theirs = (
        Used(
            wall=median(row[program]["wall"] for row in rows),
            cpu=median(row[program]["cpu"] for row in rows),
            peak=int(median(row[program]["peak"] for row in rows)),
        )
        for program in PROGRAMS
    )
    return ours, theirs


def _cells(used: Used) -> str:
    return f"| {used['wall']:.1f} | {used['cpu']:.1f} | {used['peak'] / 1e6:.0f}"


def tables(results: Results) -> list[str]:
    """Return the README's table."""
    return [table(results["rounds"])]


def figures(results: Results) -> dict[str, str]:
    """Return the figures of the README's sentences."""
    pairs = [_medians(rows) for rows in _grouped(results["rounds"]).values()]
    walls = [ours["wall"] / theirs["wall"] for ours, theirs in pairs]
    return {
        "whole.wall": f"{min(walls):.2f} to {max(walls):.2f}",
        "whole.aim": f"{sum(wall <= AIM for wall in walls)} of {len(walls)}",
        "whole.less": f"{sum(ours['peak'] < theirs['peak'] for ours, theirs in pairs)} of {len(pairs)}",
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is missing, and write each round and the table of the README."""
    parser = EXPERIMENT.parser(__doc__, quick="a tiny model, one round")
    parser.add_argument("--size", choices=[size.name for size in SIZES[1:]], help="this size only")
    parser.add_argument("--method", action="append", choices=METHODS, help="this method only; may be repeated")
    parser.add_argument("--rounds", type=int, default=5, help="in all, the recorded ones included (default: 5)")
    parser.add_argument("--minutes", type=float, default=1e9, help="start no round after so many")
    parser.add_argument("--models", type=Path, help="keep the models in this folder; default: a temporary one")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    until = time.monotonic() + 60 * given.minutes
    out = EXPERIMENT.destination(given)
    if given.quick:
        given.rounds = 1
    about = {"seed": given.seed, "machine": machine(given.threads, "torch", "mergekit", "transformers")}
    results: Results = {**about, "rounds": EXPERIMENT.read(out).get("rounds", [])}
    for size in QUICK if given.quick else [size for size in SIZES[1:] if given.size in (None, size.name)]:
        measure(size, given, results, lambda: EXPERIMENT.publish(out, results), until)
    print("\n" + table(results["rounds"]))


EXPERIMENT = Experiment(
    Path(__file__).parent, tables, module="whole", file="whole.json", marker="whole", rows="rounds", figures=figures
)

if __name__ == "__main__":
    main()
