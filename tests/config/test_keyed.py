"""Errors about models and tasks begin with the key of the search file that names these."""

import ast
import re
from pathlib import Path

import pytest

from evomerge.config.keyed import keyed
from evomerge.config.load import load_mapping
from evomerge.merging.engine.placement import DeviceError
from evomerge.merging.sources.errors import CheckpointError
from fitness.results import TaskError

ROOT = Path(__file__).parents[2]
CONFIG = load_mapping(
    {"models": {"base": "org/base", "ops": "org/expert"}, "fitness": {"tasks": ["arithmetic", "group"]}}
)


class EngineError(TaskError):
    """As that of vLLM's engine."""

    key = "engine"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (TaskError("there is none 'group'", task="group"), "fitness.tasks.1.task: there is none 'group'"),
        (TaskError("a metric of its own", task="arithmetic"), "fitness.tasks.0.task: a metric"),
        (TaskError("task 'arithmetic' holds out nothing", task="of_the_group"), "fitness.tasks: task 'arithmetic'"),
        (TaskError("the prompt 'arithmetic' has no tokens to continue"), "fitness.tasks: the prompt"),
        (TaskError("fitness.include_path: /tasks is not a folder"), "fitness.include_path: /tasks is"),
        (TaskError("fitness.held_out: test is the split that is searched"), "fitness.held_out: test"),
        (EngineError("vLLM: no room"), "fitness.engine: vLLM: no room"),
        (CheckpointError("ops: it has 4 layers, and base has 6"), "models.ops: it has 4 layers"),
        (CheckpointError("org/expert: no such folder"), "models.ops: org/expert: no such"),
        (CheckpointError("models.ops: no such folder"), "models.ops: no such"),
        (CheckpointError("models.ops.adapter: no such folder"), "models.ops.adapter: no such"),
        (DeviceError("'foo' cannot be used"), "workers.device: 'foo' cannot"),
        (ValueError("something else"), "something else"),
    ],
)
def test_the_key_comes_first(error, said):
    with pytest.raises(type(error), match=f"^{re.escape(said)}"), keyed(CONFIG):
        raise error


def test_an_error_gets_one_key():
    with pytest.raises(TaskError, match=r"^fitness.tasks: no prompt$"), keyed(CONFIG), keyed(CONFIG):
        raise TaskError("no prompt")


def test_every_error_that_begins_with_a_tasks_name_carries_it():
    """Or its key in the search file is not found, since the text is not looked at."""
    without = []
    for file in sorted((ROOT / "fitness").rglob("*.py")):
        for call in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "TaskError":
                begins = ast.unparse(call.args[0]).lstrip("f'\"").startswith("task {")
                if begins and "task" not in {keyword.arg for keyword in call.keywords}:
                    without.append(f"{file.relative_to(ROOT)}:{call.lineno}")
    assert not without
