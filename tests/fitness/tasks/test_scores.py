"""The short cuts give what the tasks' own metrics give."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fitness.results import TaskError
from fitness.tasks import templates
from fitness.tasks.loss_metrics import Answers
from fitness.tasks.scores import PLAIN_ACCURACIES
from fitness.tasks.suite import TaskSuite


@pytest.mark.parametrize("name", PLAIN_ACCURACIES)
@pytest.mark.parametrize("kind", ["mc", "mc_several"])
def test_plain_accuracy_equals_the_tasks_own_metric(name: str, kind: str, toys: Any) -> None:
    toys.write(
        "toy",
        kind,
        validation=5,
        test=60,
        metric_list=[{"metric": name, "aggregation": "mean", "higher_is_better": True}],
    )
    suite: TaskSuite = toys.suite("toy")
    task, items = suite.task("toy"), suite.pool.held_out["toy"]
    for item in items:
        task.requests(item)
    first = list(range(0, 4 * len(items), 4))
    assert task.scores._is_plain_accuracy()
    rng = np.random.default_rng(0)
    values = np.append(np.round(rng.normal(-5, 1, 4 * len(items)), 1), -np.inf)  # rounded: some choices tie
    answers = Answers(values, np.zeros(values.size - 1, np.bool_), [None] * (values.size - 1))
    slow = task.scores.of(items, [answers.responses(at, 4) for at in first])
    fast = task.scorer(items, first)(answers)
    assert fast.tolist() == slow.tolist()
    assert 0 < fast.mean() < 1


def test_the_patterns_of_filters_have_a_limit_of_time(toys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model's answer may be what a task's pattern takes years for; everything else is lm-eval's filter."""
    slow = [{"function": "regex", "regex_pattern": "(a|aa)+$"}, {"function": "take_first"}]
    toys.write("toy", "gen", validation=5, test=5, filter_list=[{"name": "slow", "filter": slow}])
    suite: TaskSuite = toys.suite("toy")
    task, (item, *_) = suite.task("toy"), suite.pool.held_out["toy"]
    task.requests(item)
    assert task.scores.of([item], [("a" * 20,)]).tolist() == [0.0]
    monkeypatch.setattr(templates, "MOST_SECONDS", 0.2)
    with pytest.raises(TaskError, match=r"task 'toy': the filter's pattern .* takes longer than 0.1 s on an answer"):
        task.scores.of([item], [("a" * 60 + "!",)])
