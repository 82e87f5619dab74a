"""Whole processes: `evomerge merge` and `mergekit-yaml`, in turns, from their start to the files."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from experiments.merge_speed.cases import recipe

METHODS = ("linear", "slerp", "ties", "dare_ties")


@dataclass(frozen=True)
class Whole:
    """Medians of the runs of one method on one size; seconds and bytes."""

    size: str
    method: str
    runs: int
    load: float
    """Of the machine, over the minute before the last run."""
    wall: float
    cpu: float
    peak: int
    their_wall: float
    their_cpu: float
    their_peak: int


def measure(size: str, paths: Sequence[str], count: int, folder: Path, *, runs: int, threads: int) -> list[Whole]:
    """Run both programs in turns on bfloat16 recipes, after a first run of each that is not counted."""
    return [_measured(size, method, paths, count, folder, runs, threads) for method in METHODS]


def _measured(size: str, method: str, paths: Sequence[str], count: int, folder: Path, runs: int, threads: int) -> Whole:
    data = {**recipe(method, list(paths), count, 0), "dtype": "bfloat16"}
    file, out = folder / f"{method}.yaml", folder / "whole"
    file.write_text(yaml.safe_dump({key: data[key] for key in data if key not in ("out_dtype", "evomerge")}))
    binaries = Path(sys.executable).parent
    ours = [sys.executable, "-m", "evomerge.cli", "merge", str(file), str(out)]
    theirs = [str(binaries / "mergekit-yaml"), str(file), str(out)]
    own, others = [], []
    for turn in range(runs + 1):
        for command, found in ((ours, own), (theirs, others)):
            shutil.rmtree(out, ignore_errors=True)
            used = _run(command, threads)
            if turn:
                found.append(used)
    (wall, cpu, peak), (their_wall, their_cpu, their_peak) = (
        [statistics.median(column) for column in zip(*found, strict=True)] for found in (own, others)
    )
    result = Whole(
        size,
        method,
        runs,
        round(os.getloadavg()[0], 1),
        *(round(wall, 2), round(cpu, 2), int(peak)),
        *(round(their_wall, 2), round(their_cpu, 2), int(their_peak)),
    )
    print(table([vars(result)]).splitlines()[-1], flush=True)
    return result


def _run(command: Sequence[str], threads: int) -> tuple[float, float, int]:
    """Return a process's wall and CPU time in seconds, and its largest resident memory in bytes."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(threads)}
    start = time.perf_counter()
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed with {process.returncode}")
    return time.perf_counter() - start, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the table of some results."""
    lines = [
        "| model | method | runs | load | evomerge merge, s | CPU | peak, MB | mergekit-yaml, s | CPU | peak, MB "
        "| wall, ours / theirs |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        whole = Whole(**row)
        lines.append(
            f"| {whole.size} | {whole.method} | {whole.runs} | {whole.load:g} | {whole.wall:.1f} | {whole.cpu:.1f} "
            f"| {whole.peak / 1e6:.0f} | {whole.their_wall:.1f} | {whole.their_cpu:.1f} | {whole.their_peak / 1e6:.0f} "
            f"| {whole.wall / whole.their_wall:.2f} |"
        )
    return "\n".join(lines)
