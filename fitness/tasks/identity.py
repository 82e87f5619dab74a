"""What the numbers of an item set follow from: prompts, answers, documents, settings and code of its tasks.

Scores of two sessions are comparable if the identities of their tasks are equal. Each item has short hashes of its own,
so that a difference can be named; a hash over all of them decides.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict

from fitness.items import Item
from fitness.tasks.code import file_hashes, functions_in

if TYPE_CHECKING:
    from fitness.tasks.prompts import Request
    from fitness.tasks.task import LoadedTask

SHORT = 8
"""Hexadecimal digits of an item's own hashes."""
NOT_READ = "-"
"""In place of an item's hashes where its prompt was not built."""
LONGEST_VALUE = 60
"""Characters of a setting that a message quotes."""

Side = Literal["search", "held_out"]
Requests: TypeAlias = "Callable[[Item], Sequence[Request]]"
"""Returns an item's requests as they are asked, with the chat template where one is used."""

_MEANINGS = {
    "documents": "the document",
    "answers": "the right answer, the choices or the stop strings",
    "prompts": "the prompt",
}


class _Identity(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class ItemsIdentity(_Identity):
    """The items of one task on one side, each field one word per item.

    Attributes
    ----------
    ids
        `split/index`.
    keys
        Keys of the questions (`Item.key`).
    documents, answers, prompts
        Short hashes.
    digest
        SHA-256 over all of it and the full hashes.
    """

    ids: str
    keys: str
    documents: str
    answers: str
    prompts: str
    digest: str


class TaskIdentity(_Identity):
    """Everything besides the model and the packages that a task's scores follow from.

    Attributes
    ----------
    settings
        Metric, filter, generation settings and the like, as JSON.
    code
        Hashes of the files of its functions, by name.
    search, held_out
        Its items.
    shown
        Keys of the documents that prompts show as examples.
    """

    settings: dict[str, str]
    code: dict[str, str]
    search: ItemsIdentity
    held_out: ItemsIdentity
    shown: str

    @property
    def seen(self) -> frozenset[str]:
        """Keys of all questions that a search on this task reads: those it asks, and examples in their prompts."""
        return frozenset((*self.search.keys.split(), *self.shown.split()))


def task_identity(
    task: LoadedTask,
    search: Sequence[Item],
    held_out: Sequence[Item],
    requests: Requests,
    only: Collection[str] | None = None,
) -> TaskIdentity:
    """Return the identity of a loaded task.

    Parameters
    ----------
    task
        The task.
    search, held_out
        Its items on both sides.
    requests
        How its items are asked.
    only
        Ids of the items whose prompts are built; None: all. The others are compared by their ids alone.
    """
    sides = [_items(task, items, requests, only) for items in (search, held_out)]
    return TaskIdentity(
        settings=_settings(task, (*search, *held_out), requests, only),
        code=file_hashes(functions_in([_config(task), task.documents.task._metric_fn_list])),
        search=sides[0],
        held_out=sides[1],
        shown=" ".join(sorted(task.prompts.shown)),
    )


def difference(
    recorded: Mapping[str, TaskIdentity],
    found: Mapping[str, TaskIdentity],
    *,
    sides: Sequence[Side] = ("search", "held_out"),
    prompts: bool = True,
) -> str | None:
    """Return what differs first, as the end of a sentence; None where scores are comparable.

    Parameters
    ----------
    recorded, found
        Task name to identity, before and now.
    sides
        Which items to compare.
    prompts
        Whether to compare prompts as they are asked, chat template included.
    """
    for name, before in recorded.items():
        if name not in found:
            return f"task {name} is gone"
        now = found[name]
        said = _other_code(before, now) or _other_setting(before, now)
        for side in sides:
            said = said or _other_items(getattr(before, side), getattr(now, side), side, name, prompts)
        if said is not None:
            return f"task {name}: {said}"
    return None


def _other_code(before: TaskIdentity, now: TaskIdentity) -> str | None:
    for file in (*before.code, *now.code):
        if before.code.get(file) != now.code.get(file):
            what = "is new" if file not in before.code else "is gone" if file not in now.code else "has changed"
            return f"its code {file} {what}"
    return None


def _other_setting(before: TaskIdentity, now: TaskIdentity) -> str | None:
    for key in (*before.settings, *now.settings):
        old, new = before.settings.get(key), now.settings.get(key)
        if old != new:
            return f"its {key} has changed from {_quoted(old)} to {_quoted(new)}"
    return None


def _quoted(value: str | None) -> str:
    text = "nothing" if value is None else value
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}..."


