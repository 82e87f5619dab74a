"""Searches of the field: the experiment runs, its tables follow from the searches, and choices without labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter

from evomerge.strategies import STRATEGIES, AnyStrategy, StrategyConfig
from experiments.field_searches.__main__ import figures, main, tables
from experiments.field_searches.labels import _changes
from experiments.field_searches.parts import PARTS
from search_spaces.spaces.registry import SPACES

LINE = {
    "factors": [0.4, 0.6, 0.8],
    "held_out": [0.1, 0.3, 0.2],
    "choices": [{"seed": seed, "right answers": 0.6, "least change": chosen} for seed, chosen in enumerate((0.6, 0.8))],
}
RESULTS: dict[str, Any] = {
    "searches": [
        {"part": "three genes", "name": name, "seed": seed, "score": score + 0.1 * seed, "candidates": 60}
        for name, score in (("CMA-ES", 0.5), ("TPE", 0.4))
        for seed in (0, 1)
    ],
    "founders": {"three genes": 0.4},
    "label-free": {"generated": LINE},
}


@pytest.mark.slow
def test_quick(tmp_path: Path) -> None:
    main(["--quick", "--out", str(tmp_path)])
    found = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    asked = {(row["part"], row["name"]) for row in found["searches"]}
    assert asked == {(name, key) for name, part in PARTS.items() for key in part.strategies}
    assert all(0 <= row["score"] <= 1 for row in found["searches"])
    assert set(found["founders"]) == set(PARTS)
    assert set(found["label-free"]) == {"generated", "choices"}


def test_the_tables_and_the_sentences_are_made_from_the_searches() -> None:
    first, second = tables(RESULTS)
    assert first.splitlines()[2:] == [
        "| three genes | best founder | | | 40.0 | -15.0 ± 5.0 |",
        "| three genes | CMA-ES | 2 | 60 ± 0 | 55.0 ± 5.0 | |",
        "| three genes | TPE | 2 | 60 ± 0 | 45.0 ± 5.0 | -10.0 ± 0.0 |",
    ]
    assert second.splitlines()[2:] == [
        "| generated | right answers | 0.6 to 0.6 | 30.0 ± 0.0 | 30.0 |",
        "| generated | least change | 0.6 to 0.8 | 25.0 ± 5.0 | 30.0 |",
    ]
    found = figures(RESULTS)
    assert found["three_genes.TPE.gain"] == "-10.0 ± 0.0"
    assert found["generated.least_change"] == "25.0 ± 5.0"


def test_the_change_is_the_mean_of_both_neighbours() -> None:
    """Answers to two items of four points: one changes at each step but the last."""
    told = [{"a": a, "b": b} for a, b in (("1", "1"), ("2", "1"), ("2", "2"), ("2", "2"))]
    assert _changes(told).tolist() == [np.inf, 0.5, 0.25, np.inf]


def test_every_strategy_and_space_is_one_of_ours() -> None:
    for part in PARTS.values():
        assert part.space["kind"] in SPACES
        for strategy in part.strategies.values():
            config: StrategyConfig = TypeAdapter(AnyStrategy).validate_python(dict(strategy))
            config.check_tasks(part.tasks)
            assert config.kind.partition(":")[0] in STRATEGIES
