"""Errors of the rooms that open models, tasks and devices, begun with the key of the search file that names these."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from evomerge.config.errors import named_first
from evomerge.config.search_file import SearchConfig
from fitness.config import FitnessConfig
from fitness.results import TaskError

_TASK = re.compile(r"(?:no |group )?(?:task )?'([^']+)'|(?:no )?task \"([^\"]+)\"")
"""How errors about a task, or a group of tasks, begin."""
_DEVICE = "device "
"""How an error about a torch device begins; also one that the command line names."""


@contextmanager
def keyed(config: SearchConfig) -> Iterator[None]:
    """Begin errors about what a search file names with its key, such as `fitness.tasks.0.task: ...`."""
    try:
        yield
    except ValueError as error:
        text = str(error)
        if not named_first(text, SearchConfig):
            said = _about_tasks(error, config) if isinstance(error, TaskError) else _about(text, config)
            error.args = error.args if said == text else (said,)
        raise


def _about(text: str, config: SearchConfig) -> str:
    """Return an error that begins with a model's name or its folder, or a device, with its key; others as they are."""
    if text.startswith(_DEVICE):
        return f"workers.device: {text}"
    for name, reference in config.models.items():
        if text.startswith(f"{name}: "):
            return f"models.{text}"
        if text.startswith((f"{reference}: ", f"{reference}/")):
            return f"models.{name}: {text}"
    return text


def _about_tasks(error: TaskError, config: SearchConfig) -> str:
    """Return an error about a task, or all tasks, with the key; one that begins with a key of `fitness` lacks that."""
    text = str(error)
    if type(error) is not TaskError:  # it says what the engine does
        return f"fitness.engine: {text}"
    if text.partition(": ")[0] in FitnessConfig.model_fields:
        return f"fitness.{text}"
    found = _TASK.match(text)
    names = [task.task for task in config.fitness.tasks]
    name = (found[1] or found[2]) if found else None
    return f"fitness.tasks.{names.index(name)}.task: {text}" if name in names else f"fitness.tasks: {text}"
