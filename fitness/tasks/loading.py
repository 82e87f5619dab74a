"""From names to lm-eval's task objects: find them, refuse those that a search cannot use, make them faster."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import datasets
from lm_eval import utils as lm_eval_utils
from lm_eval.api.filter import Filter
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager
from lm_eval.tasks._index import Entry, Kind, TaskIndex
from lm_eval.tasks._yaml_loader import load_yaml

from fitness.results import TaskError
from fitness.sandbox.bubblewrap import check as check_sandbox
from fitness.sandbox.code_eval import loads_code_eval, sandboxed, use_sandboxed_code_eval
from fitness.tasks.code import INSTALLED, CodeCheck, allow, check_regular, code_of, file_of, same_folder
from fitness.tasks.config import TasksConfig
from fitness.tasks.documents import Document
from fitness.tasks.groups import Member, members
from fitness.tasks.lm_eval_rules import seeded
from fitness.tasks.messages import nearest, one_line
from fitness.tasks.templates import BoundedPattern, TaskTemplates

MOST_ENTRIES = 100_000
"""Files below a folder of tasks."""
MOST_TASKS = 5_000
"""Task files below a folder of tasks; reading as many takes some seconds."""

lm_eval_utils.env = TaskTemplates()  # before any template of a task is rendered
use_sandboxed_code_eval()  # before any task loads it


def load_tasks(config: TasksConfig, check: CodeCheck = allow) -> list[tuple[Member, ConfigurableTask]]:
    """Load the named tasks and those of named groups, in order: from the given folders, else from lm-eval's own.

    Parameters
    ----------
    config
        The tasks and their folders.
    check
        Called with the code of each task that has some, before it runs.

    Raises
    ------
    TaskError
        A folder or task does not exist, or a task cannot be loaded or used.
    """
    managers = task_managers(config)
    found = members(config.tasks, managers)
    wanted = [member.entry.task for member in found]
    for name in wanted:
        code = code_of(name, find_task(name, managers).task_index[name].yaml_path)
        if code is not None:
            check(code)
        if _runs_programs(name, managers):
            _check_allowed(name, config.allow_code)
    tasks = [_load_task(name, managers) for name in wanted]
    for name, task in zip(wanted, tasks, strict=True):
        _check_usable(task, name)
        if getattr(task, "UNSAFE_CODE", False):
            _put_into_sandbox(task, name)
        _set_fewshot(task, config.num_fewshot)
        _remember_templates(task)
        _bound_filters(task)
    return list(zip(found, tasks, strict=True))


def task_managers(config: TasksConfig) -> list[TaskManager]:
    """Index the given folders, and lm-eval's own tasks if a named task is not in the folders.

    Raises
    ------
    TaskError
        A folder does not exist or has no YAML file.
    """
    folders = [Path(folder).expanduser() for folder in config.include_path]
    for folder in folders:
        if not folder.is_dir():
            raise TaskError(f"fitness.include_path: {folder} is not a folder: name a folder of task YAML files")
        _check_folder(folder)
    managers = [_task_manager(folders, include_defaults=False)] if folders else []
    if not managers or any(task.task not in managers[0].task_index for task in config.tasks):
        managers.append(_task_manager(folders, include_defaults=True))
    return managers


def _check_folder(folder: Path) -> None:
    """Refuse a folder without task files, and one that takes long to read or cannot be."""
    seen = tasks = 0
    for place, _, names in os.walk(folder):
        seen += 1 + len(names)
        if seen > MOST_ENTRIES or tasks > MOST_TASKS:
            raise TaskError(
                f"fitness.include_path: {folder} has too many files to read: name the folder of the tasks themselves"
            )
        for name in names:
            if name.endswith(".yaml"):
                tasks += 1
                check_regular(name.removesuffix(".yaml"), Path(place, name))
    if not tasks:
        raise TaskError(f"fitness.include_path: {folder} has no .yaml file: name a folder of task YAML files")


def _task_manager(folders: Sequence[Path], *, include_defaults: bool) -> TaskManager:
    manager = TaskManager(include_path=[str(f) for f in folders], include_defaults=False)
    return _with_installed(manager) if include_defaults else manager


def _with_installed(manager: TaskManager) -> TaskManager:
    """Add lm-eval's own tasks to an index, below its tasks."""
    manager._index = dict(_installed_tasks()) | manager._index
    for name, kinds in (
        ("_all_tasks", set(Kind)),
        ("_all_subtasks", {Kind.TASK, Kind.PY_TASK}),
        ("_all_groups", {Kind.GROUP}),
        ("_all_tags", {Kind.TAG}),
    ):
        setattr(manager, name, sorted(each for each, entry in manager._index.items() if entry.kind in kinds))
    return manager


@cache
def _installed_tasks() -> Mapping[str, Entry]:
    """Return the index of lm-eval's own tasks, which takes some seconds to make."""
    found: dict[str, Entry] = TaskIndex.build([INSTALLED / "tasks"])
    return found


def find_task(name: str, managers: Sequence[TaskManager]) -> TaskManager:
    """Return the first index with the task.

    Raises
    ------
    TaskError
        No index has it.
    """
    manager = next((m for m in managers if name in m.task_index), None)
    if manager is None:
        names = sorted({known for m in managers for known in m.all_subtasks})
        raise TaskError(
            f"no task {name!r}: did you mean {nearest(name, names)}? "
            "Name an lm-eval task, or give the folder with your own task files (fitness.include_path, --include-path)",
            task=name,
        )
    return manager


