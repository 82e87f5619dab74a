"""A search as one call from Python: the same as the command line, from a file, a mapping or a config."""

import inspect
import json
import logging
import shutil
import sys

import pytest
import yaml

import evomerge
from evomerge.config.errors import ConfigError
from evomerge.config.load import load
from evomerge.extras import MissingExtraError
from evomerge.files.atomic import FileError
from evomerge.runs.result import Result
from evomerge.runs.run import Run, RunError
from tests.cli.test_every_strategy import run, write

FOUNDERS = 4
"""Both models, the uniform average (which is the other model), task arithmetic, and the start."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with a search file, and what the command line has found with it in `cli`."""
    folder = tmp_path_factory.mktemp("api")
    path = write(folder, {"kind": "cma_es", "population": 4})
    with pytest.MonkeyPatch.context() as patch:
        code, printed = run(patch, "search", path, "--run", folder / "cli")
    assert code == 0, printed
    return folder


@pytest.fixture(scope="module")
def expected(folder):
    return Result.read(folder / "cli" / "result.json")


def test_a_disk_without_room_for_the_page_does_not_withhold_the_result(folder, expected, monkeypatch):
    shutil.copytree(folder / "cli", folder / "full")
    write = Run.write

    def full(run, name, text):
        if name == "report.html":
            raise FileError("report.html: the disk became full")
        write(run, name, text)

    monkeypatch.setattr(Run, "write", full)
    said = []
    assert evomerge.resume(folder / "full", say=said.append).held_out == expected.held_out
    assert "warning: report.html: the disk became full" in said


def test_a_search_in_python_finds_what_the_command_line_finds(folder, expected):
    seen, said = [], []
    result = evomerge.search(
        folder / "search.yaml",
        run=folder / "python",
        progress=lambda state: seen.append((state.phase, state.history.evaluations)),
        say=said.append,
    )
    assert result.held_out == expected.held_out
    assert (result.best, result.search_score) == (expected.best, expected.search_score)
    founders = FOUNDERS
    stages = [phase for phase, _ in seen if phase not in ("opening", "finalists", "held-out")]
    assert stages == [*["founders"] * (founders + 1), *["candidates"] * 8]
    assert [count for phase, count in seen if phase == "candidates"] == list(range(1, 9))
    assert list(dict.fromkeys(phase for phase, _ in seen)) == [
        "opening", "founders", "candidates", "finalists", "held-out"
    ]  # fmt: skip
    assert said[0] == "checking 2 models and 2 tasks" and said[-1].startswith("scoring the finalists on")
    assert {file.name for file in (folder / "python").iterdir()} >= {"best.yaml", "result.json", "report.html"}
    assert Result.read(folder / "python" / "result.json") == result


def test_a_mapping_is_a_search_file_and_its_folders_are_relative_to_here(folder, expected, monkeypatch):
    monkeypatch.chdir(folder)
    values = yaml.safe_load((folder / "search.yaml").read_text())
    values["fitness"]["include_path"] = ["tasks"]
    before = json.dumps(values)
    result = evomerge.search(values)
    assert json.dumps(values) == before
    assert result.held_out == expected.held_out
    assert (folder / "runs" / "search" / "result.json").is_file()


def test_a_finished_run_is_resumed_with_a_larger_budget(folder):
    config = load(folder / "search.yaml")
    first = evomerge.search(config, run=folder / "resumed", overrides=["budget.evaluations=4"])
    states = []
    second = evomerge.resume(folder / "resumed", states.append, overrides=["budget.evaluations=+2"])
    assert (first.evaluations, second.evaluations) == (4, 6)
    first = next(state for state in states if state.phase == "candidates")
    assert (first.done_before, first.budget.evaluations) == (4, 6)
    with Run.read(folder / "resumed") as log:
        assert log.count() > 12


def test_trackers_of_the_search_file_follow_it_and_may_change_later(folder, expected):
    overrides = ["trackers=[csv]", "budget.evaluations=4"]
    evomerge.search(folder / "search.yaml", run=folder / "tracked", overrides=overrides)
    file = folder / "tracked" / "evaluations.csv"
    assert len(file.read_text().splitlines()) == 1 + FOUNDERS + 4
    result = evomerge.resume(folder / "tracked", overrides=["budget.evaluations=8"])
    assert len(file.read_text().splitlines()) == 1 + FOUNDERS + 8
    assert result.held_out == expected.held_out
    evomerge.resume(folder / "tracked", overrides=["trackers=[]"])


def test_a_tracker_without_its_package_is_refused_before_the_search(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingExtraError, match=r"kind wandb needs the package wandb; pip install 'evomerge\[wandb\]'"):
        evomerge.search(folder / "search.yaml", run=folder / "refused", overrides=["trackers=[wandb]"])
    assert not (folder / "refused").exists()


def test_a_search_begins_with_what_another_run_has_found(folder):
    config, said = load(folder / "search.yaml"), []
    evomerge.search(
        config, run=folder / "warm", overrides=["budget.evaluations=4"], warm_start=folder / "cli", say=said.append
    )
    assert any(sentence.startswith(f"warm start: 1 candidate of {folder / 'cli'}") for sentence in said)
    assert load(folder / "warm" / "config.yaml").strategy.warm_start.is_loaded


def test_logging_is_as_it_was_after_a_search(folder):
    assert logging.getLogger("evomerge").propagate
    assert not logging.getLogger("evomerge").handlers


def test_scores_that_the_forecast_makes_up_are_not_in_the_log(folder):
    first, *others = (folder / "cli" / "log.txt").read_text().splitlines()
    assert first.endswith("searching from evaluation 0")
    assert any("is the best so far" in line for line in others)


def test_a_tilde_is_the_home_and_no_folder_of_that_name(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    with pytest.raises(RunError, match=f"^{folder / 'cli'} exists already"):
        evomerge.search("~/search.yaml", run="~/cli")
    with pytest.raises(ConfigError, match=f"^{folder / 'none.yaml'}: "):
        evomerge.search("~/none.yaml", run=folder / "none")
    with pytest.raises(RunError, match=f"^{folder / 'none'} is not a run directory"):
        evomerge.resume("~/none")


def test_what_cannot_be_used_is_refused(folder):
    config = load(folder / "search.yaml")
    with pytest.raises(ConfigError, match=r"budget\.evaluations"):
        evomerge.search(config, overrides=["budget.evaluations=none"])
    for wrong in ("budget=1", {"budget": 1}, [3]):
        with pytest.raises(ConfigError, match=r"^overrides: give a list of texts such as"):
            evomerge.search(config, overrides=wrong)
    with pytest.raises(ConfigError, match=r"config: models: "):
        evomerge.search({"models": {"one": "a"}, "fitness": {"tasks": [{"task": "t"}]}})
    with pytest.raises(RunError, match="exists already"):
        evomerge.search(config, run=folder / "cli")


def test_the_signature_of_the_package_is_that_of_the_function():
    from evomerge.search.api import run_search

    names = [list(inspect.signature(one).parameters) for one in (evomerge.search, run_search)]
    assert names[0] == names[1]
