"""Calibration texts of a search file: tasks in their place, and that they hold nothing that is held out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from evomerge.config.errors import ConfigError
from evomerge.files.atomic import atomic_file
from evomerge.files.cache import ELSEWHERE, cache_folder
from fitness.overlap import check_apart
from search_spaces.recipes.errors import did_you_mean
from search_spaces.spaces.coefficient_config import TASK
from search_spaces.spaces.registry import SpaceSettings

if TYPE_CHECKING:
    from fitness.functions.opening import Suite

PLACE = "space.calibration_text"


def asks_for_tasks(space: SpaceSettings) -> bool:
    """Return whether a text of the space's settings is that of a task's items."""
    return any(text.startswith(TASK) for text in _texts(space))


def with_task_texts(space: Any, suite: Suite) -> Any:
    """Return a space's settings with a file in place of each task: its search items with their answers.

    The file is in the cache, named by its contents, and is written again whenever the search file is opened.

    Raises
    ------
    ConfigError
        If the search file has no such task.
    FileError
        If the cache cannot be written.
    """
    return _changed(space, lambda text: _written(text.removeprefix(TASK), suite) if text.startswith(TASK) else text)


def check_texts(space: SpaceSettings, suite: Suite) -> None:
    """Check that no calibration text holds a question that is held out.

    Raises
    ------
    TaskError
        If one does.
    """
    files = [text for text in dict.fromkeys(_texts(space)) if Path(text).is_file()]
    if files:  # measuring says what is wrong with other names
        contents = {file: _content(Path(file)) for file in files}
        shown = suite.texts(suite.pool.held_out_ids())
        check_apart(PLACE, contents, {item: text.question for item, text in shown.items()})


def _content(file: Path) -> str:
    """Return a text; of a JSONL file, its documents without JSON's marks, where a line has any."""
    text = file.read_text(encoding="utf-8-sig", errors="replace")
    if file.suffix != ".jsonl":
        return text
    with suppress(ValueError):
        lines = [json.loads(line) for line in text.split("\n") if line.strip()]
        return "\n".join(str(line.get("text")) if isinstance(line, dict) else str(line) for line in lines)
    return text


def _texts(space: SpaceSettings) -> tuple[str, ...]:
    """Return all calibration texts, also those of a space within the settings."""
    found: list[str] = []

    def note(text: str) -> str:
        found.append(text)
        return text

    _changed(space, note)
    return tuple(found)


def _changed(space: Any, change: Callable[[str], str]) -> Any:
    """Return settings with `change` applied to each calibration text, also those of a space within them."""
    update: dict[str, Any] = {}
    text, inner = getattr(space, "calibration_text", None), getattr(space, "parameters", None)
    if isinstance(text, str):
        update["calibration_text"] = change(text)
    elif isinstance(text, Mapping):
        update["calibration_text"] = {name: change(file) for name, file in text.items()}
    if isinstance(inner, BaseModel):
        update["parameters"] = _changed(inner, change)
    return space.model_copy(update=update) if update else space


def _written(task: str, suite: Suite) -> str:
    items = suite.pool.search.get(task)
    if items is None:
        raise ConfigError(f"{PLACE}: the search file has no task {task}; {did_you_mean(task, suite.pool.search)}")
    shown = suite.texts(item.id for item in items)
    lines = (" ".join((each.question, *each.targets[:1])) for each in shown.values())
    text = "".join(f"{json.dumps({'text': line}, ensure_ascii=False)}\n" for line in lines)
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    file = cache_folder("texts") / f"{task.replace('/', '-')}-{digest}.jsonl"
    if not file.is_file():
        with atomic_file(file, parents=True, elsewhere=ELSEWHERE) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return str(file)
