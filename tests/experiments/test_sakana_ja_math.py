"""The search files of the paper's models are valid, and mean what their README says, without any download."""

import json

import pytest

from experiments.sakana_ja_math.__main__ import FILES, FOLDER, check


@pytest.fixture(scope="module")
def found():
    return {name: check(name) for name in FILES}


def test_the_committed_results_are_what_the_check_gives(found):
    assert list(found.values()) == json.loads((FOLDER / "results.json").read_text())


def test_the_settings_are_the_papers(found):
    parameters, stacked = found.values()
    assert parameters["parameters_each"] == 7_241_732_096
    assert (parameters["genes"], parameters["population"], parameters["evaluations"]) == (18, 9, 1000)
    slots, pairs = 3 * (2 * 32 - 2), (2 * 32 - 1) ** 2
    assert stacked["genes"] == 18 + slots + pairs
    assert stacked["evaluations"] == 1000 + 100 * 128


def test_the_readme_says_that_it_was_not_run():
    assert "was not run here" in (FOLDER / "README.md").read_text()
