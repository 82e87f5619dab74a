"""Choosing a task's metric: one with a value for each item, and the filter applied before it."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from typing import SupportsFloat, TypeGuard

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_aggregation
from lm_eval.api.task import ConfigurableTask

from fitness.results import TaskError
from fitness.tasks.documents import Documents
from fitness.tasks.loss_metrics import LOSS_METRICS, NEED_RIGHT_ANSWER, OF_CHOICES, OWN_METRICS
from fitness.tasks.messages import nearest


@dataclass(frozen=True)
class Metric:
    """The metric of a task.

    Attributes
    ----------
    name, filter
        As lm-eval writes them, `name,filter`; the filter of our own metrics is `none`.
    sign
        −1 if lower values are better, so that scores are their negatives; else 1.
    """

    name: str
    filter: str
    sign: float = 1.0

    @property
    def is_loss(self) -> bool:
        """Whether it is a loss of `fitness.tasks.loss_metrics`, whose scores are already negated."""
        return self.name in LOSS_METRICS


def is_number(value: object) -> TypeGuard[SupportsFloat]:
    """Whether a metric's value can be a score."""
    return isinstance(value, (Real, np.bool_))


def choose_metric(task: ConfigurableTask, name: str, documents: Documents, asked: str | None) -> Metric:
    """Return the requested metric, or the task's first usable one with its first filter.

    Parameters
    ----------
    name
        The task's name.
    asked
        `metric` or `metric,filter`; None: choose the first usable one.

    Raises
    ------
    TaskError
        The metric or filter does not exist, the metric has no value for single items, or no metric of the task has.
    """
    if asked in OWN_METRICS:
        _check_own(task, name, asked)
        return Metric(asked, "none")
    filters = [ensemble.name for ensemble in task._filters]
    metric, _, chosen = (asked or "").partition(",")
    metric, chosen = metric.strip(), chosen.strip() or filters[0]
    if chosen not in filters:
        raise TaskError(
            f"task {name!r} has no filter {chosen!r}: name {nearest(chosen, filters)} after the comma of metric",
            task=name,
        )
    known = _written_metrics(task, documents, chosen) or list(task.aggregation())
    obstacles = {each: _obstacle(task, documents, each, named=each == metric) for each in known}
    usable = [each for each, obstacle in obstacles.items() if obstacle is None]
    remedy = _remedy(task, documents, obstacles, usable)
    if metric and metric not in known:
        raise TaskError(
            f"task {name!r} has no metric {metric!r}: did you mean {nearest(metric, usable or known)}? "
            f"It has {', '.join(known)}",
            task=name,
        )
    if metric and obstacles[metric] is not None:
        raise TaskError(f"task {name!r}: metric {metric!r} {obstacles[metric]}: {remedy}", task=name)
    if not usable:
        why = "; ".join(f"{each} {obstacle}" for each, obstacle in obstacles.items())
        raise TaskError(f"task {name!r} has no metric to search with ({why}): {remedy}", task=name)
    metric = metric or usable[0]
    return Metric(metric, chosen, 1.0 if task.higher_is_better().get(metric, True) else -1.0)


def _written_metrics(task: ConfigurableTask, documents: Documents, chosen: str) -> list[str]:
    """Return the metrics that a task which runs programs gives for one: HumanEval's `pass_at_k` gives `pass@1`.

    Empty for other tasks, and where the task's own code fails on an empty answer.
    """
    if not getattr(task, "UNSAFE_CODE", False) or task.OUTPUT_TYPE != "generate_until":
        return []
    doc = documents.of("test" if task.has_test_docs() else "validation")[0]
    tried = Instance("generate_until", doc, ("", {}), 0, resps=[""])
    try:
        next(each for each in task._filters if each.name == chosen).apply([tried])
        given = documents.results(doc, [tried.filtered_resps[chosen]])
    except Exception:
        return []
    return [name for name in given if name in task.aggregation()]


def _remedy(task: ConfigurableTask, documents: Documents, obstacles: dict[str, str | None], usable: list[str]) -> str:
    """Return what to do about a metric that cannot be used: the first way that works."""
    if usable:
        return f"set metric to one of {', '.join(usable)}"
    ways = [each for each in obstacles if _obstacle(task, documents, each, named=True) is None]
    if _has_right_answer(task, documents):
        ways.append("answer_loss")
    return f"set metric to {' or '.join(ways)}" if ways else "use another task"


def _has_right_answer(task: ConfigurableTask, documents: Documents) -> bool:
    """Whether the first document has one right answer, as `answer_loss` needs."""
    if task.OUTPUT_TYPE == "multiple_choice":
        return not task.multiple_target
    try:
        target = task.doc_to_target(documents.of("test" if task.has_test_docs() else "validation")[0])
    except Exception:  # the author's template may fail; then it is no way out
        return False
    return task.OUTPUT_TYPE == "loglikelihood" or (isinstance(target, str) and bool(target.strip()))


def _check_own(task: ConfigurableTask, name: str, metric: str) -> None:
    """Refuse a metric of ours that does not apply to this kind of task."""
    if metric == "answer_length" and task.OUTPUT_TYPE != "generate_until":
        raise TaskError(f"task {name!r} generates no text, which answer_length needs: use answer_loss", task=name)
    if metric in OF_CHOICES and task.OUTPUT_TYPE != "multiple_choice":
        other = "answer_loss" if metric in NEED_RIGHT_ANSWER else "strategy.kind: least_change, or another task"
        raise TaskError(f"task {name!r} has no choices, which {metric} needs: use {other}", task=name)
    if metric in NEED_RIGHT_ANSWER and task.OUTPUT_TYPE == "multiple_choice" and task.multiple_target:
        raise TaskError(
            f"task {name!r} has several right answers, {metric} needs exactly one: use another metric", task=name
        )


def _obstacle(task: ConfigurableTask, documents: Documents, metric: str, named: bool) -> str | None:
    """Return why a metric cannot score single items; None if it can."""
    if task.aggregation()[metric] is not get_aggregation("mean"):
        return "is computed from all items together and has no value for a single item"
    better = task.higher_is_better().get(metric, True)
    if better is None:
        return (
            "does not say whether higher values are better (write higher_is_better: true or false in the task's YAML)"
        )
    if not better and not named:
        return "is better when lower, so it has to be named"
    trial = _trial(task, documents, metric)
    if trial is not None and not is_number(trial):
        return f"gives {type(trial).__name__} instead of a number for an item"
    return None


def _trial(task: ConfigurableTask, documents: Documents, metric: str) -> object | None:
    """Return the metric's value for an arbitrary answer; None if that cannot be known before scoring."""
    split = "test" if task.has_test_docs() else "validation"  # lm-eval requires one of them
    doc = documents.of(split)[0]
    try:
        if task.OUTPUT_TYPE == "generate_until":
            value: object = documents.results(doc, [""]).get(metric)
            return value
        count = len(task.doc_to_choice(doc)) if task.config.doc_to_choice else 1
        count *= 2 if metric == "acc_mutual_info" else 1
        value = documents.results(doc, [(-1.0, False)] * count).get(metric)
        return value
    except Exception:  # the task's own code may fail on such an answer
        return None
