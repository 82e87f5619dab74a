"""Which metrics can be searched with."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fitness.results import TaskError
from fitness.scoring.evaluator import Evaluator


def test_unknown_metrics_and_filters_name_the_nearest(toys: Any) -> None:
    toys.write("toy", "mc", validation=10, test=10)
    toys.write("gen", "gen", validation=10, test=10)
    with pytest.raises(TaskError, match=r"no metric 'acc_nrm': did you mean 'acc_norm'.* It has acc, acc_norm"):
        toys.suite({"task": "toy", "metric": "acc_nrm"})
    with pytest.raises(TaskError, match="no filter 'wole': name 'whole' after the comma of metric"):
        toys.suite({"task": "gen", "metric": "exact_match,wole"})


def metric(name: str, aggregation: str = "mean", higher_is_better: bool = True) -> dict[str, Any]:
    return {"metric": name, "aggregation": aggregation, "higher_is_better": higher_is_better}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (metric("f1", "f1"), "metric 'f1' is computed from all items together .*: set metric to one of acc"),
        (metric("brier_score", "brier_score", False), "'brier_score' is computed from all items together"),
        (metric("likelihood"), "'likelihood' gives tuple instead of a number"),
    ],
)
def test_metrics_that_are_no_score_per_item(given: dict[str, Any], message: str, toys: Any) -> None:
    toys.write("toy", "mc", validation=10, test=10, metric_list=[given, metric("acc")])
    with pytest.raises(TaskError, match=f"task 'toy': metric {message}" if "metric" not in message else message):
        toys.suite({"task": "toy", "metric": given["metric"]})
    assert toys.suite("toy").metrics == {"toy": "acc,none"}  # the first that can be used


def test_a_metric_that_does_not_say_which_values_are_better(toys: Any) -> None:
    """lm-eval knows that of its own metrics; one of the task's code would be taken for a loss."""
    given = [{"metric": "length", "aggregation": "mean"}]
    toys.write("toy", "gen_length", validation=10, test=10, metric_list=given)
    for entry in ("toy", {"task": "toy", "metric": "length"}):
        with pytest.raises(TaskError, match=r"does not say whether higher values are better \(write higher_is_better"):
            toys.suite(entry)


def test_a_metric_that_is_better_when_lower_has_to_be_named(toys: Any, tokenizer: Any, llama: Any) -> None:
    given = [metric("acc_norm", higher_is_better=False), metric("acc")]
    toys.write("toy", "mc", validation=10, test=10, metric_list=given)
    assert toys.suite("toy").metrics == {"toy": "acc,none"}
    toys.write("up", "mc", validation=10, test=10, metric_list=[metric("acc_norm")])
    scores = []
    for suite in (toys.suite({"task": "toy", "metric": "acc_norm"}), toys.suite("up")):
        items = suite.pool.subset("all", 0)
        scores.append(Evaluator(suite, tokenizer).score(llama, items).scores)
    assert np.array_equal(scores[0], -scores[1]) and scores[1].any()


def test_a_negative_weight_turns_scores_over(toys: Any, tokenizer: Any, llama: Any) -> None:
    """Whatever the metric: one that is better when lower is negated once, not twice."""
    toys.write("up", "mc", validation=10, test=10, metric_list=[metric("acc_norm")])
    toys.write("down", "mc", validation=10, test=10, metric_list=[metric("acc_norm", higher_is_better=False)])
    found = {}
    for name, weight in (("up", 2.0), ("up", -2.0), ("down", 2.0), ("down", -2.0)):
        suite = toys.suite({"task": name, "weight": weight, "metric": "acc_norm"})
        assert suite.weights == {name: 2.0}
        found[name, weight] = Evaluator(suite, tokenizer).score(llama, suite.pool.subset("all", 0)).scores
    assert np.array_equal(found["up", 2.0], -found["up", -2.0]) and found["up", 2.0].any()
    assert np.array_equal(found["down", 2.0], found["down", -2.0])
    assert np.array_equal(found["down", 2.0], found["up", -2.0])
    objectives = toys.config({"task": "up", "weight": -3}, {"task": "down", "weight": 1}).objectives_for()
    assert objectives.weights == {"up": 3, "down": 1}


