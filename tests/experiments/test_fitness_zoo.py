"""The cost of fitness in a search: the experiment runs, and its table gives means over seeds."""

from __future__ import annotations

import json
from typing import Any

import pytest

from experiments.fitness_zoo.__main__ import ARMS, Outcome, main, tables


def test_the_table_gives_means_errors_and_shares() -> None:
    outcomes = [
        {
            "arm": arm,
            "seed": seed,
            "held_out": 0.8 + 0.02 * seed,
            "standard_error": 0.01,
            "candidates": 120,
            "stopped": 0,
            "asked": 1000,
            "items": 4000 // (1 + at),
            "optimism": 0.01,
        }
        for at, arm in enumerate(ARMS)
        for seed in (0, 1)
    ]
    (table,) = tables({"outcomes": outcomes})
    rows = table.splitlines()[2:]
    assert rows[0] == "| all items | 81.0 ± 1.0 | 80.0, 82.0 | +1.0 | 120 | 1,000 | 4,000 | 1.000 |"
    assert [row.rpartition(" | ")[2] for row in rows] == ["1.000 |", "0.500 |", "0.333 |", "0.250 |"]


@pytest.mark.slow
def test_it_runs(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--quick", "-o", str(tmp_path)])
    found = [Outcome(**outcome) for outcome in json.loads((tmp_path / "results.json").read_text())["outcomes"]]
    assert [outcome.arm for outcome in found] == list(ARMS)
    experts = [0, 3 * 600, 3 * 600]
    finalists = [each.items - each.asked - count for each, count in zip(found[1:], experts, strict=True)]
    assert all(600 < items <= 4 * 600 for items in finalists)
    assert all(0 <= outcome.held_out <= 1 and outcome.candidates == 8 for outcome in found)
    assert found[3].asked <= found[2].asked == 8 * 20
    assert capsys.readouterr().out.count("| 20 items") == 3
