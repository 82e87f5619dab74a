"""The HTML report of a run: what its tables hold."""

import re

import numpy as np
import pytest

from evomerge.runs.report.html import render
from evomerge.runs.result import Result, Row
from evomerge.runs.run import Asked, Run, Told
from evomerge.strategies import Candidate
from fitness.results import Evaluation

ITEMS = ("t/test/0", "t/test/1", "t/test/2")
ROWS = [
    Row("found", "found", "t", 0.75, 0.5, 0.9, 40, 0.012),
    Row("base", "source", "t", 0.25, 0.1, 0.4, 40, 0.012),
]


@pytest.fixture
def run(tmp_path):
    """Return the directory of a run with two scored candidates and a failed one."""
    seconds = {"merge": 1.25, "score": 2.5, "wait": 0.0}
    with Run.create(tmp_path / "run", "seed: 7\n", {"packages": {"torch": "9.9"}}) as run:
        for identity, value in enumerate((0.25, 0.5)):
            run.record(Asked(Candidate(identity, np.zeros(2), "sample", identity), f"recipe{identity}"))
            scores = np.full(3, value, np.float32)
            run.record(Told(identity, Evaluation("ok", (value,), (0.125,), ITEMS, scores, seconds), False, 10.0))
        run.record(Asked(Candidate(2, np.zeros(2), "sample", 2), "recipe2"))
        run.record(Told(2, Evaluation.failed("out of <memory>", seconds), False, 12.0))
    return tmp_path / "run"


def cells(page, first):
    """Return the cells' text of the table row whose first cell holds `first`."""
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row, re.S) for row in re.findall(r"<tr[^>]*>(.*?)</tr>", page, re.S)]
    return next(row for row in rows if row and row[0] == first)


def test_a_candidate_has_its_numbers(run):
    page = render(run)
    assert cells(page, "1") == ["1", "1", "1", "0.500", "0.125", "3", "recipe1"]
    assert cells(page, "2") == ["2", "0", "0", "0.250", "0.125", "3", "recipe0"]


def test_no_row_shows_an_object_of_python(run):
    (run / "result.json").write_text(Result(ROWS, "recipe1", 3, 9, {}, 0.8, 0.05).to_json())
    page = render(run)
    assert "object at" not in page and "built-in" not in page and "&lt;function" not in page
    assert cells(page, "found")[1:4] == ["t", "0.750", "0.500 to 0.900"]
    assert cells(page, "found")[5:] == ["40", "0.012"]
    assert "+0.050\nabove its held-out score (selection bias)" in page


def test_a_failure_has_its_reason_and_the_time_its_parts(run):
    page = render(run)
    assert "out of &lt;memory&gt;" in page
    assert cells(page, "merge") == ["merge", "3.8"]
    assert cells(page, "overhead") == ["overhead", "0.8"]
    assert cells(page, "torch") == ["torch", "9.9"]
    assert "The search has not ended" in page
