"""What lm-eval's YAML files say about tasks, without their data sets: names, metrics, filters, data sources."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fitness.results import TaskError
from fitness.tasks.config import TaskConfig, TasksConfig
from fitness.tasks.groups import members
from fitness.tasks.loading import find_task, quick_and_quiet, task_managers
from fitness.tasks.loss_metrics import OWN_METRICS
from fitness.tasks.messages import nearest

FILES = ("json", "csv", "parquet", "text", "arrow")
"""Values of `dataset_path` for tasks whose data are files beside the YAML."""


@dataclass(frozen=True)
class TaskDescription:
    """One task of a search, as its YAML describes it.

    Attributes
    ----------
    metric
        `name,filter`, as requested, else the first of each; empty where the YAML leaves them to lm-eval.
    data
        The data set on the hub; None where the data are files.
    """

    name: str
    metric: str
    data: str | None


def names_of_tasks(config: TasksConfig) -> list[str]:
    """Return the names of the tasks that are scored: those of a group in place of the group.

    Raises
    ------
    TaskError
        A group has no tasks, or changes their settings; or a task is named twice.
    """
    with quick_and_quiet():
        return [member.entry.task for member in members(config.tasks, task_managers(config))]


def describe_tasks(config: TasksConfig) -> list[TaskDescription]:
    """Describe the tasks from lm-eval and the search file alone.

    Raises
    ------
    TaskError
        A task, metric or filter does not exist.
    """
    with quick_and_quiet():
        managers = task_managers(config)
        entries = [member.entry for member in members(config.tasks, managers)]
        return [_describe(entry, find_task(entry.task, managers).task_index[entry.task].cfg) for entry in entries]


def _describe(entry: TaskConfig, cfg: Mapping[str, Any] | None) -> TaskDescription:
    said: Mapping[str, Any] = cfg or {}
    metrics = [str(each["metric"]) for each in said.get("metric_list") or ()]
    filters = [str(each["name"]) for each in said.get("filter_list") or ()] or ["none"]
    metric, _, chosen = (entry.metric or ",".join([*metrics[:1], filters[0]][: 2 if metrics else 0])).partition(",")
    if metrics and metric.strip() not in (*metrics, *OWN_METRICS):
        raise TaskError(
            f"task {entry.task!r} has no metric {metric!r}: did you mean {nearest(metric, metrics)}?", task=entry.task
        )
    chosen = chosen.strip() or filters[0]
    if metric not in OWN_METRICS and chosen not in filters:
        raise TaskError(
            f"task {entry.task!r} has no filter {chosen!r}: name {nearest(chosen, filters)} after the comma of metric",
            task=entry.task,
        )
    place, part = said.get("dataset_path"), said.get("dataset_name")
    data = None if place in (None, *FILES) else str(place) if part is None else f"{place} ({part})"
    return TaskDescription(entry.task, f"{metric.strip()},{chosen}" if metric else "", data)
