"""`evomerge search` and `evomerge resume`."""

from __future__ import annotations

import json
import logging
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from shlex import quote
from typing import Any

from rich.console import Console

from evomerge.cli.printing import console, print_held_out
from evomerge.cli.progress import SearchProgress
from evomerge.config.search_file import SearchConfig, load, load_recorded
from evomerge.runs.history import Ledger
from evomerge.runs.report.html import render
from evomerge.runs.result import Result
from evomerge.runs.run import Run, RunError
from evomerge.search.final_evaluation import Conclusion
from evomerge.search.loop import Search
from evomerge.search.problem import Problem
from evomerge.search.racing_pool import racing
from evomerge.search.recorded_scoring import Bench
from evomerge.search.warm_start import warm_start_override
from evomerge.workers.base import Pool

log = logging.getLogger("evomerge")


def search(
    config_file: Path, overrides: Sequence[str], path: Path | None, warm_start: Path | None, as_json: bool
) -> None:
    """Make a new run and search, perhaps from what a former run has found."""
    out = console(stderr=as_json)
    if warm_start is not None:
        overrides = [*overrides, warm_start_override(load(config_file, overrides), warm_start)]
    path = path or _free_name(Path("runs") / config_file.stem)
    with _interruptible(out, "stopped before the search began; nothing is kept"):
        problem, environment = _open(load(config_file, overrides), out)
        pool = problem.pool()  # before the run exists: what is wrong with a device or a tokenizer shows here
        run = _create(path, problem, environment, pool)
    with run, closing(pool):
        _go_on(run, problem, pool, out, as_json)


def resume(path: Path, overrides: Sequence[str], as_json: bool) -> None:
    """Go on with a run; the budget, the workers and places of files may be others from here on."""
    out = console(stderr=as_json)
    with Run.open(path) as run:
        with _interruptible(out, _how_to_go_on(run)):
            problem, environment = _open(load_recorded(path, overrides), out)
            _check_same(run, environment)
            for warning in _upgrades(run.environment(), environment):
                out.print(f"warning: {warning}")
            pool = problem.pool()
            if overrides:
                run.write("config.yaml", problem.config.to_yaml())
        with closing(pool):
            _go_on(run, problem, pool, out, as_json)


def _create(path: Path, problem: Problem, environment: dict, pool: Pool) -> Run:
    try:
        return Run.create(path, problem.resolved().to_yaml(), environment)
    except BaseException:
        pool.close()
        raise


def _open(config: SearchConfig, out: Console) -> tuple[Problem, dict]:
    out.print(f"checking {len(config.models)} models and {len(config.fitness.tasks)} tasks")
    problem = Problem(config)
    for warning in problem.warnings:
        out.print(f"warning: {warning}")
    environment = problem.environment()
    if problem.warmed.message:
        out.print(problem.warmed.message, soft_wrap=True)
    return problem, environment


def _go_on(run: Run, problem: Problem, pool: Pool, out: Console, as_json: bool) -> None:
    """Search until the budget is spent, then score the finalists; a stop in between loses nothing."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with _logged(run.path / "log.txt"), _interruptible(out, _how_to_go_on(run)):
        result = _search_and_conclude(run, problem, pool, out)
    if as_json:
        print(result.to_json())
    else:
        _print_end(run, result, out)


def _search_and_conclude(run: Run, problem: Problem, pool: Pool, out: Console) -> Result:
    budget = problem.config.budget
    if problem.needs_sources:
        out.print(f"scoring the sources on {len(problem.search_items)} search items")
    plan = problem.evaluation_plan(Bench(run, Ledger(run.events()), pool))
    state = Search(run, problem.space, problem.strategy(), budget, plan)
    done = len(state.ledger.told)
    out.print(
        f"{run.path}: {problem.space.dimension} genes, {len(problem.subset)} items per candidate, "
        f"{budget.evaluations} evaluations" + (f", {done} of them done" if done else "")
    )
    log.info("searching from evaluation %d", done)
    with SearchProgress(out, budget, done) as progress:
        state.search(racing(pool, problem.config, state), progress)
    out.print(f"scoring the finalists on {len(problem.held_out_items)} held-out items")
    result = Conclusion(run, problem, state, pool).conclude()
    run.write("report.html", render(run.path))
    return result


def _print_end(run: Run, result: Result, out: Console) -> None:
    print_held_out(out, result.held_out)
    out.print(
        f"search score of the found recipe {result.search_score:.3f}, {result.optimism:+.3f} above its held-out score"
    )
    name = quote(str(run.path))
    out.print("next:")
    for command in (
        f"evomerge export {name} -o recipe.yaml",
        "evomerge merge recipe.yaml merged",
        f"evomerge evaluate merged --like {name}",
    ):
        out.print(f"  {command}", soft_wrap=True)


def _check_same(run: Run, environment: dict) -> None:
    """Refuse to go on with other sources, items or settings: the scores would not compare."""
    recorded = run.environment()
    current = json.loads(json.dumps(environment))  # tuples become lists, as in the file
    for name, files in current["sources"].items():
        if recorded["sources"].get(name) != files:
            raise RunError(f"models.{name}: it has changed since the run began; put the old files back, or {_ANEW}")
    for key, value in current["config"].items():
        if _given(recorded["config"].get(key)) != _given(value):
            raise RunError(
                f"{run.path / 'config.yaml'}: {key} was edited since the run began, and only the budget, the workers "
                f"and places of files may be; put it back, or {_ANEW}"
            )
    if recorded["items"] != current["items"]:
        raise RunError(f"fitness.tasks: a task's items have changed since the run began; put them back, or {_ANEW}")


def _given(value: Any) -> Any:
    """Leave out what is not set: a setting that is younger than the run counts as none."""
    if isinstance(value, dict):
        return {key: _given(inner) for key, inner in value.items() if inner is not None}
    return value


def _upgrades(recorded: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """Name the packages that are others than when the run began; what strategies then do differently is refused."""
    before = {"evomerge": recorded["evomerge"]} | recorded["packages"]
    now = {"evomerge": current["evomerge"]} | current["packages"]
    return [
        f"{name} {version} when the run began, {now.get(name, 'none')} now: new scores may differ in their last digits"
        for name, version in before.items()
        if now.get(name) != version
    ]


_ANEW = "start a new run"


def _how_to_go_on(run: Run) -> str:
    return f"stopped; nothing scored is lost. Go on with: evomerge resume {quote(str(run.path))}"


@contextmanager
def _interruptible(out: Console, message: str) -> Iterator[None]:
    """End with a sentence and exit code 130 on Ctrl-C (or, while searching, on SIGTERM)."""
    try:
        yield
    except KeyboardInterrupt:
        log.info("stopped")
        out.print(message, soft_wrap=True)
        raise SystemExit(130) from None


@contextmanager
def _logged(path: Path) -> Iterator[None]:
    """Write what the search logs to a file, and not to the terminal."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.setLevel(logging.INFO)
    log.propagate = False
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        handler.close()


def _free_name(path: Path) -> Path:
    """Return `path`, or `path-2`, `path-3`, ... where it is taken."""
    name, count = path, 1
    while name.exists():
        count += 1
        name = path.with_name(f"{path.name}-{count}")
    return name
