"""Items and the item pool: which items the search may use, and which are held out for the final table.

All choices are made by hashing the item, so they depend on the seed and not on the order of the items.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from fitness.results import TaskError


@dataclass(frozen=True)
class Item:
    """One question of a task.

    Attributes
    ----------
    id
        `task/split/index`, unique.
    task, split, index
        lm-eval's task name, `train`, `validation` or `test` (or `WHOLE_MODEL`), and the position within that split.
    key
        Hash of the question's text (see `prompt_key`); items with the same question share it, even across tasks.
    """

    id: str
    task: str
    split: str
    index: int
    key: str

    @classmethod
    def of(cls, task: str, split: str, index: int, prompt: str) -> Item:
        """Return the item at `index` of a task's split, with the question `prompt`."""
        return cls(f"{task}/{split}/{index}", task, split, index, prompt_key(prompt))


WHOLE_MODEL = "model"
"""In place of a split: the item is the model itself, which a function scores as a whole."""


def is_whole_model(item_id: str) -> bool:
    """Return whether an item stands for a model as a whole: it has one exact score, and no other items beside it."""
    return item_id.rsplit("/", 2)[1] == WHOLE_MODEL


@dataclass(frozen=True)
class ItemText:
    """One item for people.

    Attributes
    ----------
    question
        Without few-shot examples and chat template.
    targets
        The right answers, any of which counts; empty where the task names none.
    choices
        The possible answers of a task that has some; a model's answer is the position of one of them.
    """

    question: str
    targets: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()

    def answer(self, given: str) -> str:
        """Return a model's answer as text: the choice at the position that it is, where there are choices."""
        at = int(given) if self.choices and given.isdecimal() else len(self.choices)
        return self.choices[at] if at < len(self.choices) else given


def task_of(item_id: str) -> str:
    """Return the name of an item's task."""
    return item_id.rsplit("/", 2)[0]


def positions_by_task(item_ids: Iterable[str]) -> dict[str, list[int]]:
    """Task name to the positions of its items; tasks and positions in the order of the items."""
    groups: dict[str, list[int]] = {}
    for position, item in enumerate(item_ids):
        groups.setdefault(task_of(item), []).append(position)
    return groups


def prompt_key(prompt: str) -> str:
    """Return 16 hex digits that are equal for prompts that differ only in white space."""
    return hashlib.sha256(" ".join(prompt.split()).encode()).hexdigest()[:16]


def uniform_hash(seed: int, text: str) -> float:
    """Return a pseudo-random number in [0, 1) that depends only on `seed` and `text`."""
    digest = hashlib.sha256(f"{seed}/{text}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def split_by_hash(items: Iterable[Item], held_out: float, seed: int) -> tuple[tuple[Item, ...], tuple[Item, ...]]:
    """Split items into search items and held-out ones; equal prompts end up on the same side.

    Parameters
    ----------
    held_out
        Expected fraction of held-out items, in (0, 1).
    """
    search: list[Item] = []
    kept: list[Item] = []
    for item in items:
        (kept if uniform_hash(seed, f"held-out/{item.key}") < held_out else search).append(item)
    return tuple(search), tuple(kept)


@dataclass(frozen=True)
class ItemPool:
    """Search and held-out items of every task.

    Attributes
    ----------
    search, held_out
        Task name to its items, in the split's order; never empty.
    dropped
        Task name to the number of held-out items left out because a search item (of any task) has the same prompt.
    dropped_seen
        Task name to the number of those left out because an earlier search has seen their prompt.
    """

    search: Mapping[str, tuple[Item, ...]]
    held_out: Mapping[str, tuple[Item, ...]]
    dropped: Mapping[str, int] = field(default_factory=dict)
    dropped_seen: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def build(
        cls,
        search: Mapping[str, Sequence[Item]],
        held_out: Mapping[str, Sequence[Item]] | float,
        seed: int,
        seen: Collection[str] = frozenset(),
    ) -> ItemPool:
        """Split every task's items.

        Parameters
        ----------
        search
            Task name to the items that the search may use.
        held_out
            The fraction of them to hold out; or task name to other items to hold out, from which items are dropped
            whose prompt a search item of any task has.
        seen
            Keys of prompts that are not held out, because an earlier search has seen them.

        Raises
        ------
        TaskError
            A task has no items left on one side.
        """
        if isinstance(held_out, float):
            halves = {task: split_by_hash(items, held_out, seed) for task, items in search.items()}
            searched = {task: half[0] for task, half in halves.items()}
            kept = {task: half[1] for task, half in halves.items()}
            remedy = "change fitness.held_out or use a task with more items"
        else:
            searched = {task: tuple(items) for task, items in search.items()}
            keys = {item.key for items in searched.values() for item in items}
            kept = {task: tuple(item for item in items if item.key not in keys) for task, items in held_out.items()}
            remedy = "set fitness.held_out to a fraction such as 0.5 or use a task with more items"
        dropped = {} if isinstance(held_out, float) else {task: len(held_out[task]) - len(kept[task]) for task in kept}
        unseen = {task: tuple(item for item in items if item.key not in seen) for task, items in kept.items()}
        for side, pool in (("search", searched), ("held-out", kept)):
            for task, items in pool.items():
                if not items:
                    raise TaskError(f"task {task!r} has no {side} items left after the split: {remedy}", task=task)
        for task, items in unseen.items():
            if not items:
                raise TaskError(
                    f"task {task!r}: the earlier search at which this one begins has seen all of its {len(kept[task])} "
                    "held-out items: use its seed and held_out, hold out another split, or begin without it",
                    task=task,
                )
        dropped_seen = {task: len(items) - len(unseen[task]) for task, items in kept.items()}
        return cls(searched, unseen, dropped, dropped_seen)

    def subset(self, n: int | Literal["all"], seed: int) -> tuple[str, ...]:
        """Return the ids of `n` random search items of each task, or all of them where a task has fewer.

        The seed decides; a smaller subset is part of a larger one. Ids come in the order of the pool.
        """
        chosen: list[str] = []
        for items in self.search.values():
            if n == "all" or n >= len(items):
                chosen += [item.id for item in items]
                continue
            ranked = sorted(items, key=lambda item: uniform_hash(seed, f"subset/{item.id}"))
            inside = {item.id for item in ranked[:n]}
            chosen += [item.id for item in items if item.id in inside]
        return tuple(chosen)

    def listed(self, ids: Collection[str]) -> tuple[str, ...]:
        """Return search items by id, in the order of the pool.

        Raises
        ------
        TaskError
            If one of them is not a search item, or a task has none.
        """
        found = tuple(item.id for items in self.search.values() for item in items if item.id in ids)
        others = sorted(set(ids) - set(found))
        if others:
            where = "held out" if others[0] in self.held_out_ids() else "not a search item"
            raise TaskError(f"item {others[0]!r} is {where} ({len(others)} such): list ids of search items")
        missing = [task for task in self.search if task not in positions_by_task(found)]
        if missing:
            raise TaskError(
                f"task {missing[0]!r} has no item in the list: list at least one of each task", task=missing[0]
            )
        return found

    def held_out_ids(self) -> tuple[str, ...]:
        """Return the ids of all held-out items, task by task."""
        return tuple(item.id for items in self.held_out.values() for item in items)
