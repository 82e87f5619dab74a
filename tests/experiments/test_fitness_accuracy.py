from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from experiments.fitness_accuracy.__main__ import main
from experiments.fitness_accuracy.data import load, simulate, write_matrix
from experiments.fitness_accuracy.tables import TABLES, Plan, Record, measure, summarise
from fitness.estimation.item_banks import Responses
from fitness.results import Estimate

SMALL = Plan(sizes=(20,), draws=1, calibration=60, few=12, tested=5)


@pytest.mark.parametrize("table", TABLES)
def test_every_table_has_finite_figures_for_every_method(table: str) -> None:
    summary = summarise(list(measure(table, simulate()[:1], SMALL)))
    assert set(summary) == {method.label for method in TABLES[table].methods}
    for rows in summary.values():
        row = rows[20]
        assert np.isfinite([row.error, row.rank, row.regret, row.optimism, row.coverage]).all()


def test_the_default_beats_the_published_estimators_on_merges() -> None:
    summary = summarise(list(measure("merges", simulate(), Plan(sizes=(20,), draws=2, calibration=80))))
    errors = {label: rows[20].error for label, rows in summary.items()}
    assert errors["**default**"] < 0.6 * min(errors["mp-IRT (published)"], errors["gmp-IRT (published)"])


def test_measurements_repeat_and_do_not_depend_on_the_other_benchmarks() -> None:
    both = [r for r in measure("few", simulate(), SMALL) if r.benchmark == "simulated_1"]
    alone = list(measure("few", simulate()[1:], SMALL))
    assert both == alone


def test_figures_are_what_they_say() -> None:
    def record(model: int, truth: float, value: float) -> Record:
        return Record("t", "b", "x", 10, 0, model, truth, Estimate(value, 0.05))

    row = summarise([record(0, 0.5, 0.6), record(1, 0.7, 0.58), record(2, 0.2, 0.3)])["x"][10]
    assert row.error == pytest.approx(100 * (0.1 + 0.12 + 0.1) / 3)
    assert row.regret == pytest.approx(20) and row.optimism == pytest.approx(10)
    assert row.rank == pytest.approx(0.5) and row.coverage == 0


def test_a_folder_of_matrices_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    benchmark = simulate(models=120, merges=4)[0]
    names = tuple(f"org/m{i}" for i in range(len(benchmark.scores)))
    write_matrix(tmp_path / "any.npz", Responses(names, tuple(map(str, range(120))), benchmark.scores))
    merges = {names[row]: [names[parent] for parent in parents] for row, parents in benchmark.merges}
    (tmp_path / "merges.json").write_text(json.dumps({**merges, "org/unknown": ["org/m1"]}))
    assert load(tmp_path)[0].merges == benchmark.merges
    main(["--responses", str(tmp_path), "--quick", "--draws", "1", "--tables", "merges", "-o", str(tmp_path / "out")])
    assert "**default**" in capsys.readouterr().out
    report = json.loads((tmp_path / "out" / "results.json").read_text())
    assert report["benchmarks"] == {"any": {"shape": [132, 120], "merges": 4}}


def test_without_responses_it_says_what_to_give(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        ([], "give --responses DIR, or --quick"),
        (["--responses", str(tmp_path)], "no *.npz in it"),
    ):
        with pytest.raises(SystemExit):
            main(arguments)
        assert message in capsys.readouterr().err
