"""``python -m experiments.scale.chaos``: SIGKILL at random times in searches on the zoo.

A search is started, killed and resumed many times. First its driver is killed, while it starts, searches and scores;
then it continues with two Ray workers, and these are killed, and drivers together with their workers.

- CMA-ES, synchronous: it must end with the candidates, scores and result of the undisturbed search.
- M2N2, steady-state: what was recorded at a kill must be the beginning of the log at the end; every candidate has one
  answer, the log replays, and every answer is the one that an undisturbed worker gives.

So that a hundred restarts take minutes, each driver is a fork of a process that has already imported torch;
`tests/cli/test_kill.py` kills whole commands.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any, TypeVar

import yaml

import evomerge.cli.search as commands
from evomerge.config.load import load
from evomerge.runs.run import Asked, Event, Run, Told, is_run
from evomerge.search.problem import Problem
from evomerge.search.scoring_workers import local_worker
from evomerge.strategies.base import Candidate
from evomerge.workers.base import Request
from evomerge.workers.inline import MergeWorker
from experiments.harness import Experiment, Results
from experiments.scale.processes import alive, busy_workers, descendants, shared_files, title
from fitness.results import Evaluation

Found = TypeVar("Found")

FOLDER = Path(__file__).parent
ZOO = FOLDER.parent / "zoo"
INLINE = ["workers={kind: inline, threads: 1}"]
RAY = ["workers={kind: ray, count: 2, max_restarts: 100}"]
START = 3.0
"""Longest seconds before a kill that is to hit a driver while it starts."""
ORPHANS = 240
"""Seconds in which what a killed driver has started must end, and its files in shared memory must be gone."""
BETWEEN = 6, 12
"""Events between two kills on Ray: enough that no candidate is hit so often that it counts as failed."""
TRIES = 5
STRATEGIES = {
    "cma_es": {"kind": "cma_es", "population": 8, "score_mean_every": 3},
    "m2n2": {"kind": "m2n2", "archive": 8},
}


class Failed(SystemExit):
    """A killed search has lost or changed something."""


@dataclass(frozen=True)
class Plan:
    """One search and its kills: of drivers with an inline worker, then, on Ray, of workers and of drivers."""

    strategy: str
    evaluations: int
    drivers: int
    ray_workers: int = 0
    ray_drivers: int = 0

    @property
    def on_ray(self) -> int:
        """Number of kills while the workers are Ray's."""
        return self.ray_workers + self.ray_drivers


PLANS = [Plan("cma_es", 400, 80, 15, 5), Plan("m2n2", 320, 5, 5, 20)]
QUICK = [Plan("cma_es", 32, 5), Plan("m2n2", 24, 3)]


def write_config(file: Path, plan: Plan) -> None:
    """Write the search that is killed."""
    config = {
        "models": {name: str(ZOO / "models" / name) for name in ("base", "ops", "ja")},
        "space": {"layers_per_group": 2},
        "strategy": STRATEGIES[plan.strategy],
        "fitness": {
            "tasks": [{"task": "zoo_target_ja"}],
            "include_path": [str(ZOO / "tasks")],
            "subset": {"items": 12},
            "held_out": 0.7,
        },
        "budget": {"evaluations": plan.evaluations},
        "workers": {"threads": 1},
    }
    file.write_text(yaml.safe_dump(config), encoding="utf-8")


class Lives:
    """A search that is started, killed and resumed in one folder."""

    def __init__(self, folder: Path, name: str) -> None:
        self.config, self.run, self.output = folder / "search.yaml", folder / name, folder / f"{name}.txt"
        self._recorded: list[bytes] = []

    def begin(self, overrides: list[str]) -> int:
        """Fork a driver that starts the search or resumes it; return its process id."""
        process = os.fork()
        if process:
            return process
        with self.output.open("a") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        code = 1
        try:
            if is_run(self.run):
                commands.resume(self.run, overrides, trust_tasks=False, as_json=False)
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
            raise Failed(f"the driver ended with {status}:\n{self.output.read_text()[-2000:]}")
        self.check_log()

    def kill(self, process: int) -> None:
        """SIGKILL a driver; what it has started must end and leave no file, and what it has recorded must stay."""
        started = descendants(process)
        files = {file for one in (process, *started) for file in shared_files(one)}
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        limit = time.monotonic() + ORPHANS
        while left := [title(one) for one in started if alive(one)] + [str(file) for file in files if file.exists()]:
            if time.monotonic() > limit:
                raise Failed(f"left by a killed driver: {left}")
            time.sleep(0.1)
        self.check_log()

    def ended(self, process: int) -> bool:
        """Tell whether a driver has ended; it can still be waited for."""
        return os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def check_lives(self, process: int) -> None:
        """Raise if a driver has ended by itself, so that every kill of a plan happens."""
        if self.ended(process):
            raise Failed(f"a driver ended before it was killed:\n{self.output.read_text()[-2000:]}")

    def wait_for(self, condition: Callable[[], Found], process: int) -> Found:
        """Wait until the condition returns something; raise if the driver ends before."""
        while not (found := condition()):
            self.check_lives(process)
            time.sleep(0.02)
        return found

    def check_log(self) -> None:
        """Raise if what was there at the last look has changed: a log only grows."""
        if is_run(self.run):
            before, self._recorded = self._recorded, history(self.run)
            if self._recorded[: len(before)] != before:
                raise Failed("events that were recorded before a kill have changed")


