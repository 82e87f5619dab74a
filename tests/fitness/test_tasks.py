from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fitness.evaluation import TaskError
from fitness.own_metrics import Answers
from fitness.scoring import Evaluator
from fitness.tasks import PLAIN_ACCURACIES, TaskSuite


def test_a_suite_knows_its_tasks(toys: Any) -> None:
    toys.write("a", "mc", validation=20, test=10)
    toys.write("b", "gen", validation=20, test=10)
    suite = toys.suite({"task": "a", "weight": 2}, {"task": "b", "metric": "exact_match,whole"})
    assert suite.weights == {"a": 2.0, "b": 1.0}
    assert suite.kinds == {"a": "multiple_choice", "b": "generate_until"}
    assert suite.metrics == {"a": "acc,none", "b": "exact_match,whole"}
    item = suite.pool.search["a"][3]
    assert (suite.item(item.id), item.split, item.index) == (item, "validation", 3)


def test_loading_twice_gives_the_same_split(toys: Any) -> None:
    toys.write("toy", "mc", validation=40, test=10)
    one, two = (toys.suite("toy", held_out=0.5, seed=seed).pool for seed in (4, 4))
    assert one == two
    assert one != toys.suite("toy", held_out=0.5, seed=5).pool
    assert {item.split for side in (one.search, one.held_out) for item in side["toy"]} == {"validation"}


def test_both_kinds_of_a_question_fall_on_one_side(toys: Any) -> None:
    toys.write("a", "mc", validation=40, test=10)
    toys.write("b", "gen", validation=40, test=10)
    pool = toys.suite("a", "b", held_out=0.5).pool
    assert [item.index for item in pool.search["a"]] == [item.index for item in pool.search["b"]]


def test_search_items_of_a_test_split_need_an_acknowledgement(toys: Any) -> None:
    toys.write("toy", "mc", test=40)
    with pytest.raises(
        TaskError,
        match=r"task 'toy': the search would use items of its test split.*"
        r"set fitness\.allow_test_split: true to accept that, or name another search_split "
        r"\(the task has test\)",
    ):
        toys.suite("toy", held_out=0.5)
    pool = toys.suite("toy", held_out=0.5, allow_test_split=True).pool
    assert {item.split for item in pool.search["toy"]} == {"test"}


def test_naming_the_test_split_needs_it_too(toys: Any) -> None:
    toys.write("toy", "mc", validation=20, test=40)
    with pytest.raises(TaskError, match=r"allow_test_split: true .* \(the task has validation, test\)"):
        toys.suite({"task": "toy", "search_split": "test"}, held_out=0.5)


def test_search_items_of_the_train_split(toys: Any) -> None:
    toys.write("toy", "mc", train=20, validation=10)
    pool = toys.suite({"task": "toy", "search_split": "train"}, held_out="validation").pool
    assert {item.split for item in pool.search["toy"]} == {"train"}
    assert {item.split for item in pool.held_out["toy"]} == {"validation"}


def test_splits_that_are_not_there(toys: Any) -> None:
    toys.write("toy", "mc", validation=20)
    with pytest.raises(TaskError, match="'toy' has no train split: set search_split to one of validation"):
        toys.suite({"task": "toy", "search_split": "train"}, held_out=0.5)
    with pytest.raises(TaskError, match="'toy' has no test split: set held_out to one of validation"):
        toys.suite("toy", held_out="test")
    with pytest.raises(TaskError, match=r"the whole validation split: set fitness\.held_out to a fraction"):
        toys.suite("toy", held_out="validation")


def test_no_items_after_the_split(toys: Any) -> None:
    toys.write("toy", "mc", validation=1)
    with pytest.raises(TaskError, match=r"task 'toy' has no .* items left after the split"):
        toys.suite("toy", held_out=0.5)


