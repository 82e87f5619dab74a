"""Shares of checkpoints: the experiment runs, and its score counts both tasks alike."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from experiments.layer_systems.searching import Searched
from experiments.recycled.__main__ import STRATEGIES, TASKS, figures, main, tables
from tests.zoo import ZOO

ROWS = [
    {"name": name, "seed": seed, "score": score + 0.1 * seed}
    for name, score in zip(STRATEGIES, (0.6, 0.5, 0.4), strict=True)
    for seed in (0, 1)
]


@pytest.mark.slow
def test_quick(tmp_path: Path) -> None:
    main(["--quick", "--out", str(tmp_path)])
    found = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert {row["name"] for row in found["searches"]} == set(STRATEGIES)
    assert all(0 <= row["score"] <= 1 for row in found["searches"])
    assert set(found["fixed"]) == {"best checkpoint", "average"}


def test_each_task_counts_for_one_half() -> None:
    models = {f"step_{step}": str(ZOO / "models" / name) for step, name in enumerate(("base", "ops"))}
    mixed = Searched({"kind": "mixture", "chunks": 1, "weights": "simplex"}, TASKS, models)
    assert mixed.problem.space.dimension == 2
    items = mixed.confirming()
    assert [item.startswith("zoo_ops_en") for item in items] == [True] * 100 + [False] * 100
    assert mixed.mean(items[98:101], np.array([1, 1, 0], np.float32)) == 0.5


def test_the_table_and_the_sentences_are_made_from_the_searches() -> None:
    results = {"searches": ROWS, "fixed": {"best checkpoint": 0.55}}
    assert tables(results)[0].splitlines()[2:4] == ["| best checkpoint | | 55.0 |", "| CMA-ES | 2 | 65.0 ± 5.0 |"]
    assert figures(results)["above_soup"] == "20.0 ± 0.0"