def kill_drivers(lives: Lives, kills: int, last: int, rng: random.Random) -> None:
    """Kill drivers up to event `last`: a quarter while they start, the others after a random event."""
    for target in sorted(rng.randint(1, last) for _ in range(kills)):
        process = lives.begin(INLINE)
        if rng.random() < 0.25:
            time.sleep(rng.uniform(0, START))
        else:
            lives.wait_for(lambda goal=target: lives.events() >= goal, process)
            time.sleep(rng.uniform(0, 0.1))
        lives.check_lives(process)
        lives.kill(process)


def begin_on_ray(lives: Lives) -> int:
    """Resume with Ray's workers; try again where the machine is too busy for Ray's time limit, as a user would."""
    for _ in range(TRIES):
        process = lives.begin(RAY)
        while not busy_workers(process):
            if lives.ended(process):
                break
            time.sleep(0.02)
        else:
            return process
        os.waitpid(process, 0)
        said = lives.output.read_text()[-2000:]
        if "Ray did not start" not in said.rpartition("checking")[2]:  # what this driver said
            raise Failed(f"a driver ended before it was killed:\n{said}")
    raise Failed(f"Ray has not started in {TRIES} tries")


def kill_on_ray(lives: Lives, plan: Plan, rng: random.Random) -> None:
    """Resume on Ray; kill a busy worker or the driver many times; then let the search end."""
    victims = ["worker"] * plan.ray_workers + ["driver"] * plan.ray_drivers
    rng.shuffle(victims)
    process = begin_on_ray(lives)
    for victim in victims:
        goal = lives.events() + rng.randint(*BETWEEN)
        lives.wait_for(lambda goal=goal: lives.events() >= goal, process)
        time.sleep(rng.uniform(0, 0.3))
        if victim == "driver":
            lives.kill(process)
            process = begin_on_ray(lives)
        else:
            workers = lives.wait_for(lambda driver=process: busy_workers(driver), process)
            os.kill(rng.choice(workers), signal.SIGKILL)
    lives.finish(process)


def history(path: Path) -> list[bytes]:
    """Return a digest of each event of a run, in order."""
    with Run.read(path) as run:
        return [_digest(event) for event in run.events()]


def _digest(event: Event) -> bytes:
    found = hashlib.sha256(repr(type(event)).encode())
    for name, value in sorted(vars(event).items()):
        found.update(repr((name, _plain(value))).encode())
    return found.digest()


def _plain(value: Any) -> Any:
    if isinstance(value, Candidate):
        return value.id, value.kind, value.generation, value.genotype.tobytes()
    if isinstance(value, Evaluation):
        return value.status, value.objectives, value.items, value.scores.tobytes(), value.reason
    return value


def outcome(path: Path) -> dict[str, Any]:
    """Return all that a run has found, independent of the order in which workers finished."""
    asked: dict[Any, Any] = {}
    told: dict[Any, Any] = {}
    beside: dict[Any, Any] = {}
    with Run.read(path) as run:
        for event in run.events():
            if isinstance(event, Asked):
                of_kind, key, content = asked, event.candidate.id, (_plain(event.candidate), event.recipe)
            elif isinstance(event, Told):
                of_kind, key, content = told, event.candidate, _plain(event.evaluation)
            else:  # a finalist answers other items in each round
                scored = event.purpose, event.recipe, event.evaluation.items
                of_kind, key, content = beside, scored, _plain(event.evaluation)
            if key in of_kind:
                raise Failed(f"{key} is recorded twice: {event}")
            of_kind[key] = content
    if unanswered := asked.keys() - told.keys():
        raise Failed(f"candidates without an answer: {sorted(unanswered)}")
    result = json.loads((path / "result.json").read_text())
    del result["seconds"]
    for stage in result["stages"].values():
        del stage["seconds"]
    return {"asked": asked, "told": told, "beside": beside, "result": result}