def test_unknown_tasks_name_the_nearest(toys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import fitness.tasks

    manager = fitness.tasks._task_manager
    monkeypatch.setattr(  # lm-eval's own tasks take 15 s to list
        fitness.tasks,
        "_task_manager",
        lambda folders, include_defaults: manager(folders, include_defaults=False),
    )
    toys.write("zoo_target", "mc", validation=10)
    with pytest.raises(TaskError, match=r"no task 'zoo_taget': did you mean 'zoo_target'\? Name an lm-eval task"):
        toys.suite("zoo_taget")


@pytest.mark.slow
def test_lm_evals_own_tasks_are_found_too(toys: Any) -> None:
    toys.write("toy", "mc", validation=10)
    with pytest.raises(TaskError, match=r"no task 'gsm8kk': did you mean .*'gsm8k'"):
        toys.suite("gsm8kk")


def test_groups_are_not_tasks(toys: Any) -> None:
    toys.write("a", "mc", validation=10, tag="both")
    with pytest.raises(TaskError, match="'both' is a group or tag of tasks: list its tasks one by one"):
        toys.suite("both")


def test_folders_without_tasks(toys: Any) -> None:
    with pytest.raises(TaskError, match=r"include_path: .* holds no \.yaml file: name a folder of task YAML"):
        toys.suite("toy")
    missing = toys.folder / "missing"
    with pytest.raises(TaskError, match="missing is not a folder: name one that holds task YAML files"):
        toys.suite("toy", include_path=[str(missing)])


def test_a_data_set_that_is_not_there(toys: Any) -> None:
    toys.write("toy", "mc", validation=10)
    (toys.folder / "toy.validation.jsonl").unlink()
    with pytest.raises(TaskError, match=r"task 'toy' could not be loaded .*: check its YAML and that its data set"):
        toys.suite("toy")


def test_a_prompt_template_that_fails(toys: Any) -> None:
    toys.write("toy", "gen", validation=10, doc_to_choice=None, doc_to_target="{{answer}}")
    text = (toys.folder / "toy.yaml").read_text()
    (toys.folder / "toy.yaml").write_text(text.replace("{{question}}", "{{quesion}}"))
    with pytest.raises(TaskError, match=r"'toy' could not be loaded .*quesion.*: check its YAML"):
        toys.suite("toy")


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


def test_a_task_without_a_usable_metric(toys: Any) -> None:
    toys.write("toy", "mc", validation=10, test=10, metric_list=[metric("f1", "f1"), metric("likelihood")])
    with pytest.raises(TaskError, match=r"'toy' has no metric to search with \(f1 is .*\): use another task"):
        toys.suite("toy")


def test_loglikelihood_tasks_take_their_accuracy(toys: Any) -> None:
    toys.write("toy", "ll", validation=10, test=10)
    assert toys.suite("toy").metrics == {"toy": "acc,none"}  # perplexity comes first, but has no value per item


def test_custom_metrics_that_are_not_numbers(toys: Any) -> None:
    keys = {"process_results": "toy_metrics.both", "metric_list": [metric("label"), metric("margin")]}
    toys.write("toy", "mc", validation=10, test=10, doc_to_choice=["w1", "w2"], doc_to_target=0, **keys)
    assert toys.suite("toy").metrics == {"toy": "margin,none"}
    with pytest.raises(TaskError, match="'label' gives str instead of a number for an item: set metric to one of"):
        toys.suite({"task": "toy", "metric": "label"})


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"generation_kwargs": {"until": ["."], "do_sample": True}}, "set do_sample: false"),
        ({"generation_kwargs": {"until": ["."], "num_beams": 3}}, "searches with beams"),
        ({"unsafe_code": True}, "runs code that the model writes, evomerge never does: use another task"),
        ({"doc_to_image": "question"}, "needs images or sound: use a text task"),
    ],
)
def test_tasks_that_cannot_be_used(keys: dict[str, Any], message: str, toys: Any) -> None:
    toys.write("toy", "gen", validation=10, test=10, **keys)
    with pytest.raises(TaskError, match=message):
        toys.suite("toy")


def test_perplexity_tasks_cannot_be_used(toys: Any) -> None:
    keys = {"output_type": "loglikelihood_rolling", "generation_kwargs": None, "metric_list": None}
    toys.write("toy", "ll", validation=10, test=10, **keys)
    with pytest.raises(TaskError, match="measures perplexity, which has no score per item: use another task"):
        toys.suite("toy")


@pytest.mark.parametrize("name", PLAIN_ACCURACIES)
@pytest.mark.parametrize("kind", ["mc", "mc_several"])
def test_plain_accuracy_equals_the_tasks_own_metric(name: str, kind: str, toys: Any) -> None:
    toys.write("toy", kind, validation=5, test=60, metric_list=[metric(name)])
    suite: TaskSuite = toys.suite("toy")
    task, items = suite.task("toy"), suite.pool.held_out["toy"]
    for item in items:
        task.requests(item)
    first = list(range(0, 4 * len(items), 4))
    assert task._is_plain_accuracy()
    rng = np.random.default_rng(0)
    values = np.append(np.round(rng.normal(-5, 1, 4 * len(items)), 1), -np.inf)  # rounded: some choices tie
    answers = Answers(values, np.zeros(values.size - 1, np.bool_), [None] * (values.size - 1))
    slow = task._score(items, [answers.responses(at, 4) for at in first])
    fast = task.scorer(items, first)(answers)
    assert fast.tolist() == slow.tolist()
    assert 0 < fast.mean() < 1


def test_few_shot_examples_are_those_of_the_whole_split(toys: Any) -> None:
    toys.write("toy", "gen", train=20, validation=5, test=10)
    one, other = (toys.suite("toy", num_fewshot=2) for _ in range(2))
    items = one.pool.held_out["toy"]
    forwards = [one.task("toy").requests(item) for item in items]
    backwards = [other.task("toy").requests(item) for item in reversed(items)]
    assert forwards == backwards[::-1]
    assert len({request.context for (request,) in forwards}) == 10


def test_zero_shots_of_a_task_stay_zero(toys: Any) -> None:
    toys.write("toy", "gen", train=20, validation=5, test=10, num_fewshot=0)
    suite = toys.suite("toy", num_fewshot=2)
    (request,) = suite.task("toy").requests(suite.pool.held_out["toy"][0])
    assert request.context == suite.task("toy")._documents("test")[0]["question"]


def test_too_many_shots(toys: Any) -> None:
    toys.write("toy", "gen", train=3, validation=5, test=10)
    suite = toys.suite("toy", num_fewshot=9)
    with pytest.raises(TaskError, match=r"no prompt could be built for item 0 .*: correct .* num_fewshot \(9\)"):
        suite.task("toy").requests(suite.pool.held_out["toy"][0])
