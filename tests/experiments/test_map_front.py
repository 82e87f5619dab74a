"""MAP's surrogates against NSGA-II: it runs and adds up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from experiments.map_front.__main__ import BUDGETS, WAYS, figures, gathered, main, tables
from experiments.pareto.fronts import CORNER
from fitness.pareto import hypervolume


def front(genes: str, way: str, seed: int, volume: float) -> dict[str, Any]:
    return {"genes": genes, "way": way, "seed": seed, "evaluations": 40, "held_out": [], "hypervolume": volume}


def two_seeds() -> list[dict[str, Any]]:
    """Return fronts of both ways over two seeds, and of one way alone on a third."""
    volumes = {("map", 0): 0.5, ("map", 1): 0.3, ("nsga2", 0): 0.2, ("nsga2", 1): 0.4, ("map", 2): 0.9}
    return [front("models", way, seed, volume) for (way, seed), volume in volumes.items()]


@pytest.mark.slow
def test_quick(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--quick", "--out", str(tmp_path)])
    results = json.loads((tmp_path / "results.json").read_text())
    found = results["fronts"]
    assert [(one["genes"], one["way"], one["seed"]) for one in found] == [("models", way, 100) for way in sorted(WAYS)]
    for one in found:
        assert one["evaluations"] == 15 and one["held_out"]
        assert one["hypervolume"] == pytest.approx(hypervolume(one["held_out"], CORNER))
    assert capsys.readouterr().out.splitlines()[2:] == tables(results)[0].splitlines()[2:]

    main(["--quick", "--out", str(tmp_path)])
    assert json.loads((tmp_path / "results.json").read_text())["fronts"] == found, "what is there is not run again"


def test_the_table_compares_seed_by_seed_where_both_ways_have_run() -> None:
    (table,) = tables(gathered(two_seeds()))
    assert table.splitlines()[2:] == [
        f"| 3 | {BUDGETS['models']} | 2 | 0.400 ± 0.100 | 0.300 ± 0.100 | 0.100 ± 0.200 | 1 of 2 |"
    ]
    assert figures(gathered(two_seeds())) == {
        "models.map": "0.400 ± 0.100",
        "models.nsga2": "0.300 ± 0.100",
        "models.gain": "0.100 ± 0.200",
    }


def test_results_are_in_order_and_name_the_machine() -> None:
    results = gathered(two_seeds())
    assert [(one["way"], one["seed"]) for one in results["fronts"]] == [
        ("map", 0),
        ("map", 1),
        ("map", 2),
        ("nsga2", 0),
        ("nsga2", 1),
    ]
    assert {"cpu", "cores", "threads", "python", "torch"} <= results["machine"].keys()
