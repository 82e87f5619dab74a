"""Groups and tags of lm-eval's tasks: what a search file names by one name, and the weight of each task in it.

A group's score is the mean over the items of all its tasks (`weight_by_size`), or the mean of the tasks' scores where
its YAML says so; a tag is only a list, whose tasks count the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lm_eval.tasks import TaskManager
from lm_eval.tasks._index import Entry, Kind

from fitness.results import TaskError
from fitness.tasks.config import TaskConfig

_NAMES_ONLY = {"task", "group"}


@dataclass(frozen=True)
class Member:
    """One task of a search, with the settings of the entry that names it or its group.

    Attributes
    ----------
    entry
        The settings, with the task's own name and the entry's weight.
    group
        What the search file names; None for a task named itself.
    by_size
        Whether the group's weight is shared in proportion to the numbers of items; else in equal parts.
    """

    entry: TaskConfig
    group: str | None = None
    by_size: bool = False


def members(entries: Sequence[TaskConfig], managers: Sequence[TaskManager]) -> tuple[Member, ...]:
    """Return every task that the entries name, groups and tags replaced by their tasks.

    Raises
    ------
    TaskError
        If a task is named twice, or a group changes the settings of its tasks.
    """
    found = [member for entry in entries for member in _members(entry, managers)]
    owners: dict[str, str] = {}
    for member in found:
        name = member.entry.task
        if name in owners:
            places = " and ".join(f"in {place!r}" for place in (owners[name], member.group or name))
            raise TaskError(f"task {name!r} is named twice, {places}: remove one of them", task=name)
        owners[name] = member.group or name
    return tuple(found)


def weighed(found: Sequence[Member], sizes: Mapping[str, int]) -> tuple[TaskConfig, ...]:
    """Return the tasks' entries with their weights; those of a group add up to the group's.

    Parameters
    ----------
    found
        The tasks, as `members` returns them.
    sizes
        Number of items by task.
    """
    totals: dict[str, int] = {}
    for member in found:
        if member.group is not None:
            totals[member.group] = totals.get(member.group, 0) + (sizes[member.entry.task] if member.by_size else 1)
    return tuple(_weighed(member, totals, sizes) for member in found)


def _weighed(member: Member, totals: Mapping[str, int], sizes: Mapping[str, int]) -> TaskConfig:
    if member.group is None:
        return member.entry
    part = sizes[member.entry.task] if member.by_size else 1
    return member.entry.model_copy(update={"weight": member.entry.weight * part / totals[member.group]})


def _members(entry: TaskConfig, managers: Sequence[TaskManager]) -> Iterator[Member]:
    known = _indexed(entry.task, managers)
    if known is None or known.kind not in (Kind.GROUP, Kind.TAG):
        yield Member(entry)
        return
    aggregated = _aggregated(known)
    metric = entry.metric or _metric(aggregated)
    by_size = known.kind is Kind.GROUP and bool(aggregated.get("weight_by_size", True))
    names = list(dict.fromkeys(_tasks(known, managers, ())))
    if not names:
        raise TaskError(f"{entry.task!r} is a group without tasks: name tasks", task=entry.task)
    for name in names:
        yield Member(entry.model_copy(update={"task": name, "metric": metric}), entry.task, by_size)


def _tasks(known: Entry, managers: Sequence[TaskManager], above: tuple[str, ...]) -> Iterator[str]:
    """Yield the names of a group's tasks, those of groups in it included."""
    if known.name in above:
        raise TaskError(f"group {known.name!r} contains itself: correct its YAML", task=known.name)
    children: Any = sorted(known.tags) if known.kind is Kind.TAG else (known.cfg or {}).get("task") or []
    for child in [children] if isinstance(children, (str, dict)) else children:
        name = child.get("task") or child.get("group") if isinstance(child, dict) else child
        if not isinstance(name, str) or (isinstance(child, dict) and set(child) - _NAMES_ONLY):
            raise TaskError(
                f"group {known.name!r} changes settings of its tasks in its own YAML: name the tasks one by one, with "
                "their own files",
                task=known.name,
            )
        inner = _indexed(name, managers)
        if inner is not None and inner.kind in (Kind.GROUP, Kind.TAG):
            yield from _tasks(inner, managers, (*above, known.name))
        else:
            yield name


def _indexed(name: str, managers: Sequence[TaskManager]) -> Entry | None:
    return next((manager.task_index[name] for manager in managers if name in manager.task_index), None)


def _aggregated(known: Entry) -> Mapping[str, Any]:
    """Return what a group says about its first aggregated metric; empty if nothing."""
    listed = (known.cfg or {}).get("aggregate_metric_list") or []
    first = listed if isinstance(listed, dict) else next(iter(listed), {})
    return first if isinstance(first, dict) else {}


def _metric(aggregated: Mapping[str, Any]) -> str | None:
    """Return a group's metric as a search file names it, with the filter if the group names one."""
    name, filters = aggregated.get("metric"), aggregated.get("filter_list")
    if name is None:
        return None
    first = filters if isinstance(filters, str) else next(iter(filters or ()), None)
    return str(name) if first is None else f"{name},{first}"