def _other_items(before: ItemsIdentity, now: ItemsIdentity, side: Side, task: str, prompts: bool) -> str | None:
    called = side.replace("_", "-")
    ids, new_ids = before.ids.split(), now.ids.split()
    if ids != new_ids:
        at = next(
            (at for at, (a, b) in enumerate(zip(ids, new_ids, strict=False)) if a != b), min(len(ids), len(new_ids))
        )
        first = (ids if at < len(ids) else new_ids)[at]
        counts = f"{len(ids)} before, {len(new_ids)} now"
        return f"its {called} items have changed ({counts}; the first different one is {task}/{first})"
    for field, meaning in _MEANINGS.items():
        if field == "prompts" and not prompts:
            continue
        for identity, a, b in zip(ids, getattr(before, field).split(), getattr(now, field).split(), strict=False):
            if a != b and NOT_READ not in (a, b):
                return f"{meaning} of {called} item {task}/{identity} has changed"
    whole = NOT_READ not in before.prompts.split() and NOT_READ not in now.prompts.split()
    if whole and prompts and before.digest != now.digest:
        return f"its {called} items have changed"
    return None


def _items(task: LoadedTask, items: Sequence[Item], requests: Requests, only: Collection[str] | None) -> ItemsIdentity:
    hashed = hashlib.sha256()
    columns: dict[str, list[str]] = {field: [] for field in _MEANINGS}
    for item in items:
        read = only is None or item.id in only
        hashes = _hashes(task, item, requests) if read else dict.fromkeys(_MEANINGS, NOT_READ)
        hashed.update(f"{item.id} {item.key} {hashes}".encode())
        for field, value in hashes.items():
            columns[field].append(value[:SHORT])
    return ItemsIdentity(
        ids=" ".join(f"{item.split}/{item.index}" for item in items),
        keys=" ".join(item.key for item in items),
        digest=hashed.hexdigest(),
        **{field: " ".join(words) for field, words in columns.items()},
    )


def _hashes(task: LoadedTask, item: Item, requests: Requests) -> dict[str, str]:
    asked = requests(item)
    document = task.documents.of(item.split)[item.index]
    answers = [[each.continuation, dict(each.generation), each.repeats] for each in asked]
    return {
        "documents": _hash(document),
        "answers": _hash([answers, task.documents.targets(document)]),
        "prompts": _hash([each.context for each in asked]),
    }


def _hash(value: Any) -> str:
    return hashlib.sha256(_json(value).encode()).hexdigest()


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=_plain)


def _plain(value: Any) -> Any:
    """Return a value that JSON has no word for; a function by its name, its code being compared apart."""
    if is_dataclass(value) and not isinstance(value, type):
        return {each.name: getattr(value, each.name) for each in fields(value)}
    if callable(value):
        return f"{getattr(value, '__module__', '').rpartition('/')[2]}.{getattr(value, '__qualname__', value)}"
    return str(value)


def _config(task: LoadedTask) -> dict[str, Any]:
    config = task.documents.task.config
    return {each.name: getattr(config, each.name) for each in fields(config)}


def _settings(
    task: LoadedTask, items: Sequence[Item], requests: Requests, only: Collection[str] | None
) -> dict[str, str]:
    config = _config(task)
    first = next((item for item in items if only is None or item.id in only), None)
    settings = {
        "output_type": task.kind,
        "metric": f"{task.metric.name},{task.metric.filter}",
        "metric_list": config["metric_list"],
        "higher_is_better": task.metric.sign > 0,
        "filter_list": config["filter_list"],
        "process_results": config["process_results"],
        "generation_kwargs": [] if first is None else [dict(each.generation) for each in requests(first)][:1],
        "num_fewshot": task.prompts.shots,
    }
    return {key: value if isinstance(value, str) else _json(value) for key, value in settings.items()}
