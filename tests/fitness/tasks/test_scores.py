"""The short cuts give what the tasks' own metrics give."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fitness.results import TaskError
from fitness.scoring.evaluator import Evaluator
from fitness.tasks import templates
from fitness.tasks.loss_metrics import Answers
from fitness.tasks.scores import PLAIN_ACCURACIES
from fitness.tasks.suite import TaskSuite
from tests.fitness.conftest import _documents

RIGHT = {"metric": "right", "aggregation": "mean", "higher_is_better": True}
PLAIN: dict[str, Any] = {"filter_list": None}


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


def test_a_metric_that_changes_its_document_gives_each_candidate_the_same_score(toys: Any) -> None:
    toys.write("toy", "gen", validation=2, test=2, process_results="toy_metrics.changing", metric_list=[RIGHT], **PLAIN)
    suite: TaskSuite = toys.suite("toy")
    task, (item, *_) = suite.task("toy"), suite.pool.held_out["toy"]
    task.requests(item)
    right = task.documents.of("test")[0]["answer"]
    assert [task.scores.of([item], [(text,)]).item() for text in (right, "wrong")] == [1, 0]


@pytest.mark.parametrize(
    ("function", "reason"),
    [("failing", "ZeroDivisionError: division by zero"), ("nothing", "AttributeError: 'NoneType' .*")],
)
def test_a_metric_that_fails_names_its_task_and_item(function: str, reason: str, toys: Any) -> None:
    toys.write(
        "toy", "gen", validation=2, test=2, process_results=f"toy_metrics.{function}", metric_list=[RIGHT], **PLAIN
    )
    suite: TaskSuite = toys.suite("toy")
    task, (_, item) = suite.task("toy"), suite.pool.held_out["toy"]
    task.requests(item)
    with pytest.raises(TaskError, match=rf"'toy': its metric fails on an answer to item 1 of its test .* \({reason}\)"):
        task.scores.of([item], [("ab",)])


@pytest.mark.parametrize(
    ("metric", "kind", "gold"),
    [("acc", "mc", None), ("acc", "mc", 4), ("acc", "mc", -1), ("exact_match", "mc", -1), ("exact_match", "gen", None)],
)
def test_items_without_a_right_answer_are_counted(
    metric: str, kind: str, gold: int | None, toys: Any, tokenizer: Any
) -> None:
    """lm-eval counts them as wrong with a warning, stops at null, and takes −1 for the last choice in `exact_match`."""
    docs = _documents(1, 6)
    for doc in docs[1:3]:
        doc["gold" if kind == "mc" else "answer"] = gold
    toys.write("toy", kind, docs={"validation": docs, "test": docs}, metric_list=[RIGHT | {"metric": metric}], **PLAIN)
    suite: TaskSuite = toys.suite({"task": "toy", "search_split": "validation"}, held_out=0.5)
    scored = Evaluator(suite, tokenizer).score(toys.llama, suite.pool.subset("all", 0) + suite.pool.held_out_ids())
    assert scored.flaws["unscored"] == {"toy": 2}


def test_a_split_without_right_answers_is_refused(toys: Any) -> None:
    """As published test splits are, so that all models would score 0."""
    test = [doc | {"gold": -1} for doc in _documents(2, 2)]
    toys.write("toy", "mc", docs={"validation": _documents(1, 2), "test": test})
    with pytest.raises(TaskError, match=r"'toy'.* none of 2 items of its test split has a right answer"):
        toys.suite("toy")
