"""The items of an own function, split as those of tasks are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from fitness.config import FitnessConfig
from fitness.functions.loading import SEARCHED, FitnessFunction
from fitness.items import WHOLE_MODEL, Item, ItemPool, ItemText
from fitness.results import TaskError
from fitness.tasks.config import TaskConfig
from fitness.tasks.documents import LONGEST_TEXT
from fitness.tasks.identity import NOT_READ, SHORT, ItemsIdentity, TaskIdentity


class FunctionSuite:
    """The scores that a function returns, as tasks with a pool of items; what a search uses of a `TaskSuite`.

    Each score is a task of its own, over the same items. A function without items has one item per score, the model as
    a whole, which is asked in the search and at its end: nothing is held out.

    Parameters
    ----------
    function
        The function with its items.
    config
        Of kind python; its tasks are the names of the scores.
    seed
        Decides which items are held out if `config.held_out` is a fraction.
    seen
        Keys of items that are not held out, because an earlier search has seen them.

    Attributes
    ----------
    pool, entries, weights, kinds, metrics
        As in `TaskSuite`.

    Raises
    ------
    TaskError
        If a split has no items, or none are left.
    """

    apply_chat_template = False

    def __init__(
        self, function: FitnessFunction, config: FitnessConfig, seed: int, seen: frozenset[str] = frozenset()
    ) -> None:
        self.function = function
        self.entries: tuple[TaskConfig, ...] = config.tasks
        self.weights: Mapping[str, float] = {task.task: abs(task.weight) for task in config.tasks}
        self.signs: Mapping[str, float] = {task.task: -1.0 if task.lowered else 1.0 for task in config.tasks}
        self.kinds: Mapping[str, str] = dict.fromkeys(self.weights, "function")
        self.metrics: Mapping[str, str] = {name: name for name in self.weights}
        self.pool = _whole_models(self.weights) if function.items is None else _pool(function, config, seed, seen)
        self._items = {
            item.id: item for side in (self.pool.search, self.pool.held_out) for each in side.values() for item in each
        }

    @property
    def scores_whole_models(self) -> bool:
        """Whether the function scores a model as a whole, so that nothing is held out."""
        return self.function.items is None

    def item(self, item_id: str) -> Item:
        """Return the item with this id; TaskError if there is none."""
        try:
            return self._items[item_id]
        except KeyError:
            raise TaskError(f"no item {item_id!r}: take ids from the pool of the same search file") from None

    def payload(self, item: Item) -> Any:
        """Return what the function gets for an item."""
        assert self.function.items is not None
        return self.function.items[item.split][item.index]

    def texts(self, ids: Iterable[str]) -> dict[str, ItemText]:
        """Return items for people, by id; TaskError if there is no such item."""
        return {identity: ItemText(self._text(self.item(identity))) for identity in ids}

    def _text(self, item: Item) -> str:
        value = self.payload(item)
        return (value if isinstance(value, str) else _json(value))[:LONGEST_TEXT]

    def overlaps(self) -> Iterator[str]:
        """Yield nothing: equal items are on the same side, and whether others are alike only their author knows."""
        return iter(())

    def vote_obstacle(self, task: str) -> str | None:
        """Return why models cannot vote: the function returns scores and no answers."""
        return "comes from a function, which returns no answers"

    def identity(self, requests: object = None, only: Collection[str] | None = None) -> dict[str, TaskIdentity]:
        """Return what the scores follow from besides the model: the function's code and its items.

        `requests` and `only` are there for `TaskSuite.identity`, whose prompts have to be built.
        """
        return {name: self._task_identity(name) for name in self.weights}

    def _task_identity(self, name: str) -> TaskIdentity:
        settings = {
            "output_type": "function",
            "metric": f"{name},none",
            "higher_is_better": json.dumps(self.signs[name] > 0),
            "num_fewshot": "0",
        }
        return TaskIdentity(
            settings=settings,
            code=dict(self.function.code),
            search=self._side(self.pool.search[name]),
            held_out=self._side(self.pool.held_out[name]),
            shown="",
        )

    def _side(self, items: tuple[Item, ...]) -> ItemsIdentity:
        whole = self.scores_whole_models
        documents = [NOT_READ if whole else _hash(self.payload(item)) for item in items]
        not_read = " ".join([NOT_READ] * len(items))
        return ItemsIdentity(
            ids=" ".join(f"{item.split}/{item.index}" for item in items),
            keys=" ".join(item.key for item in items),
            documents=" ".join(document[:SHORT] for document in documents),
            answers=not_read,
            prompts=not_read,
            digest=hashlib.sha256(" ".join(documents).encode()).hexdigest(),
        )


def _whole_models(names: Collection[str]) -> ItemPool:
    items = {name: (Item.of(name, WHOLE_MODEL, 0, f"the model as a whole, {name}"),) for name in names}
    return ItemPool(items, items)


def _pool(function: FitnessFunction, config: FitnessConfig, seed: int, seen: frozenset[str]) -> ItemPool:
    search = {task.task: _of_split(function, task, _searched(task)) for task in config.tasks}
    if isinstance(config.held_out, float):
        return ItemPool.build(search, config.held_out, seed, seen)
    other = config.held_out
    if any(_searched(task) == other for task in config.tasks):
        raise TaskError(f"fitness.held_out: {other} is the split that is searched; write a share such as 0.5")
    return ItemPool.build(search, {task.task: _of_split(function, task, other) for task in config.tasks}, seed, seen)


def _searched(task: TaskConfig) -> str:
    return SEARCHED if task.search_split == "auto" else task.search_split


def _of_split(function: FitnessFunction, task: TaskConfig, split: str) -> tuple[Item, ...]:
    assert function.items is not None
    if split not in function.items:
        raise TaskError(
            f"fitness.function_items: there is no split {split}; the items have {', '.join(function.items)}"
        )
    return tuple(Item.of(task.task, split, at, _json(each)) for at, each in enumerate(function.items[split]))


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _hash(value: Any) -> str:
    return hashlib.sha256(_json(value).encode()).hexdigest()