def wrong_answers(path: Path, problem: Problem, worker: MergeWorker) -> list[int]:
    """Return the candidates whose recorded answers differ from those of an undisturbed worker."""
    wrong, recipes = [], {}
    with Run.read(path) as run:
        for event in run.events():
            if isinstance(event, Asked):
                recipes[event.candidate.id] = problem.space.decode(event.candidate.genotype)
            elif isinstance(event, Told):
                recorded = event.evaluation
                found = worker.evaluate(Request(recipes[event.candidate], recorded.items))
                if recorded.status != found.status or recorded.scores.tobytes() != found.scores.tobytes():
                    wrong.append(event.candidate)
    return wrong


def measure(folder: Path, plan: Plan, seed: int) -> dict[str, Any]:
    """Run one search with kills and, where both must end the same, without; compare them."""
    folder.mkdir()
    write_config(folder / "search.yaml", plan)
    problem = Problem(load(folder / "search.yaml"))
    worker = local_worker(problem).ready()  # so that forks find everything imported
    rng = random.Random(seed)
    started = time.monotonic()
    lives = Lives(folder, "killed")
    share = 0.5 if plan.on_ray else 0.8  # of the events: then Ray's workers take over, or nobody kills any more
    kill_drivers(lives, plan.drivers, int(share * 2 * plan.evaluations), rng)
    if plan.on_ray:
        kill_on_ray(lives, plan, rng)
    else:
        lives.finish(lives.begin(INLINE))
    seconds = time.monotonic() - started
    lives.finish(lives.begin(INLINE))  # the log replays
    found = outcome(lives.run)
    row = asdict(plan) | {"kills": plan.drivers + plan.on_ray, "events": lives.events(), "seconds": round(seconds)}
    if problem.resolved().strategy.build(problem.space, 0).steady_state:
        wrong = wrong_answers(lives.run, problem, worker)
        beside_the_budget = ("founder", "again")
        answered = sum(found["asked"][told][0][1] not in beside_the_budget for told in found["told"])
        return row | {"answered": answered, "wrong_answers": len(wrong), "ok": not wrong}
    whole = Lives(folder, "whole")
    whole.finish(whole.begin(INLINE))
    return row | {"equal": found == outcome(whole.run), "ok": found == outcome(whole.run)}


def tables(results: Results) -> list[str]:
    """Return the README's table: what was killed, and how the searches ended."""
    lines = [
        "| strategy | evaluations | drivers killed | Ray workers killed | drivers killed with their Ray workers "
        "| ended as it must |",
        "|---|---|---|---|---|---|",
    ]
    for row in results["searches"]:
        if "equal" in row:
            kind, seen = "synchronous", f"{row['events']} events, all equal to those of the undisturbed search"
        else:
            lost = f"{row['answered']} of {row['evaluations']} answers"
            kind, seen = "steady-state", f"{lost}, {row['wrong_answers'] or 'none'} wrong, none lost"
        kills = f"{row['drivers']} | {row['ray_workers']} | {row['ray_drivers']}"
        ended = f"yes: {seen}" if row["ok"] else "no"
        lines.append(f"| {row['strategy']} ({kind}) | {row['evaluations']} | {kills} | {ended} |")
    return ["\n".join(lines)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Kill, compare, write `chaos.json`."""
    parser = EXPERIMENT.parser(__doc__, quick="eight kills of drivers, none on Ray")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--strategy", choices=STRATEGIES, help="search with this one again; the results keep the other")
    given = parser.parse_args(arguments)
    out = EXPERIMENT.destination(given)
    plans = [plan for plan in (QUICK if given.quick else PLANS) if given.strategy in (None, plan.strategy)]
    before = EXPERIMENT.read(out).get("searches", []) if given.strategy else []
    results: Results = {"python": platform.python_version(), "seed": given.seed}
    results["searches"] = [row for row in before if row["strategy"] != given.strategy]
    with tempfile.TemporaryDirectory() as folder:
        for plan in plans:
            found = measure(Path(folder) / plan.strategy, plan, given.seed)
            results["searches"].append(found | {"date": date.today().isoformat()})
            print(json.dumps(results["searches"][-1]), flush=True)
            EXPERIMENT.publish(out, results)
    if not all(row["ok"] for row in results["searches"]):
        raise SystemExit("a killed search did not end as it should")


EXPERIMENT = Experiment(FOLDER, tables, module="chaos", file="chaos.json", marker="chaos")

if __name__ == "__main__":
    main()
