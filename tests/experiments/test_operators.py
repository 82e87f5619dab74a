"""The comparison of operators: its selection among candidates, its table, and all of it on a tiny random model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments.operators.__main__ import EXPERIMENT, FACTORS, LEFT_OUT, methods, ranking, searched, tables
from search_spaces.recipes.methods import METHODS

ROOT = Path(__file__).parents[2]


def row(method: str, factor: float, scores: str) -> dict[str, object]:
    return {"method": method, "factor": factor, "merge_cpu_seconds": 1.0, "loss": 0.5, "scores": scores}


def test_every_method_is_compared_or_named() -> None:
    with_data = {name for name, spec in METHODS.items() if spec.statistics}
    assert {*methods()} | {*LEFT_OUT} | with_data == {*METHODS}


def test_a_search_scores_the_best_candidate_on_items_that_did_not_choose_it() -> None:
    rng = np.random.default_rng(0)
    good, bad = ("".join(str(int(x)) for x in rng.random(80) < share) for share in (0.9, 0.1))
    rows = [row("ties", 1.0, bad), row("ties", 0.5, good)]
    scores = searched(rows)
    assert min(scores) > 0.7
    assert searched(rows[:1]) != scores
    assert searched(rows) == scores


def test_the_table_has_the_best_search_first_and_compares_with_task_arithmetic() -> None:
    rows = [row("task_arithmetic", 1.0, "10" * 40), row("ties", 1.0, "1" * 80), row("linear", 1.0, "0" * 80)]
    ranked = ranking({"rows": rows})
    assert [found["method"] for found in ranked] == ["ties", "task_arithmetic", "linear"]
    assert [(found["wins"], found["losses"]) for found in ranked] == [(20, 0), (0, 0), (0, 20)]
    (table,) = tables({"rows": rows})
    assert table.splitlines()[2].startswith("| `ties` | 1.000 | 1.000 | 1.000 |")


def test_committed_results_have_every_candidate() -> None:
    rows = EXPERIMENT.read(EXPERIMENT.folder)["rows"]
    found: dict[str, list[float]] = {}
    for entry in rows:
        found.setdefault(entry["method"], []).append(entry["factor"])
    assert {tuple(factors) for factors in found.values()} <= {FACTORS, FACTORS[:1]}
    assert {*found} <= {*methods()}


@pytest.mark.slow
def test_quick_run(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "experiments.operators", "--quick", "--work", str(tmp_path / "work")]
    subprocess.run([*command, "-o", str(tmp_path / "out")], cwd=ROOT, check=True)
    rows = EXPERIMENT.read(tmp_path / "out")["rows"]
    assert {entry["method"] for entry in rows} == {*methods()}
