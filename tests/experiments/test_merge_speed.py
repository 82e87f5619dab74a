"""The merge benchmark: it runs, and its README shows the committed results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from experiments.merge_speed.__main__ import FOLDER, Result, main, markdown

AGAINST_MERGEKIT = 10.0  # CPU time in memory


def test_a_tiny_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for method in ("magmax", "model_stock"):
        main(["--quick", "--threads", "1", "--method", method, "-o", str(tmp_path)])
    found = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    results = [Result(**result) for result in found["results"]]
    assert [result.method for result in results] == ["model_stock", "magmax"]
    assert markdown(results) in capsys.readouterr().out
    for result in results:
        assert result.experts == 2
        assert result.bytes_touched == 10
        assert result.limit is not None
        assert result.limit > 0
        assert result.wall > 0


@pytest.fixture(scope="module")
def committed() -> list[Result]:
    values: dict[str, Any] = json.loads((FOLDER / "results.json").read_text(encoding="utf-8"))
    return [Result(**result) for result in values["results"]]


def test_readme_shows_the_committed_results(committed: list[Result]) -> None:
    assert markdown(committed) in (FOLDER / "README.md").read_text(encoding="utf-8")


def test_the_committed_results_reach_the_target(committed: list[Result]) -> None:
    compared = [result for result in committed if result.in_memory is not None]
    assert {result.method for result in compared} >= {"linear", "task_arithmetic", "slerp", "dare_ties", "ties"}
    for result in compared:
        assert result.in_memory is not None
        assert result.in_memory / result.cpu >= AGAINST_MERGEKIT
