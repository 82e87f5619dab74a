"""`evomerge search` and `evomerge resume`."""

from __future__ import annotations

import json
import logging
import os
import signal
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from evomerge.commands.output import console, print_held_out
from evomerge.config import SearchConfig, load
from evomerge.final import Conclusion
from evomerge.problem import Problem
from evomerge.progress import SearchProgress
from evomerge.result import Result
from evomerge.run import Run, RunError
from evomerge.search import Search

log = logging.getLogger("evomerge")


def search(config_file: Path, overrides: Sequence[str], path: Path | None, as_json: bool) -> None:
    """Make a new run and search."""
    config = load(config_file, overrides)
    path = path or _free_name(Path("runs") / config_file.stem)
    out = console(stderr=as_json)
    out.print(f"checking {len(config.models)} models and {len(config.fitness.tasks)} tasks")
    problem = Problem(config)
    for warning in problem.report.warnings:
        out.print(f"warning: {warning}")
    with Run.create(path, problem.resolved().to_yaml(), problem.environment()) as run:
        _go_on(run, problem, out, as_json)


def resume(path: Path, as_json: bool) -> None:
    """Go on with a run."""
    with Run.open(path) as run:
        problem = Problem(load(path / "config.yaml"))
        _check_sources(run, problem)
        _go_on(run, problem, console(stderr=as_json), as_json)


def _go_on(run: Run, problem: Problem, out: Console, as_json: bool) -> None:
    """Search until the budget is spent, then score the finalists; a stop in between loses nothing."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    handler = _log_to(run.path / "log.txt")
    try:
        result = _search_and_conclude(run, problem, out)
    except KeyboardInterrupt:
        log.info("stopped")
        out.print(f"stopped; nothing scored is lost. Go on with: evomerge resume {run.path}")
        raise SystemExit(130) from None
    finally:
        log.removeHandler(handler)
        handler.close()
    if as_json:
        print(result.to_json())
    else:
        _print_end(run, result, problem.config, out)


def _search_and_conclude(run: Run, problem: Problem, out: Console) -> Result:
    config = problem.config
    state = Search(run, problem.space, problem.strategy(), config.budget, problem.subset)
    done = len(state.ledger.told)
    out.print(
        f"{run.path}: {problem.space.dimension} genes, {len(problem.subset)} items per candidate, "
        f"{config.budget.evaluations} evaluations" + (f", {done} of them done" if done else "")
    )
    log.info("searching from evaluation %d", done)
    pool = problem.pool()
    with SearchProgress(out, config.budget, done) as progress:
        state.search(pool, progress)
    out.print(f"scoring the finalists on {len(problem.held_out_items)} held-out items")
    return Conclusion(run, problem, state, pool).conclude()


def _print_end(run: Run, result: Result, config: SearchConfig, out: Console) -> None:
    print_held_out(out, result.held_out)
    out.print(
        f"search score of the found recipe {result.search_score:.3f}, {result.optimism:+.3f} above its held-out score"
    )
    tasks = " ".join(task.task for task in config.fitness.tasks)
    include = " ".join(_relative(path) for path in config.fitness.include_path)
    out.print("next:")
    for command in (
        f"evomerge export {run.path} -o recipe.yaml",
        "evomerge merge recipe.yaml merged",
        f"evomerge evaluate merged --tasks {tasks}" + (f" --include-path {include}" if include else ""),
    ):
        out.print(f"  {command}", soft_wrap=True)


def _check_sources(run: Run, problem: Problem) -> None:
    recorded = json.loads((run.path / "environment.json").read_text(encoding="utf-8"))["sources"]
    # Through JSON, so that tuples and lists compare alike.
    current = json.loads(json.dumps(problem.environment()["sources"]))
    for name, fingerprint in current.items():
        if recorded.get(name) != fingerprint:
            raise RunError(
                f"models.{name}: {problem.config.models[name]} has changed since the run began, so scores would not "
                "compare; put the old files back, or start a new run"
            )


def _log_to(path: Path) -> logging.Handler:
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.setLevel(logging.INFO)
    log.propagate = False
    log.addHandler(handler)
    return handler


def _free_name(path: Path) -> Path:
    """Return `path`, or `path-2`, `path-3`, ... where it is taken."""
    name, count = path, 1
    while name.exists():
        count += 1
        name = path.with_name(f"{path.name}-{count}")
    return name


def _relative(path: str) -> str:
    relative = os.path.relpath(path)
    return path if relative.startswith("..") else relative
