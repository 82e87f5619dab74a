"""Systems that act on layers: the experiment runs, and its tables are made from its results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments.layer_systems.__main__ import figures, halved, main, tables

ROWS = [
    {"part": "RMM", "name": name, "seed": seed, "score": 0.5 + 0.1 * seed, "layers": 6 + seed}
    for name in ("PPO", "random paths")
    for seed in (0, 1)
]


@pytest.mark.slow
def test_quick(tmp_path: Path) -> None:
    main(["--quick", "--out", str(tmp_path)])
    found = json.loads((tmp_path / "results.json").read_text())
    assert {row["part"] for row in found["searches"]} == {"planted walks", "M2N2", "data flow"}
    assert all(0 <= row["score"] <= 1 and 1 <= row["layers"] <= 12 for row in found["searches"])
    assert len(found["repeats"]) == 6
    assert all(row["twice"] > 0 for row in found["repeats"])


def test_the_table_gives_means_and_errors() -> None:
    assert tables({"searches": ROWS})[0].splitlines()[2] == "| RMM | PPO | 2 | 55.0 ± 5.0 | 6.5 |"
    assert figures({"searches": ROWS, "fixed": {"ops, 6 layers": 0.8, "ops, 3 layers": 0.4}}) == {
        "RMM.PPO": "55.0 ± 5.0",
        "RMM.random_paths": "55.0 ± 5.0",
        "fixed.ops_6_layers": "80.0",
        "fixed.ops_3_layers": "40.0",
        "kept.ops_6_layers": "100.0",
        "kept.ops_3_layers": "50.0",
    }


def test_a_layer_is_halved_once_or_twice() -> None:
    assert [(at.layer, at.scale) for at in halved(2, 2)[1:5]] == [(1, 1.0), (2, 0.5), (2, 0.5), (3, 1.0)]
