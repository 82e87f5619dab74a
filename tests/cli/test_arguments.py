"""What the command line abbreviates."""

import os
import subprocess
import sys

import pytest

from evomerge.cli.main import SECTIONS, _repeat_options
from evomerge.config.search_file import SearchConfig


def test_the_keys_of_the_top_level_are_the_search_files():
    assert set(SECTIONS) == set(SearchConfig.model_fields)


def test_keys_are_options():
    given = ["--debug", "search", "s.yaml", "--strategy=m2n2", "--budget.hours=2", "--set", "seed=1"]
    written = ["--debug", "search", "s.yaml", "--set", "strategy=m2n2", "--set", "budget.hours=2", "--set", "seed=1"]
    assert _repeat_options(given) == written
    assert _repeat_options(["init", "--models=a"]) == ["init", "--models=a"]


def test_several_values_follow_an_option():
    given = ["init", "--models", "a", "b", "--tasks", "t", "-o", "x"]
    assert _repeat_options(given) == ["init", "--models", "a", "--models", "b", "--tasks", "t", "-o", "x"]


def test_each_mistake_is_a_line_of_its_own(evomerge, tmp_path, write):
    write(tmp_path)
    options = ("--fitness.held_out=2", "--seed=-1", "--strategy=cmaes")
    lines = evomerge("plan", "search.yaml", *options, cwd=tmp_path, code=2).splitlines()
    assert len(lines) == 3
    assert all(line.startswith("evomerge: --set ") for line in lines)
    wanted = "--set strategy=cmaes: strategy.kind: kind 'cmaes' is unknown; did you mean `cma_es`?"
    assert f"evomerge: {wanted}" in lines


@pytest.mark.parametrize(
    ("typed", "offered"), [("evomerge sea", "search"), ("evomerge merge --allow", "--allow-unrelated")]
)
def test_the_shell_completes_verbs_and_options(tmp_path, typed, offered):
    """As the script does that `evomerge --install-completion` writes."""
    asked = {"_EVOMERGE_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(typed.count(" "))}
    command = [sys.executable, "-m", "evomerge"]
    done = subprocess.run(
        command, env={**os.environ, **asked}, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == [offered]


def test_a_command_without_a_verb_is_help(evomerge, tmp_path):
    assert evomerge(cwd=tmp_path) == evomerge("--help", cwd=tmp_path)
    assert "evomerge demo" in evomerge(cwd=tmp_path)
