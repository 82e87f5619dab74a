"""Names and reasons in a report are text, never markup."""

import html
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from evomerge.runs.report.html import render
from evomerge.runs.result import Result, Row
from evomerge.runs.run import Asked, Run, Told
from evomerge.strategies import Candidate
from fitness.results import Evaluation

SECONDS = {"merge": 0.1, "score": 0.2, "wait": 0.0}
PAYLOADS = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</pre><svg onload=alert(1)>",
    "'-alert(1)-'",
    "{{ 7 * 7 }}{% for x in ().__class__.__base__.__subclasses__() %}{{ x }}{% endfor %}",
    "</style><iframe src=//example.org>",
]
DATA = re.compile(r'<script type="application/json".*?</script>', re.DOTALL)
"""What the page's own script reads: JSON in which no character can end the element."""
SCRIPTS = re.compile(r"<script>.*?</script>", re.DOTALL)
"""The page's own scripts, which its policy knows by their hashes."""


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found, self.text = [], ""

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, [name for name, _ in attributes]))

    def handle_data(self, data):
        self.text += data


def page_of(path, text):
    """Return the page of a run where everything that can be named is named `text`."""
    with Run.create(path, f"# {text}\n", {"packages": {text: text}}) as run:
        run.record(Asked(Candidate(0, np.zeros(3), "sample", 0), text))
        items, scores = (text,), np.ones(1, np.float32)
        run.record(Told(0, Evaluation("ok", (0.5,), (0.1,), items, scores, SECONDS), False, 1.0))
        run.record(Asked(Candidate(1, np.zeros(3), "sample", 0), "b"))
        run.record(Told(1, Evaluation.failed(text, SECONDS), False, 1.0))
    (path / "best.yaml").write_text(text)
    row = Row(text, "found", text, 0.5, 0.4, 0.6, 3, 0.1)
    (path / "result.json").write_text(Result([row], text, 2, 2, {text: 1.0}, 0.5, 0.0).to_json())
    return render(path)


@pytest.mark.parametrize("payload", PAYLOADS)
def test_everything_is_escaped(payload, tmp_path):
    page, plain = page_of(tmp_path / "run", payload), Tags()
    plain.feed(page_of(tmp_path / "plain" / "run", "words"))
    tags = Tags()
    tags.feed(page)
    assert tags.found == plain.found  # no name is markup, nor an attribute
    shown = DATA.sub("", page)
    assert shown.count(payload) == 0 or (payload.isascii() and not set(payload) & set("<>\"'&"))
    assert DATA.search(page)[0].count("<") == 2
    assert tags.text.count(payload) >= 6  # it is all there, as text
    assert "default-src 'none'" in html.unescape(page)


def test_a_result_that_is_not_one(tmp_path, refused):
    from evomerge.runs.run import LogError

    path = tmp_path / "run"
    with Run.create(path, "", {}):
        pass
    row = {"name": "a", "kind": "found", "task": "t", "score": "<b>", "low": 0, "high": 1, "items": 1, "p_value": 1}
    (path / "result.json").write_text(json.dumps({"held_out": [row | {"evil": 1}]}))
    with refused(LogError, "result.json"):
        render(path)


def test_characters_that_hide_others_are_shown(tmp_path):
    path = tmp_path / "run"
    with Run.create(path, "# \u202econfig\x1b[2J\n", {"packages": {"a\u2066": "\x9b1"}}) as run:
        run.record(Asked(Candidate(0, np.zeros(3), "sample", 0), "b"))
        run.record(Told(0, Evaluation.failed("\x1b]0;x\x07\u202ereason", SECONDS), False, 1.0))
    page = render(path)
    assert SCRIPTS.sub("", page).replace("\n", "").isprintable()
    for shown in ("# \\u202econfig\\x1b[2J\n", "a\\u2066", "\\x9b1", "\\x1b]0;x\\x07\\u202ereason"):
        assert shown in page
