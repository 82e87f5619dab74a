"""Names and reasons in a report are text, never markup."""

import json
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
TEXT = {"html", "head", "meta", "title", "style", "body", "h1", "h2", "h3", "p", "pre", "table", "tr", "th", "td"}
ALLOWED = TEXT | {"figure", "figcaption", "svg", "rect", "circle", "line", "polyline"}


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found, self.text = [], ""

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, [name for name, _ in attributes]))

    def handle_data(self, data):
        self.text += data


@pytest.mark.parametrize("payload", PAYLOADS)
def test_everything_is_escaped(payload, tmp_path):
    path = tmp_path / "run"
    with Run.create(path, f"# {payload}\n", {"packages": {payload: payload}}) as run:
        run.record(Asked(Candidate(0, np.zeros(3), "sample", 0), payload))
        items, scores = (payload,), np.ones(1, np.float32)
        run.record(Told(0, Evaluation("ok", (0.5,), (0.1,), items, scores, SECONDS), False, 1.0))
        run.record(Asked(Candidate(1, np.zeros(3), "sample", 0), "b"))
        run.record(Told(1, Evaluation.failed(payload, SECONDS), False, 1.0))
    (path / "best.yaml").write_text(payload)
    row = Row(payload, payload, payload, 0.5, 0.4, 0.6, 3, 0.1)
    (path / "result.json").write_text(Result([row], payload, 2, 2, {payload: 1.0}, 0.5, 0.0).to_json())
    page = render(path)
    tags = Tags()
    tags.feed(page)
    assert {tag for tag, _ in tags.found} <= ALLOWED
    assert not [name for _, names in tags.found for name in names if name.startswith("on")]
    assert page.count(payload) == 0 or (payload.isascii() and not set(payload) & set("<>\"'&"))
    assert tags.text.count(payload) >= 6  # it is all there, as text
    assert "default-src 'none'" in page


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
    assert page.replace("\n", "").isprintable()
    for shown in ("# \\u202econfig\\x1b[2J\n", "a\\u2066", "\\x9b1", "\\x1b]0;x\\x07\\u202ereason"):
        assert shown in page
