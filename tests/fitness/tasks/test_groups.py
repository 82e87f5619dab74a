"""Groups and tags of tasks: what they stand for, and the weight of each task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from fitness.results import TaskError
from fitness.tasks.offline import describe_tasks


def group(folder: Path, name: str, tasks: object, **aggregate: Any) -> None:
    said = {"aggregate_metric_list": [{"metric": "acc", "aggregation": "mean", **aggregate}]} if aggregate else {}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump({"group": name, "task": tasks} | said))


@pytest.fixture
def three(toys: Any) -> Any:
    """Three tasks of 10, 20 and 30 search items; two have a tag."""
    for name, count, more in (("a", 10, {"tag": "even"}), ("b", 20, {"tag": ["even", "other"]}), ("c", 30, {})):
        toys.write(name, "mc", validation=count, test=5, **more)
    return toys


@pytest.mark.parametrize(
    ("aggregate", "shares"),
    [
        ({}, (1 / 6, 1 / 3, 1 / 2)),  # lm-eval's default
        ({"weight_by_size": True}, (1 / 6, 1 / 3, 1 / 2)),
        ({"weight_by_size": False}, (1 / 3, 1 / 3, 1 / 3)),
    ],
)
def test_a_group_shares_its_weight(three: Any, aggregate: dict[str, Any], shares: tuple[float, ...]) -> None:
    group(three.folder, "all_of_them", ["a", "b", "c"], **aggregate)
    suite = three.suite({"task": "all_of_them", "weight": 3.0})
    assert suite.weights == pytest.approx(dict(zip("abc", (3 * share for share in shares), strict=True)))
    assert set(suite.pool.search) == {"a", "b", "c"}


def test_settings_of_the_entry_are_those_of_its_tasks(three: Any) -> None:
    group(three.folder, "pair", ["a", "b"], filter_list="none")
    config = three.config({"task": "pair", "weight": -1.0, "min_share_of_best_source": 0.9}, "c")
    suite = three.suite({"task": "pair", "weight": -1.0, "min_share_of_best_source": 0.9}, "c")
    assert [(e.task, e.metric, e.min_share_of_best_source) for e in suite.entries[:2]] == [
        ("a", "acc,none", 0.9),
        ("b", "acc,none", 0.9),
    ]
    assert suite.weights == pytest.approx({"a": 1 / 3, "b": 2 / 3, "c": 1.0})
    assert [task.name for task in describe_tasks(config)] == ["a", "b", "c"]
    named = three.suite({"task": "pair", "metric": "acc_norm"})
    assert set(named.metrics.values()) == {"acc_norm,none"}


def test_a_tag_counts_its_tasks_alike(three: Any) -> None:
    assert three.suite("even").weights == {"a": 0.5, "b": 0.5}


def test_groups_in_groups(three: Any) -> None:
    group(three.folder, "inner", ["a", "b"])
    group(three.folder, "outer", ["inner", "c"])
    assert three.suite("outer").weights == pytest.approx({"a": 1 / 6, "b": 1 / 3, "c": 1 / 2})


def test_refused(three: Any) -> None:
    group(three.folder, "pair", ["a", "b"])
    with pytest.raises(TaskError, match="task 'a' is named twice, in 'pair' and in 'a': remove one"):
        three.suite("pair", "a")
    group(three.folder, "changed", [{"task": "a", "num_fewshot": 3}])
    with pytest.raises(TaskError, match="group 'changed' changes settings of its tasks"):
        three.suite("changed")
    group(three.folder, "circle", ["circle"])
    with pytest.raises(TaskError, match="group 'circle' contains itself"):
        three.suite("circle")
