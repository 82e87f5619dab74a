"""NSGA-II against weighted sums: it runs and adds up."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from experiments.pareto.__main__ import WAYS, gathered, main, tables
from experiments.pareto.fronts import CORNER, Front
from fitness.pareto import hypervolume


@pytest.mark.slow
def test_quick(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--quick", "--out", str(tmp_path)])
    found = json.loads((tmp_path / "results.json").read_text())["fronts"]
    assert [front["way"] for front in found] == sorted(WAYS)
    for front in found:
        assert front["hypervolume"] == pytest.approx(hypervolume(front["held_out"], CORNER))
        assert front["evaluations"] == found[0]["evaluations"]
    assert capsys.readouterr().out.count("\n") == 2 + len(WAYS)


def test_the_table_gives_means_and_errors() -> None:
    fronts = [Front(way, seed, 10, [[0.2 + 0.2 * seed, 0.5]], 0.1 + 0.1 * seed, 1.0) for way in WAYS for seed in (0, 1)]
    assert (
        tables(gathered(fronts))[0].splitlines()[2] == "| nsga2 | 2 | 0.150 ± 0.050 | 0.300 ± 0.100 | 0.500 ± 0.000 |"
    )


def test_results_name_the_machine() -> None:
    fronts = [Front("random", 1, 10, [[0.2, 0.5]], 0.1, 1.0), Front("nsga2", 0, 10, [[0.3, 0.4]], 0.12, 2.0)]
    found = gathered(fronts)
    assert [Front(**front) for front in found["fronts"]] == fronts[::-1]
    assert {"cpu", "cores", "threads", "python", "torch"} <= found["machine"].keys()


@pytest.mark.parametrize("objectives", [2, 3])
def test_hypervolume_is_pymoos(objectives: int) -> None:
    from pymoo.indicators.hv import HV

    some = np.random.default_rng(objectives).random((15, objectives))
    corner = np.full(objectives, 0.2)
    assert hypervolume(some, corner) == pytest.approx(HV(ref_point=-corner)(-some))


def test_hypervolume_by_hand() -> None:
    assert hypervolume([(2, 1), (1, 2)], (0, 0)) == 3
    assert hypervolume([(2, 1), (1, 2), (1, 1), (9, -1)], (0, 0)) == 3
    assert hypervolume([], (0, 0)) == 0
