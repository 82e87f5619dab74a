"""The tasks of a search with their items; without a tokenizer or a model."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Literal

from fitness.items import Item, ItemPool, ItemText, positions_by_task
from fitness.overlap import Overlaps
from fitness.results import TaskError
from fitness.tasks.code import CodeCheck, allow
from fitness.tasks.config import Split, TaskConfig, TasksConfig
from fitness.tasks.groups import Member, weighed
from fitness.tasks.identity import Requests, TaskIdentity, task_identity
from fitness.tasks.loading import load_tasks, quick_and_quiet
from fitness.tasks.task import LoadedTask


class TaskSuite:
    """The tasks of a search and their pool of items.

    Attributes
    ----------
    pool
        Search and held-out items.
    entries
        The settings of each task; a group's tasks have its settings, and share its weight.
    weights
        Task name to the size of its weight.
    kinds
        Task name to lm-eval's output type: `multiple_choice`, `loglikelihood` or `generate_until`.
    metrics
        Task name to its metric, as lm-eval writes it: `name,filter`.
    apply_chat_template
        Whether prompts are formatted with the tokenizer's chat template.
    """

    def __init__(
        self, tasks: Sequence[LoadedTask], entries: Sequence[TaskConfig], pool: ItemPool, config: TasksConfig
    ) -> None:
        self._tasks = {task.name: task for task in tasks}
        self._items = {
            item.id: item for side in (pool.search, pool.held_out) for items in side.values() for item in items
        }
        self.pool = pool
        self.apply_chat_template = config.apply_chat_template
        self.entries = tuple(entries)
        self.weights: Mapping[str, float] = {task.task: abs(task.weight) for task in entries}
        self.kinds: Mapping[str, str] = {task.name: task.kind for task in tasks}
        self.metrics: Mapping[str, str] = {task.name: f"{task.metric.name},{task.metric.filter}" for task in tasks}

    @classmethod
    def load(
        cls, config: TasksConfig, seed: int, check: CodeCheck = allow, seen: frozenset[str] = frozenset()
    ) -> TaskSuite:
        """Load the tasks and split their items.

        Parameters
        ----------
        config
            The tasks and how to use them.
        seed
            Decides which items are held out if `config.held_out` is a fraction.
        check
            Called with the code of each task that has some, before it runs; what it raises is passed on.
        seen
            Keys of questions that are not held out, because an earlier search has seen them.

        Raises
        ------
        TaskError
            A task, split or metric does not exist or cannot be used; the message says what to change.
        """
        with quick_and_quiet():
            found, tasks = _loaded(config, check)
            search = {
                task.name: task.documents.items(task.documents.search_split(member.entry, config.allow_test_split))
                for member, task in zip(found, tasks, strict=True)
            }
            held_out: dict[str, tuple[Item, ...]] | float
            if isinstance(config.held_out, float):
                held_out = config.held_out
            else:
                held_out = {t.name: t.documents.held_out_items(config.held_out, search[t.name]) for t in tasks}
            pool = ItemPool.build(search, held_out, seed, seen)
            keys = frozenset(
                task.documents.near_key(task.documents.of(item.split)[item.index]) or item.key
                for task in tasks
                for item in pool.held_out[task.name]
            )
            for task in tasks:
                task.prompts.hold_out(keys)
                task.check_scores([*pool.search[task.name], *pool.held_out[task.name]])
                for side in (pool.search, pool.held_out):
                    task.check_right_answers(side[task.name])
            return cls(tasks, weighed(found, _sizes(search)), pool, config)

    @classmethod
    def whole(cls, config: TasksConfig, split: Literal["auto"] | Split = "auto") -> TaskSuite:
        """Load the tasks to score a finished model: all items of one split, none held out.

        Parameters
        ----------
        config
            The tasks; their `search_split` and `config.held_out` are not used.
        split
            Which items; auto: test if the task has one, else validation, as in lm-eval.

        Raises
        ------
        TaskError
            See `load`.
        """
        with quick_and_quiet():
            found, tasks = _loaded(config)
            items = {task.name: task.documents.items(task.documents.final_split(split)) for task in tasks}
            for task in tasks:
                task.check_scores(items[task.name])
                task.check_right_answers(items[task.name])
            return cls(tasks, weighed(found, _sizes(items)), ItemPool(items, {}), config)

    def identity(self, requests: Requests, only: Collection[str] | None = None) -> dict[str, TaskIdentity]:
        """Return, per task, what scores follow from besides the model; scores are comparable where these are equal.

        Parameters
        ----------
        requests
            How an item is asked (`Evaluator.requests`).
        only
            Ids of the items whose prompts are built; None: all.

        Raises
        ------
        TaskError
            A prompt cannot be built.
        """
        return {
            name: task_identity(task, self.pool.search.get(name, ()), self.pool.held_out.get(name, ()), requests, only)
            for name, task in self._tasks.items()
        }

    def overlaps(self) -> Iterator[str]:
        """Yield a sentence for each task whose questions nearly equal others that they must not: see `fitness.overlap`.

        Examples count as far as prompts have been built.
        """
        tasks = self._tasks.items()
        groups = {
            "search items": [one for name, task in tasks for one in task.questions(self.pool.search.get(name, ()))],
            "held-out items": [one for name, task in tasks for one in task.questions(self.pool.held_out.get(name, ()))],
            "few-shot examples": [one for _, task in tasks for one in task.shown_questions()],
        }
        compared = Overlaps(groups)
        for name, other in combinations(("held-out items", "search items", "few-shot examples"), 2):
            found = [groups[name][at].name for at in compared.between(name, other)]
            for task, places in positions_by_task(found).items():
                yield (
                    f"{task}: {len(places)} {name} are nearly equal to {other} (case, punctuation or most phrases), "
                    f"such as {found[places[0]]}"
                )

    def item(self, item_id: str) -> Item:
        """Return the item with this id; TaskError if there is none."""
        try:
            return self._items[item_id]
        except KeyError:
            raise TaskError(f"no item {item_id!r}: take ids from the pool of the same search file") from None

    def texts(self, ids: Iterable[str]) -> dict[str, ItemText]:
        """Return items for people, by id; TaskError if there is no such item."""
        found = {identity: self.item(identity) for identity in ids}
        return {identity: self._tasks[item.task].shown(item) for identity, item in found.items()}

    def vote_obstacle(self, task: str) -> str | None:
        """Return why models cannot vote on a task, as the end of a sentence about its metric; None if they can."""
        return self._tasks[task].scores.vote_obstacle

    def task(self, name: str) -> LoadedTask:
        """Return the loaded task of that name."""
        return self._tasks[name]


def _loaded(config: TasksConfig, check: CodeCheck = allow) -> tuple[list[Member], list[LoadedTask]]:
    loaded = load_tasks(config, check)
    return [member for member, _ in loaded], [LoadedTask(task, member.entry) for member, task in loaded]


def _sizes(items: Mapping[str, Sequence[Item]]) -> dict[str, int]:
    return {task: len(listed) for task, listed in items.items()}
