"""Tasks that cannot be found, loaded or used are refused with what to do instead."""

from __future__ import annotations

from typing import Any

import pytest

from fitness.results import TaskError


def test_unknown_tasks_name_the_nearest(toys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from fitness.tasks import loading

    manager = loading._task_manager
    monkeypatch.setattr(  # lm-eval's own tasks take 15 s to list
        loading,
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


def test_folders_without_tasks(toys: Any) -> None:
    with pytest.raises(TaskError, match=r"include_path: .* has no \.yaml file: name a folder of task YAML"):
        toys.suite("toy")
    missing = toys.folder / "missing"
    with pytest.raises(TaskError, match="missing is not a folder: name a folder of task YAML files"):
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


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"generation_kwargs": {"until": ["."], "do_sample": True}}, "set do_sample: false"),
        ({"generation_kwargs": {"until": ["."], "num_beams": 3}}, "searches with beams"),
        ({"unsafe_code": True}, "runs programs that the model writes: set fitness.allow_code: true"),
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
