"""The report's page: what it holds, and what nobody can put into it."""

import base64
import hashlib
import re
from itertools import pairwise

import pytest

from evomerge.runs.report.html import render, script_json, write_figures
from evomerge.runs.result import Row
from evomerge.runs.verdict import Verdict
from fitness.results import Evaluation
from tests.runs.report.conftest import SECONDS, items, scored
from tests.runs.report.pages import Page

EVIL = "<img src=x onerror=alert(1)></script><script>alert(2)</script>"


def test_a_candidate_has_its_numbers(small):
    page = Page(render(small))
    assert page.row("1") == ["1", "1", "sample", "1", "0.500 ± 0.125", "4", "recipe1"]
    assert page.row("2") == ["2", "0", "sample", "0", "0.250 ± 0.125", "4", "recipe0"]


def test_every_cell_is_text_and_shows_no_object_of_python(writer):
    run = writer()
    for value in (0.25, 0.5, 0.75):
        run.candidate(scored(value, items(4)), parents=range(run.count))
    run.candidate(Evaluation.failed("no memory", SECONDS))
    page = Page(render(run.finish().close()))
    cells = [cell for table in page.tables for row in table[1:] for cell in row]
    assert len(cells) > 40
    for cell in cells:
        assert not re.search(r"object at 0x|built-in|<function|<bound|\bNone\b|\[|\{", cell), cell
    assert all(len(row) == len(table[0]) for table in page.tables for row in table)


def test_the_verdict_comes_first_with_what_to_take_and_what_to_type(writer):
    run = writer()
    run.candidate(scored(0.5, items(4)))
    page = Page(render(run.finish().close()))
    text = page.text[page.text.index("Verdict") :]
    parts = (
        "It is better.",
        "Take best.yaml: the recipe that the search has found",
        "evomerge export",
        "evomerge merge",
        "Held-out",
    )
    places = [text.index(part) for part in parts]
    assert places == sorted(places)
    assert page.row("found") == ["found found by the search, best.yaml", "0.750", "0.500 to 0.900", "", "", "", "40"]
    assert page.row("base") == ["base source", "0.250", "0.100 to 0.400", "+0.500", "0.012", "0.024", "40"]
    assert "+0.050 against its held-out score: the selection bias" in page.text  # no answers are recorded


def test_an_unfinished_run_says_how_far_it_is_and_how_to_go_on(small):
    page = Page(render(small))
    assert "The search was stopped after 3 evaluations: there are no held-out scores yet." in page.text
    assert f"evomerge resume {small}" in page.text
    assert "The best so far is candidate 1, 0.500 ± 0.125" in page.text
    assert ["2", "out of <memory>"] in [row for table in page.tables for row in table]


@pytest.mark.parametrize("kinds", [[], ["failed"], ["sample"], ["step"]])
def test_it_works_from_the_first_event_on(writer, kinds):
    run = writer(strategy={"kind": "m2n2"})
    for kind in kinds:
        if kind == "failed":
            run.candidate(Evaluation.failed("no memory", SECONDS))
        elif kind == "step":
            run.candidate(scored(0.5, items(2), status="step", objectives=(-1.5,)), kind="gradient")
        else:
            run.candidate(scored(0.5, items(4)))
    page = Page(render(run.close()))
    assert "Not finished" in page.text


def test_a_search_file_that_cannot_be_read_is_quoted(small):
    (small / "config.yaml").write_text("models: [\n")
    assert "models: [" in Page(render(small)).text


def test_names_texts_and_reasons_stay_texts(writer):
    run = writer(models={EVIL: "/models/base"}, fitness={"tasks": [{"task": EVIL}]}, seed=EVIL)
    run.candidate(scored(0.5, items(4, EVIL)), recipe=EVIL)
    run.candidate(Evaluation.failed(EVIL, SECONDS))
    rows = [Row(EVIL, kind, EVIL, 0.5, 0.2, 0.8, 40, 0.5) for kind in ("found", "source")]
    run.finish(rows, Verdict("better", EVIL, EVIL, ()))
    (run.path / "best.yaml").write_text(EVIL)
    page = Page(render(run.close()))
    assert EVIL in page.text
    assert len(page.scripts) == 2 and "<img" not in page.markup
    assert page.data["figures"]["held-out"]


def test_only_the_pages_own_scripts_may_run(small):
    page = Page(render(small))
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page.html)[1].replace("&#39;", "'")
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in page.scripts]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'"
    assert rules["script-src"].split() == [f"'sha256-{digest}'" for digest in digests]


def test_it_refers_to_nothing_outside(small):
    html = Page(render(small)).markup
    assert not re.findall(r"""(?:src|href|action)=["'](?!#|data:)""", html)
    assert not re.search(r"@import|url\(", html)


def test_the_library_is_there_once_and_the_page_is_small(small):
    page = Page(render(small))
    assert [len(script) > 500_000 for script in page.scripts] == [True, False]
    assert len(page.html.encode()) < 2_000_000


def test_data_for_scripts_cannot_end_its_element():
    text = script_json({"a": "</script><!--", "b": float("nan"), "c": [float("inf"), 1.5]})
    assert "<" not in text and ">" not in text
    assert text.endswith('"b":null,"c":[null,1.5]}')


def test_headings_tables_and_figures_speak(writer):
    run = writer()
    for value in (0.25, 0.5):
        run.candidate(scored(value, items(4)))
    html = Page(render(run.finish().close())).markup
    levels = [int(level) for level in re.findall(r"<h(\d)", html)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert html.count("<table") == html.count("<caption")
    assert not re.search(r"<th(?![^>]*scope=)(?!ead)", html)
    plots = re.findall(r'<div class="plot"[^>]*>', html)
    assert plots and all(re.search(r'role="img" aria-label="[^"]{30,}', plot) for plot in plots)
    assert '<main id="main">' in html and "<nav aria-label=" in html and '<html lang="en">' in html


def test_figures_are_files_too(writer, tmp_path):
    run = writer()
    for value in (0.25, 0.5, 0.75):
        run.candidate(scored(value, items(4)))
    files = write_figures(run.finish().close(), tmp_path / "figures")
    names = {file.name for file in files}
    assert {"held-out.svg", "held-out.png", "convergence.svg", "convergence-2.png", "coefficients-weight.svg"} <= names
    assert (tmp_path / "figures" / "held-out.png").read_bytes().startswith(b"\x89PNG")
    assert "found" in (tmp_path / "figures" / "held-out.svg").read_text()
