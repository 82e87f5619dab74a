"""The comparison of strategies: it runs, goes on where it was, and adds up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments.strategies.__main__ import main
from experiments.strategies.contenders import LEVERS, PLAIN, STRATEGIES, FreshItems
from experiments.strategies.curves import Curve
from experiments.strategies.report import best_known, markdown, plot, reached
from fitness.objectives import Objectives


@pytest.mark.slow
def test_quick(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--quick", "--out", str(tmp_path)])
    found = json.loads((tmp_path / "results.json").read_text())["curves"]
    assert {curve["contender"] for curve in found} == {contender.name for contender in STRATEGIES[:2]}
    assert all(0 <= score <= 1 for curve in found for score in curve["held_out"])
    assert (tmp_path / "curves.svg").stat().st_size < 200_000
    before = (tmp_path / "results.json").read_bytes()
    capsys.readouterr()
    main(["--quick", "--out", str(tmp_path)])  # nothing is left to run
    assert (tmp_path / "results.json").read_bytes() == before
    assert "| CMA-ES |" in capsys.readouterr().out


def curves(name: str, *scores: list[float]) -> list[Curve]:
    spent = [1000 * (at + 1) for at in range(len(scores[0]))]
    return [Curve(name, seed, spent, own, 10, 1.0) for seed, own in enumerate(scores)]


def test_the_mean_curve_decides_when_a_level_is_reached() -> None:
    some = curves("CMA-ES", [0.2, 0.4, 0.6], [0.4, 0.6, 0.4])
    assert best_known(some, 0.3) == pytest.approx(0.5)
    assert best_known(some, 0.55) == 0.55
    assert reached(some, "CMA-ES", 0.4) == pytest.approx(1500)
    assert reached(some, "CMA-ES", 0.1) == 1000
    assert reached(some, "CMA-ES", 0.55) is None


def test_the_table_puts_the_quickest_first(tmp_path: Path) -> None:
    some = [
        *curves(PLAIN.name, [0.3, 0.4, 0.5, 0.6]),
        *curves("CMA-ES, 25 items", [0.5, 0.6, 0.6, 0.6]),
        *curves("CMA-ES, 100 items", [0.3, 0.3, 0.3, 0.3]),
    ]
    shown = [contender for contender in LEVERS if contender.name in {curve.contender for curve in some}]
    rows = markdown(shown, some, 0.57).splitlines()[2:]
    assert [row.split(" | ")[0].strip("| ") for row in rows] == ["CMA-ES, 25 items", PLAIN.name, "CMA-ES, 100 items"]
    assert rows[0].endswith("| 1,700 | 0.46 |")
    assert rows[2].endswith("| — |  |")
    plot(shown, some, 0.57, tmp_path / "curves.svg")
    assert (tmp_path / "curves.svg").is_file()


def test_fresh_items_come_round() -> None:
    items = [f"{task}/validation/{index}" for task in ("a", "b") for index in range(6)]
    plan = FreshItems(items, 4, Objectives({"a": 1.0, "b": 1.0}), seed=0)
    generations = [plan.items(generation) for generation in range(3)]
    assert [len(generation) for generation in generations] == [8] * 3
    assert sorted(item for generation in generations for item in generation) == sorted(items * 2)
    assert plan.items(1) == generations[1]
