"""The speed benchmark: it runs, what it compares agrees, and its README shows the committed results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from experiments.fitness_speed.__main__ import FOLDER, Result, markdown, measure
from experiments.fitness_speed.cases import CASES, quick

TARGET = 2.0  # over HFLM, on a task with four choices


@pytest.fixture(autouse=True)
def _own_datasets_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="module")
def committed() -> dict[str, Any]:
    return json.loads((FOLDER / "results.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.task)
def test_all_ways_give_the_same_answers(case: Any, tmp_path: Path) -> None:
    result = measure(quick(case), tmp_path, seed=0, small=True)
    assert result.equal_scores == result.items == quick(case).items
    assert result.requests == result.items * (1 if case.task.endswith("gen") else 4)
    assert result.largest_difference is None or result.largest_difference < 1e-4
    assert min(result.simple_evaluate, result.hflm, result.ours) > 0


def test_readme_shows_the_committed_results(committed: dict[str, Any]) -> None:
    results = [Result(**result) for result in committed["results"]]
    assert [result.case for result in results] == [case.name for case in CASES]
    assert markdown(results) in (FOLDER / "README.md").read_text(encoding="utf-8")


def test_the_committed_results_reach_the_target(committed: dict[str, Any]) -> None:
    for result in (Result(**result) for result in committed["results"]):
        assert result.equal_scores == result.items
        if result.largest_difference is not None:  # a task with four choices
            assert result.largest_difference < 1e-4
            assert result.speedup >= TARGET
