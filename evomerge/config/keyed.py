"""Errors of the rooms that open models, tasks and devices, begun with the key of the search file that names these."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from evomerge.config.errors import named_first
from evomerge.config.search_file import SearchConfig
from evomerge.merging.engine.placement import DeviceError
from fitness.results import TaskError


@contextmanager
def keyed(config: SearchConfig) -> Iterator[None]:
    """Begin errors about what a search file names with its key, such as `fitness.tasks.0.task: ...`."""
    try:
        yield
    except ValueError as error:
        text = str(error)
        if not named_first(text, SearchConfig):
            said = _said(error, text, config)
            error.args = error.args if said == text else (said,)
        raise


def _said(error: ValueError, text: str, config: SearchConfig) -> str:
    """Return an error's text after the key of what it is about; unchanged where no key of the file names it."""
    if isinstance(error, TaskError):
        names = [task.task for task in config.fitness.tasks]
        place = f".{names.index(error.task)}.task" if error.task in names else ""
        return f"fitness.{error.key}{place}: {text}"
    if isinstance(error, DeviceError):
        return f"workers.device: {text}"
    # Errors about a model begin with its name, its reference or one of its files.
    for name, reference in config.models.items():
        if text.startswith(f"{name}: "):
            return f"models.{text}"
        if text.startswith((f"{reference}: ", f"{reference}/")):
            return f"models.{name}: {text}"
    return text
