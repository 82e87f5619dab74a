"""The comparison of operators: its selection among candidates, its table, and all of it on a tiny random model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from evomerge.cli.init import METHODS as PROPOSED
from experiments.operators.__main__ import (
    EXPERIMENT,
    FACTORS,
    LEFT_OUT,
    REFERENCE,
    methods,
    ranking,
    resampled,
    searched,
    tables,
    worth_searching,
)
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


def test_the_list_that_init_proposes_is_what_was_found() -> None:
    found = worth_searching(EXPERIMENT.read(EXPERIMENT.folder))
    assert (REFERENCE, *found) == PROPOSED
    page = (ROOT / "docs" / "coefficients.md").read_text(encoding="utf-8")
    assert f"  method: [{', '.join(PROPOSED)}]\n" in page


def test_seeds_that_share_their_items_count_as_fewer() -> None:
    """Against the formula written out, and against Student's test of independent scores."""
    values = [0.1, 0.3, 0.2, 0.4]
    low, high, p = resampled(values)
    error = (1.25 * np.var(values, ddof=1)) ** 0.5
    np.testing.assert_allclose([low, high], [0.25 - 3.182446 * error, 0.25 + 3.182446 * error], rtol=1e-6)
    independent = stats.ttest_1samp(values, 0)
    assert p > independent.pvalue
    assert p == pytest.approx(2 * stats.t.sf(independent.statistic / 5**0.5, 3))
    assert resampled([0.0, 0.0]) == (0.0, 0.0, 1.0)


@pytest.mark.slow
def test_quick_run(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "experiments.operators", "--quick", "--work", str(tmp_path / "work")]
    subprocess.run([*command, "-o", str(tmp_path / "out")], cwd=ROOT, check=True)
    rows = EXPERIMENT.read(tmp_path / "out")["rows"]
    assert {entry["method"] for entry in rows} == {*methods()}
    assert (tmp_path / "out" / "scores.svg").stat().st_size > 10_000
