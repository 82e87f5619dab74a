"""The speed benchmark: it runs, and what it compares agrees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from experiments.fitness_speed.__main__ import measure
from experiments.fitness_speed.cases import CASES, quick


@pytest.fixture(autouse=True)
def _own_datasets_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.task)
def test_all_ways_give_the_same_answers(case: Any, tmp_path: Path) -> None:
    result = measure(quick(case), tmp_path, 0, tmp_path, small=True)
    assert result.equal_scores == result.items == quick(case).items
    assert result.requests == result.items * (1 if case.task.endswith("gen") else 4)
    assert result.largest_difference is None or result.largest_difference < 1e-4
    assert min(result.simple_evaluate, result.hflm, result.ours) > 0
