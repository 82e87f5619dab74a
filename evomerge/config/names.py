"""What the names in a search file stand for: names that the final table takes for itself, and groups of tasks."""

from __future__ import annotations

from collections.abc import Sequence

from evomerge.config.errors import ConfigError
from evomerge.config.search_file import SearchConfig
from evomerge.runs.result import ALL_TASKS, FOUND, START


def check_names(config: SearchConfig) -> None:
    """Refuse names of models that rows of the final table have.

    Raises
    ------
    ConfigError
        If there is one; the table would show one row twice, and another one never.
    """
    for name in (FOUND, START):
        if name in config.models:
            raise ConfigError(f"models.{name}: the final table has a row of its own called {name}; rename the model")


def check_tasks(config: SearchConfig, tasks: Sequence[str] | None = None) -> None:
    """Refuse a strategy that does not suit the tasks, and a task with the name of all.

    Parameters
    ----------
    config
        The search file.
    tasks
        All tasks that are scored. None: they are not opened yet, so a group counts as its tasks by what lm-eval says.

    Raises
    ------
    ConfigError
        If there is one.
    TaskError
        If lm-eval is asked for a group's tasks, and a task is named twice.
    """
    named = [task.task for task in config.fitness.tasks]
    checked = named if tasks is None else tasks
    if ALL_TASKS in checked and len(checked) > 1:
        place = f".{named.index(ALL_TASKS)}.task" if ALL_TASKS in named else ""
        raise ConfigError(
            f"fitness.tasks{place}: the final table calls the mean of all tasks {ALL_TASKS}; rename the task"
        )
    try:
        config.check_tasks(checked)
    except ValueError as error:
        scored = checked
        if tasks is None and config.fitness.kind == "lm_eval":
            from fitness.tasks.offline import names_of_tasks  # imports lm-eval, which own functions do without

            scored = names_of_tasks(config.fitness)
        if scored == checked:
            raise ConfigError(str(error)) from None
        check_tasks(config, scored)
