"""What the command line abbreviates."""

import os
import subprocess
import sys

import pytest

from evomerge.cli.arguments import SECTIONS, written_out
from evomerge.config.search_file import SearchConfig


def test_the_keys_of_the_top_level_are_the_search_files():
    assert set(SECTIONS) == set(SearchConfig.model_fields)


def test_keys_are_options():
    given = ["--debug", "search", "s.yaml", "--strategy=m2n2", "--budget.hours=2", "--set", "seed=1"]
    written = ["--debug", "search", "s.yaml", "--set", "strategy=m2n2", "--set", "budget.hours=2", "--set", "seed=1"]
    assert written_out(given) == written
    assert written_out(["init", "--models=a"]) == ["init", "--models=a"]
    spaced = ["--debug", "search", "s.yaml", "--strategy", "m2n2", "--budget.hours", "2", "--set", "seed=1"]
    assert written_out(spaced) == written
    assert written_out(["search", "s.yaml", "--space.weight.low", "-1"])[2:] == ["--set", "space.weight.low=-1"]
    assert written_out(["search", "s.yaml", "--budget"])[2:] == ["--set", "budget"]  # which says how to write it
    assert written_out(["merge", "--a.b=1"]) == ["merge", "--a.b=1"]  # there are no keys to set


def test_the_home_is_found_where_the_shell_does_not_look(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert written_out(["search", "~", "--run=~/runs/a"]) == ["search", "~", "--run=/home/me/runs/a"]


def test_several_values_follow_an_option():
    given = ["init", "--models", "a", "b", "--tasks", "t", "-o", "x"]
    assert written_out(given) == ["init", "--models", "a", "--models", "b", "--tasks", "t", "-o", "x"]


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


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("export run --table a.csv --rank 2", "--rank: it has no effect beside --table; leave it out"),
        ("export run --optuna a.db --table b.csv", "--optuna: it has no effect beside --table"),
        ("export run --pareto front -o recipe.yaml", "--output: it has no effect beside --pareto"),
        ("export run --rank 2 --row found", "--row: it has no effect beside --rank"),
        ("export run --of items", "--of: it has no effect without --table"),
        ("export run --round", "--round: it has no effect without --format mergekit"),
        ("evaluate model --like run --split test", "--split: it has no effect beside --like"),
        ("evaluate model --tasks t --trust-tasks", "--trust-tasks: it has no effect without --like"),
        ("fit-items answers.csv --metric acc", "--metric: it has no effect on a matrix"),
    ],
)
def test_an_option_without_effect_is_refused(refuse, arguments, said):
    refuse(*arguments.split(), words=[said])
