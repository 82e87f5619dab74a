"""Task files are code where they name functions: a run directory's tasks run none that this machine has not run."""

import os
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from evomerge.files.approvals import approvals_file, approve, is_approved
from evomerge.files.atomic import FileError
from evomerge.files.cache import cache_folder
from fitness.results import TaskError
from fitness.tasks.code import INSTALLED, code_of
from fitness.tasks.config import TasksConfig
from fitness.tasks.loading import task_managers
from tests.zoo import ZOO, few_items

PYTHON = "open({mark!r}, 'a').write('x')\ndef docs(split):\n    return split\n"


@pytest.fixture
def tasks(tmp_path):
    """Return a folder with a task whose code leaves a mark when it runs."""
    folder = few_items(tmp_path / "tasks", ("zoo_target_gen",), 40)
    with (folder / "zoo_target_gen.yaml").open("a") as file:
        file.write("\nprocess_docs: !function own.docs\n")
    (folder / "own.py").write_text(PYTHON.format(mark=str(tmp_path / "mark")))
    return folder


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Return a function that makes this another machine, one that trusts nothing yet."""

    def machine(name):
        monkeypatch.setenv("EVOMERGE_STATE", str(tmp_path / name))

    machine("first")
    return machine


def digest(folder, task="zoo_target_gen"):
    return code_of(task, folder / f"{task}.yaml").digest


def test_a_run_is_resumed_where_it_was_started_and_is_data_elsewhere(tmp_path, tasks, machine, evomerge, refuse):
    search = {
        "models": {name: str(ZOO / "models" / name) for name in ("base", "ops")},
        "fitness": {"tasks": ["zoo_target_gen"], "include_path": str(tasks), "subset": 4},
        "budget": 2,
        "workers": {"threads": 1},
    }
    (tmp_path / "search.yaml").write_text(yaml.safe_dump(search))
    evomerge("search", "search.yaml", "--run", "run", cwd=tmp_path)
    evomerge("resume", "run", "--budget.evaluations=3", cwd=tmp_path)
    mark = tmp_path / "mark"
    mark.unlink()
    machine("second")
    said = ["config.yaml", "zoo_target_gen runs Python code", str(tasks / "own.py"), "--trust-tasks"]
    model = ZOO / "models" / "ops"
    for verb in (["resume", "run"], ["evaluate", model, "--like", "run"]):
        refuse(*verb, words=said)
        assert not mark.exists()
    del sys.modules[str(tasks / "own")]  # lm-eval keeps what it has imported
    evomerge("evaluate", model, "--like", "run", "--trust-tasks", cwd=tmp_path)
    assert mark.exists()
    machine("third")
    evomerge("resume", "run", "--budget.evaluations=4", "--trust-tasks", cwd=tmp_path)
    evomerge("evaluate", model, "--like", "run", cwd=tmp_path)  # now it is known
    (tasks / "own.py").write_text((tasks / "own.py").read_text() + "# edited\n")
    refuse("evaluate", model, "--like", "run", words=said)


def test_what_belongs_to_the_code_of_a_task(tmp_path, tasks):
    code = code_of("zoo_target_gen", tasks / "zoo_target_gen.yaml")
    assert code.places == (str(tasks / "own.py"), str(tasks / "documents.py"))
    before = digest(tasks)
    shutil.copytree(tasks, tmp_path / "moved")
    assert digest(tmp_path / "moved") == before
    (tasks / "other.yaml").write_text("task: other\n")
    assert digest(tasks) == before  # another task
    for name in ("own.py", "zoo_target_gen.yaml", "beside.py", "inner/more.py"):
        file = tasks / name
        file.parent.mkdir(exist_ok=True)
        with file.open("a") as opened:
            opened.write("# edited\n")
        assert digest(tasks) != before
        before = digest(tasks)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("process_docs: !function os.system\n", "os.system"),
        ("custom_dataset: !function builtins.exec\nmetadata: {source: 1}\n", "builtins.exec"),
        ("class: !function {folder}.own.Task\n", "own.py"),
        ("filter_list: [{name: a, filter: [{function: custom, filter_fn: !function own.f}]}]\n", "own.py"),
        ("metric_list: [{metric: !function own.f, aggregation: mean}]\n", "own.py"),
        ("metric_list: [{metric: ./script.py}]\n", "metric ./script.py"),
        ("metric_list: [{metric: acc, hf_evaluate: true}]\n", "metric acc"),
        ("include: other.yaml\n", "own.py"),
        ("include: [data.yaml, sub/deep.yaml]\n", "own.py"),
    ],
)
def test_every_way_to_name_code_is_seen(tmp_path, text, place):
    (tmp_path / "own.py").write_text("raise SystemExit\n")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "deep.yaml").write_text("include: ../other.yaml\n")
    (tmp_path / "data.yaml").write_text("output_type: generate_until\n")
    (tmp_path / "other.yaml").write_text("process_results: !function own.f\n")
    (tmp_path / "t.yaml").write_text("task: t\n" + text.replace("{folder}.", ""))
    code = code_of("t", tmp_path / "t.yaml")
    assert any(found.endswith(place) for found in code.places), code.places
    assert code.digest


def test_tasks_without_code(tmp_path):
    (tmp_path / "t.yaml").write_text("task: t\nmetric_list: [{metric: exact_match}]\ndoc_to_text: '{{q}}'\n")
    assert code_of("t", tmp_path / "t.yaml") is None
    own = INSTALLED / "tasks" / "hellaswag" / "hellaswag.yaml"
    assert "!function" in own.read_text() and code_of("hellaswag", own) is None  # installed with lm-eval


@pytest.mark.parametrize(
    "text", ["include: t.yaml\n", "a: !!python/name:os.system\n", "[" * 2000, "word\n", "include: no.yaml\n"]
)
def test_task_files_that_cannot_be_read(tmp_path, refused, text):
    (tmp_path / "t.yaml").write_text(text)
    with refused(TaskError, "t.yaml" if "no.yaml" not in text else "no.yaml"):
        code_of("t", tmp_path / "t.yaml")


def test_a_pipe_among_the_tasks(tmp_path, refused):
    os.mkfifo(tmp_path / "t.yaml")
    with refused(TaskError, "is not a file"):
        task_managers(TasksConfig(tasks=("t",), include_path=(str(tmp_path),)))


def test_a_folder_that_is_too_large(refused):
    with refused(TaskError, "name the folder of the tasks themselves"):
        task_managers(TasksConfig(tasks=("t",), include_path=("/",)))


def test_approvals_are_kept_in_a_file_of_the_user(machine, tmp_path, monkeypatch):
    assert not is_approved("a" * 64)
    for one in ("a", "b", "a"):
        approve(one * 64)
    assert approvals_file().read_text().split() == ["a" * 64, "b" * 64]
    assert is_approved("b" * 64)
    approvals_file().write_bytes(b"\xff")
    assert not is_approved("a" * 64)
    monkeypatch.setenv("EVOMERGE_STATE", "/proc/nowhere")
    approve("a" * 64)  # no place to remember it: no error
    assert not is_approved("a" * 64)
    monkeypatch.delenv("EVOMERGE_STATE")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert approvals_file() == tmp_path / "evomerge" / "trusted_tasks"


def test_a_user_without_a_home(monkeypatch):
    """As in a container that runs under a number of no user: nothing is remembered, and a cache needs a place."""
    for name in ("EVOMERGE_STATE", "XDG_STATE_HOME", "EVOMERGE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def no_home(cls):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", classmethod(no_home))
    approve("a" * 64)
    assert not is_approved("a" * 64)
    with pytest.raises(FileError, match="there is no home folder for the cache; set EVOMERGE_CACHE to a folder"):
        cache_folder("texts")
