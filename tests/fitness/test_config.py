from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError

from fitness.config import FitnessConfig, SubsetConfig, TaskConfig


def make(**keys: Any) -> FitnessConfig:
    return FitnessConfig.model_validate({"tasks": [{"task": "toy"}], **keys})


def test_defaults() -> None:
    config = make()
    assert config.tasks == (TaskConfig(task="toy", weight=1.0),)
    assert (config.held_out, config.subset.items, config.allow_test_split) == (0.5, "all", False)


@pytest.mark.parametrize(
    "keys",
    [
        {"tasks": []},
        {"tasks": [{"task": "toy", "weight": 0}]},
        {"tasks": [{"task": "toy", "weigth": 1}]},
        {"tasks": [{"task": "toy", "search_split": "dev"}]},
        {"held_out": 0.0},
        {"held_out": 1},
        {"held_out": "dev"},
        {"subset": {"items": 0}},
        {"subset": {"items": True}},
        {"subset": {"items": "some"}},
        {"batch_size": 0},
        {"num_fewshot": -1},
    ],
)
def test_refused(keys: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        make(**keys)


@pytest.mark.parametrize(
    ("short", "long"),
    [
        ({"tasks": ["a", "b"]}, {"tasks": [{"task": "a"}, {"task": "b"}]}),
        ({"tasks": ["a", {"task": "b", "weight": 2}]}, {"tasks": [{"task": "a"}, {"task": "b", "weight": 2}]}),
        ({"tasks": "a"}, {"tasks": [{"task": "a"}]}),
        ({"subset": 20}, {"subset": {"items": 20}}),
        ({"subset": "all"}, {"subset": {"items": "all"}}),
    ],
)
def test_short_forms(short: dict[str, Any], long: dict[str, Any]) -> None:
    assert make(**short) == make(**long)
    assert make(**short).model_dump() == make(**long).model_dump()


@pytest.mark.parametrize("short", [0, True, 2.5, "some"])
def test_a_short_subset_is_a_number_of_items(short: Any) -> None:
    with pytest.raises(ValidationError, match="subset"):
        make(subset=short)


@pytest.mark.parametrize("estimator", ["p_irt", "gp_irt", "ridge"])
def test_an_estimator_that_needs_item_parameters_needs_a_file(estimator: str) -> None:
    with pytest.raises(ValidationError, match=f"estimator {estimator} needs `item_bank`, a file that `evomerge fit-it"):
        make(subset={"items": 5, "estimator": estimator})
    assert make(subset={"items": 5, "estimator": estimator, "item_bank": "b.npz"}).subset.rotates()


def test_which_estimators_rotate() -> None:
    subset = SubsetConfig(items=5)
    assert subset.rotates() and subset.rotates("inherited") and not subset.rotates("mean")
    assert SubsetConfig(items=5, rotate=True).rotates("mean") and not SubsetConfig(items=5, rotate=False).rotates()


def test_a_task_is_listed_once() -> None:
    with pytest.raises(ValidationError, match="task 'a' is listed twice: keep one entry and set its weight"):
        make(tasks=[{"task": "a"}, {"task": "b"}, {"task": "a"}])


@pytest.mark.parametrize("model", [FitnessConfig, TaskConfig, SubsetConfig])
def test_every_field_is_described(model: Any) -> None:
    assert all(field.description for field in model.model_fields.values())


def test_the_package_is_light() -> None:
    """Configs, items and statistics are for the command line: no torch there."""
    code = (
        "import sys, fitness.config, fitness.estimation.intervals, fitness.objectives\n"
        "heavy = {'torch', 'transformers', 'lm_eval', 'datasets', 'search_spaces', 'evomerge'}\n"
        "heavy &= set(sys.modules)\n"
        "print(sorted(heavy))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout.strip()) == (0, "[]"), run.stderr