def _load_task(name: str, managers: Sequence[TaskManager]) -> ConfigurableTask:
    manager = find_task(name, managers)
    try:
        with seeded(), same_folder():
            loaded: ConfigurableTask = manager.load([name])["tasks"][name]
    except Exception as error:  # the author's YAML, data set and functions can raise anything
        raise TaskError(
            f"task {name!r} could not be loaded ({one_line(error)}): "
            "check its YAML and that its data set is on this machine or can be downloaded",
            task=name,
        ) from error
    return loaded


def _runs_programs(name: str, managers: Sequence[TaskManager]) -> bool:
    """Whether a task says that its metric runs what the model writes; its functions are not loaded for that."""
    file = find_task(name, managers).task_index[name].yaml_path
    if file is None:
        return False
    try:
        said = load_yaml(file, resolve_func=False)
    except Exception:  # loading says what is wrong with it
        return False
    return said.get("unsafe_code", False) is not False


def _check_allowed(name: str, allow_code: bool) -> None:
    if not allow_code:
        raise TaskError(
            f"task {name!r} runs programs that the model writes: set fitness.allow_code: true (--allow-code) to run "
            "them in a sandbox, or use another task",
            task=name,
        )
    try:
        check_sandbox()
    except TaskError as error:
        raise TaskError(f"task {name!r}: {error}", task=name) from None


def _put_into_sandbox(task: ConfigurableTask, name: str) -> None:
    """Have the functions of a task's files that run programs by means of their own run in the sandbox."""
    of_item = task.config.process_results
    own: dict[str, Any] = {"process_results": of_item} if callable(of_item) else dict(task._metric_fn_list)
    own = {key: call for key, call in own.items() if callable(call) and file_of(call) and not loads_code_eval(call)}
    wrong = {metric: 0.0 if better else float("nan") for metric, better in task.higher_is_better().items()}
    try:
        safe = sandboxed(own, lambda key: wrong if key == "process_results" else wrong.get(key, 0.0))
    except TaskError as error:
        raise TaskError(f"task {name!r}: {error}", task=name) from None
    if callable(of_item):
        task.set_config(key="process_results", value=safe.get("process_results", of_item))
    else:
        task._metric_fn_list |= safe


def _check_usable(task: Any, name: str) -> None:
    if not isinstance(task, ConfigurableTask):
        raise TaskError(f"task {name!r} is Python code without a YAML configuration: use a YAML task", task=name)
    if getattr(task, "MULTIMODAL", False):
        raise TaskError(f"task {name!r} needs images or sound: use a text task", task=name)
    if task.OUTPUT_TYPE == "loglikelihood_rolling":
        raise TaskError(f"task {name!r} measures perplexity, which has no score per item: use another task", task=name)
    settings = task.config.generation_kwargs or {}
    if settings.get("do_sample") or settings.get("num_beams", 1) > 1:
        raise TaskError(
            f"task {name!r} samples or searches with beams: set do_sample: false and num_beams: 1 in its "
            "generation_kwargs, so that scores are deterministic",
            task=name,
        )


def _set_fewshot(task: ConfigurableTask, num_fewshot: int | None) -> None:
    """Apply lm-eval's rule: a task that sets 0 keeps 0, other tasks take the user's number; the default is 0."""
    if num_fewshot is not None and task.config.num_fewshot != 0:
        task.set_config(key="num_fewshot", value=num_fewshot)
    elif task.config.num_fewshot is None:
        task.set_config(key="num_fewshot", value=0)


def _bound_filters(task: ConfigurableTask) -> None:
    """Give the patterns of the task's filters a limit of time; lm-eval makes each filter again for every batch."""
    for ensemble in task._filters:
        ensemble.filters = [partial(_bounded, make) for make in ensemble.filters]


def _bounded(make: Callable[[], Filter]) -> Filter:
    made = make()
    pattern = getattr(made, "regex", None)
    if isinstance(pattern, re.Pattern):
        vars(made)["regex"] = BoundedPattern(pattern)
    return made


def _remember_templates(task: ConfigurableTask) -> None:
    """Make the task render each template of a document once; lm-eval renders it again for every metric."""
    for name in ("doc_to_text", "doc_to_target", "doc_to_choice"):
        setattr(task, name, _remembered(getattr(task, name)))


def _remembered(render: Callable[..., Any]) -> Callable[..., Any]:
    cache: dict[int, tuple[Document, Any]] = {}  # by identity; the reference to the document keeps its id unique

    def remembered(doc: Document, template: Any = None) -> Any:
        if template is not None:
            return render(doc, template)
        known = cache.get(id(doc))
        if known is None:
            known = cache[id(doc)] = (doc, render(doc))
        return known[1]

    return remembered


@contextmanager
def quick_and_quiet() -> Iterator[None]:
    """Load without the libraries' progress bars and advice; errors are still raised."""
    logger = logging.getLogger("lm_eval")
    level, bars = logger.level, datasets.is_progress_bar_enabled()
    logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)
        if bars:
            datasets.enable_progress_bars()
