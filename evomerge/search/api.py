"""A whole search as one call, for Python and for the command line.

`run_search` checks a search file, makes a run directory, searches until the budget is spent and evaluates the result on
held-out items. `resume_search` continues a stopped run exactly.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from evomerge.config.errors import ConfigError
from evomerge.config.keyed import keyed
from evomerge.config.load import load, load_mapping, load_recorded
from evomerge.config.overrides import listed, setting
from evomerge.config.search_file import SearchConfig
from evomerge.files.atomic import FileError
from evomerge.files.messages import PrintableFormatter, counted, reason
from evomerge.runs.bill import BILL, Bill
from evomerge.runs.environment import Environment
from evomerge.runs.history import RunHistory
from evomerge.runs.report.html import render
from evomerge.runs.result import Result
from evomerge.runs.run import Run, Told, check_new
from evomerge.search.final_evaluation import FinalEvaluation
from evomerge.search.forecast.progress import Progress, ProgressReports
from evomerge.search.forecast.rehearsal import forecast
from evomerge.search.loop import Search
from evomerge.search.problem import Problem
from evomerge.search.racing.pool import racing
from evomerge.search.recorded_scoring import RecordedScorer
from evomerge.search.resuming import check_unchanged, upgrades
from evomerge.search.scoring_workers import start_pool
from evomerge.search.task_trust import check_for, trusted
from evomerge.search.warm_start import warm_start_override
from evomerge.trackers.base import TrackerGroup
from evomerge.workers.base import Pool
from fitness.functions.loading import GIVEN, FitnessFunction, code_of_function, reference_to
from fitness.tasks.code import CodeCheck

__all__ = ["Progress", "default_run", "resume_search", "run_search"]

log = logging.getLogger("evomerge")


Say = Callable[[str], None]
"""Takes one sentence for the user: a warning, or the phase that begins."""


def run_search(
    config: SearchConfig | Mapping[str, Any] | str | Path,
    run: str | Path | None = None,
    progress: Callable[[Progress], None] | None = None,
    *,
    overrides: Sequence[str] = (),
    warm_start: str | Path | None = None,
    say: Say | None = None,
    evaluate: Callable[..., Any] | None = None,
    items: Any = None,
) -> Result:
    """Search for the best merge of some models, and evaluate it on items that the search has not used.

    Parameters
    ----------
    config
        A search file; or its contents as a mapping, whose relative folders are relative to the current one; or a
        config that has been read before.
    run
        The run directory to make; by default `runs/NAME` with the name of the search file, or the next free name. In
        this and the other paths, `~` is the user's home.
    progress
        Called with a `Progress` when a phase begins, and after every evaluation and every other recipe that is scored.
    overrides
        `key.path=value` strings, the value in YAML: `budget.evaluations=100`.
    warm_start
        The directory of a finished run whose best candidates this search begins with.
    say
        Called with a sentence for the user when a phase begins, and with warnings; None: they are dropped.
    evaluate
        A function that scores a model, in place of tasks: called with the model and its tokenizer, and with `items`
        where they are given. It returns a number, or one per item; or a mapping of several, named as the tasks in the
        config's `fitness` section.
    items
        What `evaluate` scores one by one: a list of what JSON can hold, or a mapping from splits (validation, test) to
        lists. Then candidates can be asked few of them, and some are held out. None: a model is scored as a whole.

    Returns
    -------
    Result
        The held-out table and the found recipe's hash, as in `RUN/result.json`; the recipe is in `RUN/best.yaml`.

    Raises
    ------
    ConfigError
        If the search file cannot be used.
    RunError
        If the run directory exists, or cannot be made.
    SearchError
        If no candidate can be scored.
    WorkerError
        If no worker can start or continue.

    Notes
    -----
    A search that is interrupted (Ctrl-C) raises `KeyboardInterrupt`; what was scored is in the run directory, and
    `resume_search` continues it.
    """
    say = say or _say_nothing
    path = Path(run).expanduser() if run is not None else default_run(config)
    check_new(path)
    overrides = listed(overrides)
    function, changes = _given_function(evaluate, items)
    overrides = [*changes, *overrides]
    read = _read(config, overrides)
    if warm_start is not None:
        read = _read(config, [*overrides, warm_start_override(read, Path(warm_start).expanduser())])
    reports = ProgressReports(progress, read.budget)
    with keyed(read):
        problem, environment = _open(read, say, trusted, reports, function=function)
        # before the run exists: what is wrong with a device or a tokenizer shows here
        pool = _start_workers(problem, reports)
        with closing(pool), Run.create(path, problem.resolved().to_yaml(), environment) as created:
            return _go_on(created, problem, pool, reports, say)


def resume_search(
    run: str | Path,
    progress: Callable[[Progress], None] | None = None,
    *,
    overrides: Sequence[str] = (),
    trust_tasks: bool = False,
    say: Say | None = None,
    evaluate: Callable[..., Any] | None = None,
    items: Any = None,
) -> Result:
    """Continue a stopped run exactly, or one whose budget has been raised.

    Parameters
    ----------
    run
        The run directory.
    overrides
        `key.path=value` strings for what may change: the budget, the workers, the table and places of files.
    trust_tasks
        Let the run's tasks run code that no search on this machine has run.
    progress, say
        As for `run_search`.
    evaluate, items
        The function and the items of a run that a program has begun with them; they must be the same.

    Raises
    ------
    RunError
        If it is not a run directory, is in use, or its sources, items or settings have changed.
    ConfigError, SearchError, WorkerError
        As `run_search` does; `ConfigError` also if a task of the run would run code that is not trusted.
    """
    say = say or _say_nothing
    path = Path(run).expanduser()
    overrides = listed(overrides)
    function, changes = _given_function(evaluate, items)
    with Run.open(path) as opened, keyed(config := load_recorded(path, [*changes, *overrides])):
        recorded, code = opened.environment(), check_for(path, trust_tasks, overrides)
        reports = ProgressReports(progress, config.budget)
        problem, environment = _open(config, say, code, reports, recorded, function=function)
        if opened.incomplete:
            say("warning: the last event of the log is incomplete; it is left out and repeated")
        check_unchanged(opened, environment)
        for warning in upgrades(recorded, environment):
            say(f"warning: {warning}")
        pool = _start_workers(problem, reports)
        with closing(pool):
            if overrides:
                opened.write("config.yaml", problem.config.to_yaml())
            return _go_on(opened, problem, pool, reports, say)


def default_run(config: SearchConfig | Mapping[str, Any] | str | Path) -> Path:
    """Return the run directory of a search that names none: `runs/NAME`, or `runs/NAME-2`, ... where it exists."""
    path = Path("runs") / (Path(config).stem if isinstance(config, str | Path) else "search")
    name, count = path, 1
    while name.exists():
        count += 1
        name = path.with_name(f"{path.name}-{count}")
    return name


def _read(config: SearchConfig | Mapping[str, Any] | str | Path, overrides: Sequence[str]) -> SearchConfig:
    if isinstance(config, SearchConfig):
        return load_mapping(config.model_dump(mode="json"), overrides) if overrides else config
    if isinstance(config, str | Path):
        return load(Path(config).expanduser(), overrides)
    return load_mapping(config, overrides)


def _given_function(evaluate: Callable[..., Any] | None, items: Any) -> tuple[FitnessFunction | None, list[str]]:
    """Return the function that a program has given, and the overrides that name it in the config."""
    if evaluate is None:
        if items is not None:
            raise ConfigError("items: only `evaluate` uses them; give a function, or leave them out")
        return None, []
    function, reference = FitnessFunction.of(evaluate, items), reference_to(evaluate)
    if items is None:
        trusted(code_of_function(reference, function.code, (reference,)))  # so that the command line may continue
    named = None if items is None else GIVEN
    values = {"kind": "python", "function": reference, "function_items": named}
    return function, [setting(f"fitness.{key}", value) for key, value in values.items()]


def _open(
    config: SearchConfig,
    say: Say,
    task_code: CodeCheck,
    reports: ProgressReports,
    recorded: Environment | None = None,
    *,
    function: FitnessFunction | None = None,
) -> tuple[Problem, Environment]:
    tasks = len(config.fitness.tasks)
    word, rest = ("score", " of a function") if config.fitness.kind == "python" else ("task", "")
    say(f"checking {len(config.models)} models and {counted(tasks, word)}{rest}")
    problem = Problem(config, task_code=task_code, recorded=recorded, opening=reports.opening, function=function)
    reports.opening("prompts")
    for warning in problem.warnings:
        say(f"warning: {warning}")
    if problem.chosen:
        say(problem.chosen)
    environment = problem.environment()
    if problem.warm_start.message:
        say(problem.warm_start.message)
    return problem, environment


def _start_workers(problem: Problem, reports: ProgressReports) -> Pool:
    reports.opening("workers")
    return start_pool(problem)


def _go_on(run: Run, problem: Problem, pool: Pool, reports: ProgressReports, say: Say) -> Result:
    """Search until the budget is spent, then score the finalists; a stop in between loses nothing."""
    with _logged(run.path / "log.txt"):
        trackers = TrackerGroup(problem.config.trackers, lambda text: say(f"warning: {text}"))
        trackers.start(run.path, problem.resolved().model_dump(mode="json"), run.events())
        ended: Result | None = None
        try:
            reports.bill = _bill(run, problem, reports)
            search = _search(run, problem, pool, reports, trackers, say)
            say(f"scoring the finalists on {counted(len(problem.held_out_items), 'held-out item')}")
            reports.enter("finalists")
            result = FinalEvaluation(run, problem, search, pool, reports.bill, notify=reports).evaluate()
            ended = result
            _write_report(run, problem, say)
        except KeyboardInterrupt:
            log.info("stopped")
            raise
        finally:
            trackers.end(ended)
        return result


def _write_report(run: Run, problem: Problem, say: Say) -> None:
    """Write the page about the run; a disk without room for it does not withhold the result."""
    try:
        run.write("report.html", render(run.path, problem.space))
    except FileError as error:
        say(f"warning: {error}")


def _bill(run: Run, problem: Problem, reports: ProgressReports) -> Bill | None:
    """Return what the search is expected to ask; an earlier session has said so, unless the budget was another."""
    known = Bill.read(run.path)
    if known is not None and known.evaluations == problem.config.budget.evaluations:
        return known
    reports.opening("the forecast")
    try:
        bill = forecast(problem, run.events())
    except Exception as error:  # whatever a plug-in does with made-up scores must not stop the real search
        log.warning("no forecast of the answers: %s", reason(error))
        return None
    run.write(BILL, bill.to_json())
    return bill


def _search(
    run: Run, problem: Problem, pool: Pool, reports: ProgressReports, trackers: TrackerGroup, say: Say
) -> Search:
    budget = problem.config.budget
    history = RunHistory(run.events())
    done = history.evaluations
    reports.follow(history)
    if problem.needs_sources:
        say(f"scoring the sources on {counted(len(problem.search_items), 'search item')}")
        reports.enter("sources")
    plan = problem.evaluation_plan(RecordedScorer(run, history, pool, problem.recipe_hash, reports))

    def notify(history: RunHistory, told: Told) -> None:
        trackers.told(history, told)
        reports()

    search = problem.begin(run, plan, budget, notify)
    say(
        f"{run.path}: {counted(problem.space.dimension, 'gene')}, {counted(len(problem.subset), 'item')} per "
        "candidate, "
        f"{counted(budget.evaluations, 'evaluation')}" + (f", {done} of them done" if done else "")
    )
    log.info("searching from evaluation %d", done)
    reports.follow(search.history)
    if not search.spent:
        reports.search()
    search.search(racing(pool, problem.config, search))
    return search


class _LogFile(logging.FileHandler):
    """A log file whose disk may become full: the event log says so."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Drop what cannot be written, in place of a traceback on the terminal."""


@contextmanager
def _logged(path: Path) -> Iterator[None]:
    """Write what the search logs to a file, and not to the terminal."""
    handler = _LogFile(path, encoding="utf-8")
    handler.setFormatter(PrintableFormatter("%(asctime)s %(levelname)s %(message)s"))
    before = log.level, log.propagate
    log.setLevel(logging.INFO)
    log.propagate = False
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        handler.close()
        log.setLevel(before[0])
        log.propagate = before[1]


def _say_nothing(text: str) -> None:
    pass
