"""Published figures follow from the results beside them, and no test asks for more than that of committed results."""

import re
from pathlib import Path

import pytest

from experiments.audit import __main__ as audit
from experiments.harness import mean_and_error, with_figures

TESTS = Path(__file__).parents[1]


def test_every_published_figure_follows_from_its_results():
    assert list(audit.differences()) == []


def test_every_measurement_in_an_experiments_page_is_a_figure_or_given():
    assert list(audit.unchecked()) == []


def test_every_experiment_says_how_its_results_were_made():
    assert list(audit.unsaid()) == []


@pytest.fixture
def page(tmp_path, monkeypatch):
    """Make the audit read one README of a folder of its own; return how to write it."""
    monkeypatch.setattr(audit, "ROOT", tmp_path)
    monkeypatch.setattr(audit, "FOLDER", tmp_path / "experiments")
    monkeypatch.setattr(audit, "pages", list)
    monkeypatch.setattr(audit, "experiments", list)
    (tmp_path / "experiments" / "some").mkdir(parents=True)
    return (tmp_path / "experiments" / "some" / "README.md").write_text


@pytest.mark.parametrize(
    "text",
    [
        "It is 2.5 points better.",
        "It saves 30 % of them.",
        "It is 3 times faster.",
        "5 ± 1",
        "on 3 of 5 seeds",
        "4 `a` 2.5",
    ],
)
def test_measurements_without_results_are_found(page, text):
    page(f"# Some\n\n{text}\n")
    (line,) = audit.unchecked()
    assert line.startswith("experiments/some/README.md:3: ")


def test_shares_in_the_documentation_without_results_are_found(page, tmp_path, monkeypatch):
    docs = tmp_path / "some.md"
    docs.write_text("Try a step of 0.1, of <!-- given -->5 %<!-- / -->.\nIt finds 20 % more.\n")
    page("# Some\n")
    monkeypatch.setattr(audit, "pages", lambda: [docs])
    assert list(audit.unchecked()) == ["some.md:2: It finds 20 % more."]


@pytest.mark.parametrize(
    "text",
    [
        "It is <!-- figure gain -->2.5<!-- / --> points better.",
        "The paper has <!-- given -->68.4 %\nof these<!-- / -->.",
        "<!-- table -->\n| 2.5 |\n<!-- /table -->",
        "`--error 0.5`, torch 2.13, Python 3.11, 20 seeds",
        "    python -m some 0.5",
        "[a](v0.5.md)",
    ],
)
def test_figures_settings_tables_and_code_are_no_loose_measurements(page, text):
    page(f"# Some\n\n{text}\n")
    assert list(audit.unchecked()) == []


def test_a_figure_that_nobody_makes_is_found(page):
    page("It is <!-- figure gian -->2.5<!-- / -->.\n")
    assert list(audit.differences()) == ["experiments/some/README.md: no experiment makes a figure called gian"]


def test_figures_fill_their_places_and_leave_others():
    text = "a <!-- figure x.y -->old<!-- / --> b <!-- figure z -->kept<!-- / -->"
    assert with_figures(text, {"x.y": "new"}) == text.replace("old", "new")


def test_means_have_the_standard_error_of_the_mean():
    assert mean_and_error([0.1, 0.2, 0.6], 1, 100) == "30.0 ± 15.3"  # s = 26.46, over the root of 3
    assert mean_and_error([0.25], 2) == "0.25"


READERS = {
    "test_audit.py": "makes every table and figure again from them",
    "test_harness.py": "likewise, file by file",
    "test_published.py": "makes the results again",
    "test_sakana_ja_math.py": "makes the results again",
    "test_zoo.py": "scores the models again",
}
"""Tests that may read committed results, and why they can fail on the code."""


def test_no_other_test_reads_committed_results():
    pattern = re.compile(r"""(?:FOLDER|ZOO|experiments)[^\n]*(?:results|chaos|soak|validation|racing)\.json""")
    found = {file.name for file in TESTS.rglob("test_*.py") if pattern.search(file.read_text(encoding="utf-8"))}
    assert found <= READERS.keys()
