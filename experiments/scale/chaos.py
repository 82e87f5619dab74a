"""``python -m experiments.scale.chaos``: SIGKILLs at random instants over one search of the zoo.

The same search runs twice: undisturbed, and killed again and again. First its driver is killed, while it starts, while
it searches and while it scores the finalists, and resumed each time; then the search goes on with two Ray workers, and
those are killed. It must end with the same candidates, scores and result. So that a hundred lives take minutes, each
driver is a fork of a process that has imported torch already; `tests/test_kill.py` kills whole commands.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

import evomerge.commands.search as commands
from evomerge.config import load
from evomerge.problem import Problem
from evomerge.run import Asked, Final, Run, is_run

FOLDER = Path(__file__).parent
ZOO = FOLDER.parent / "zoo"
RAY = ["workers={kind: ray, count: 2, max_restarts: 100}"]
START = 3.0
"""Longest seconds before a kill that is to hit a driver while it starts."""


def write_config(file: Path, evaluations: int) -> None:
    """Write the search that is killed."""
    config = {
        "models": {name: str(ZOO / "models" / name) for name in ("base", "ops", "ja")},
        "space": {"layers_per_group": 2},
        "strategy": {"kind": "cma_es", "population": 8, "mean_every": 3},
        "fitness": {
            "tasks": [{"task": "zoo_target_ja"}],
            "include_path": [str(ZOO / "tasks")],
            "subset": {"items": 12},
            "held_out": 0.2,
        },
        "budget": {"evaluations": evaluations},
        "workers": {"threads": 1},
    }
    file.write_text(yaml.safe_dump(config), encoding="utf-8")


class Lives:
    """A search that is begun, killed and resumed in one folder."""

    def __init__(self, folder: Path, name: str) -> None:
        self.config, self.run, self.output = folder / "search.yaml", folder / name, folder / f"{name}.txt"

    def begin(self, overrides: list[str]) -> int:
        """Fork a driver that begins the search or goes on with it; return its process id."""
        process = os.fork()
        if process:
            return process
        with self.output.open("a") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        code = 1
        try:
            if is_run(self.run):
                commands.resume(self.run, overrides, False)
            else:
                commands.search(self.config, overrides, self.run, None, False)
            code = 0
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def events(self) -> int:
        """Count what is recorded."""
        if not is_run(self.run):
            return 0
        with Run.read(self.run) as run:
            return run.count()

    def finish(self, process: int) -> None:
        """Wait for a driver that must end by itself."""
        _, status = os.waitpid(process, 0)
        if status:
            raise SystemExit(f"the driver ended with {status}:\n{self.output.read_text()[-2000:]}")


def ended(process: int) -> bool:
    """Tell whether a driver has ended by itself."""
    return os.waitpid(process, os.WNOHANG)[0] != 0


def kill(process: int) -> None:
    """SIGKILL a driver."""
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)


def kill_drivers(lives: Lives, kills: int, last: int, rng: random.Random) -> int:
    """Kill drivers up to event `last`: a quarter while they start, the others after a random event; count them."""
    killed = 0
    for target in sorted(rng.randint(1, last) for _ in range(kills)):
        process = lives.begin([])
        if rng.random() < 0.25:
            time.sleep(rng.uniform(0, START))
        else:
            wait_for(lambda goal=target: lives.events() >= goal, process)
            time.sleep(rng.uniform(0, 0.1))
        if ended(process):
            lives.finish(lives.begin([]))
            continue
        kill(process)
        killed += 1
    return killed


def kill_workers(lives: Lives, kills: int, rng: random.Random) -> int:
    """Go on with Ray and kill one of its workers again and again; return how many died before the search ended."""
    process, killed, seen = lives.begin(RAY), 0, 0
    log = lives.run / "log.txt"
    known = len(log.read_text()) if log.is_file() else 0
    while killed < kills:
        wait_for(lambda before=seen: len(_workers(log, known)) > before, process)
        if ended(process):
            return killed
        ready = _workers(log, known)
        time.sleep(rng.uniform(0, 0.3))
        seen = len(ready)
        os.kill(ready[-1], signal.SIGKILL)
        killed += 1
    lives.finish(process)
    return killed


def _workers(log: Path, known: int) -> list[int]:
    return [int(found) for found in re.findall(r"is ready: process (\d+)", log.read_text()[known:])]


def wait_for(condition: Callable[[], bool], process: int) -> None:
    """Wait for a condition, or for the driver's end."""
    while not condition():
        if os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return
        time.sleep(0.02)


def outcome(path: Path) -> dict[str, Any]:
    """Return all that a run has found, in an order that does not depend on which worker was quicker."""
    found: dict[str, Any] = {"asked": {}, "told": {}, "final": {}}
    with Run.read(path) as run:
        for event in run.events():
            if isinstance(event, Asked):
                one = event.candidate
                found["asked"][one.id] = (one.kind, one.generation, one.genotype.tobytes(), event.recipe)
                continue
            evaluation = event.evaluation
            scores = (evaluation.status, evaluation.objectives, evaluation.items, evaluation.scores.tobytes())
            kind = "final" if isinstance(event, Final) else "told"
            key = (event.stage, event.recipe) if isinstance(event, Final) else event.candidate
            if key in found[kind]:
                raise SystemExit(f"{kind} {key} is recorded twice")
            found[kind][key] = scores
    result = json.loads((path / "result.json").read_text())
    del result["seconds"]
    return found | {"result": result}


def measure(folder: Path, evaluations: int, driver_kills: int, worker_kills: int, seed: int) -> dict[str, Any]:
    """Run the search undisturbed and killed; compare them."""
    write_config(folder / "search.yaml", evaluations)
    Problem(load(folder / "search.yaml")).ready_worker()  # so that forks find everything imported
    rng = random.Random(seed)
    started = time.monotonic()
    whole = Lives(folder, "whole")
    whole.finish(whole.begin([]))
    undisturbed = time.monotonic() - started
    total = whole.events()
    lives = Lives(folder, "killed")
    share = 0.6 if worker_kills else 1.0  # of the events, before Ray's workers take over
    drivers = kill_drivers(lives, driver_kills, int(share * total), rng)
    workers = kill_workers(lives, worker_kills, rng) if worker_kills else 0
    if not (lives.run / "result.json").is_file():
        lives.finish(lives.begin([]))
    return {
        "evaluations": evaluations,
        "events": total,
        "driver_kills": drivers,
        "worker_kills": workers,
        "equal": outcome(lives.run) == outcome(whole.run),
        "seconds_undisturbed": round(undisturbed, 1),
        "seconds_killed": round(time.monotonic() - started - undisturbed, 1),
        "seed": seed,
    }


def main() -> None:
    """Kill, compare, write `chaos.json`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="five kills of the driver, none of workers")
    parser.add_argument("--driver-kills", type=int, default=85)
    parser.add_argument("--worker-kills", type=int, default=15)
    parser.add_argument("--evaluations", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=FOLDER / "chaos.json")
    given = parser.parse_args()
    if given.quick:
        given.driver_kills, given.worker_kills, given.evaluations = 5, 0, 24
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), given.evaluations, given.driver_kills, given.worker_kills, given.seed)
    given.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))
    if not found["equal"]:
        raise SystemExit("the killed search has not ended like the undisturbed one")


if __name__ == "__main__":
    main()
