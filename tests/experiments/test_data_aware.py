"""Methods that look at data: the quick form runs, and its page says what the results say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments.data_aware.__main__ import EXPERIMENT, METHODS, UNIFORM, measure
from experiments.zoo.language import OPERATIONS
from experiments.zoo.texts import write_texts
from experiments.zoo.train import STAGES


@pytest.mark.slow
def test_the_quick_form(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path))  # put back afterwards: measuring sets its own
    found = measure(1, 20, 10)
    assert [row["method"] for row in found["rows"]] == [UNIFORM, *METHODS]
    assert all(0 <= mean <= 1 for row in found["rows"] for mean in row["means"])


def test_the_page_follows_from_the_results() -> None:
    results = json.loads((EXPERIMENT.folder / "results.json").read_text(encoding="utf-8"))
    page = (EXPERIMENT.folder / "README.md").read_text(encoding="utf-8")
    assert EXPERIMENT.filled(page, results) == page
    rows = {row["method"]: row for row in results["rows"]}
    assert rows["regmean"]["better"] == results["seeds"] == 20
    assert rows["regmean"]["p"] < 0.001


def test_texts_are_the_experts_own_problems_with_right_answers(tmp_path: Path) -> None:
    files = write_texts(tmp_path, 3, lines=30)
    assert files.keys() == STAGES.keys()
    for name, file in files.items():
        allowed = {lesson.operation for lesson in STAGES[name].lessons}
        documents = [json.loads(line)["text"] for line in file.read_text(encoding="utf-8").splitlines()]
        assert len(documents) == 30
        assert {text.split()[0] for text in documents} <= allowed <= OPERATIONS.keys()
        assert file.with_suffix(".txt").read_text(encoding="utf-8").splitlines() == documents