def test_a_task_without_a_usable_metric(toys: Any) -> None:
    toys.write("toy", "mc", validation=10, test=10, metric_list=[metric("f1", "f1"), metric("likelihood")])
    with pytest.raises(TaskError, match=r"'toy' has no metric to search with \(f1 is .*\): set metric to answer_loss$"):
        toys.suite("toy")
    assert toys.suite({"task": "toy", "metric": "answer_loss"}).metrics == {"toy": "answer_loss,none"}


def test_the_advice_about_metrics_works(toys: Any) -> None:
    given = metric("acc_norm", higher_is_better=False)
    toys.write("toy", "mc", validation=10, test=10, metric_list=[given])
    with pytest.raises(TaskError, match=r"has to be named\): set metric to acc_norm or answer_loss$"):
        toys.suite("toy")
    assert toys.suite({"task": "toy", "metric": "acc_norm"}).metrics == {"toy": "acc_norm,none"}


def test_loglikelihood_tasks_take_their_accuracy(toys: Any) -> None:
    toys.write("toy", "ll", validation=10, test=10)
    assert toys.suite("toy").metrics == {"toy": "acc,none"}  # perplexity comes first, but has no value per item


def test_custom_metrics_that_are_not_numbers(toys: Any) -> None:
    keys = {"process_results": "toy_metrics.both", "metric_list": [metric("label"), metric("margin")]}
    toys.write("toy", "mc", validation=10, test=10, doc_to_choice=["w1", "w2"], doc_to_target=0, **keys)
    assert toys.suite("toy").metrics == {"toy": "margin,none"}
    with pytest.raises(TaskError, match="'label' gives str instead of a number for an item: set metric to one of"):
        toys.suite({"task": "toy", "metric": "label"})


def test_a_metric_that_some_documents_lack_is_found_out_before(toys: Any) -> None:
    given = [metric("some"), metric("length")]
    toys.write("toy", "gen_length", validation=10, test=10, metric_list=given, process_results="toy_metrics.some")
    lacking = r"metric 'some' has no value for \d+ of 20 items, such as item \d+ of its validation split: use another"
    with pytest.raises(TaskError, match=lacking):
        toys.suite({"task": "toy", "metric": "some"}, held_out="test")
    assert toys.suite({"task": "toy", "metric": "length"}).metrics == {"toy": "length,none"}


def test_a_metric_that_only_right_answers_have_is_not_refused(toys: Any) -> None:
    toys.write(
        "toy",
        "gen_length",
        validation=10,
        test=10,
        metric_list=[metric("some")],
        process_results="toy_metrics.right_only",
        filter_list=None,
    )
    assert toys.suite("toy").metrics == {"toy": "some,none"}


def test_documents_without_a_right_answer_are_found_out_before(toys: Any) -> None:
    rows = [{"question": f"w{n} =", "answer": "" if n == 7 else "w1"} for n in range(11)]
    toys.write("toy", "gen", docs={"validation": rows[:10], "test": rows[10:]})
    with pytest.raises(TaskError, match=r"'answer_loss' has no value for 1 of \d+ items, such as item 7 "):
        toys.suite({"task": "toy", "metric": "answer_loss"})
    assert toys.suite("toy").metrics["toy"] == "exact_match,first"


def test_the_cause_of_data_that_cannot_be_read_is_named(toys: Any) -> None:
    toys.write("toy", "gen", docs={"validation": [{"question": "a"}], "test": [{"answer": {"b": 1}, "question": 2}]})
    with pytest.raises(TaskError, match="could not be loaded") as caught:
        toys.suite("toy")
    assert "An error occurred while generating" not in str(caught.value)
