"""Systems that act on layers: the experiment runs, and its tables are made from its results."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from experiments.layer_systems.__main__ import alone, contenders, figures, halved, main, niches, tables
from experiments.layer_systems.searching import Searched
from experiments.layer_systems.smollm2 import DEPTH, KEYS, without
from experiments.layer_systems.smollm2 import tables as tables_of_smollm2
from fitness.results import Evaluation
from search_spaces.recipes.layer_path import path_of

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
        "RMM.PPO.over.random_paths": "0.0 ± 0.0",
        "fixed.ops_6_layers": "80.0",
        "fixed.ops_3_layers": "40.0",
        "kept.ops_6_layers": "100.0",
        "kept.ops_3_layers": "50.0",
    }


def test_a_layer_is_halved_once_or_twice() -> None:
    assert [(at.layer, at.scale) for at in halved(2, 2)[1:5]] == [(1, 1.0), (2, 0.5), (2, 0.5), (3, 1.0)]


class Planted(Searched):
    """Recipes are strings whose scores are their lengths."""

    def __post_init__(self) -> None:
        self.asked: list[tuple[str, int]] = []

    def scored(self, recipe, items):  # type: ignore[no-untyped-def]
        self.asked.append((recipe, len(items)))
        return Evaluation("ok", (float(len(recipe)),), (0.0,), items, np.zeros(len(items), np.float32))


def test_a_race_by_halving_asks_the_better_half_twice_as_many_items() -> None:
    problem = Planted({}, ())
    recipes = {3: "a", 4: "aaaa", 5: "aaa", 6: "aa", 7: "founder"}
    scores, answers = problem._raced(recipes, tuple(map(str, range(40))), {7})  # type: ignore[arg-type]
    assert {identity: len(one.items) for identity, one in scores.items()} == {3: 10, 4: 40, 5: 20, 6: 10, 7: 40}
    assert answers == 4 * 10 + 2 * 10 + 20  # the founder's do not count


def test_contenders_differ() -> None:
    names = [(one.part, one.name) for one in contenders()]
    assert len(set(names)) == len(names) >= 15


def test_each_contender_without_attraction_has_its_pair() -> None:
    for one, other in zip(niches(), alone(), strict=True):
        assert (one.space, one.size, {**one.strategy, "attraction": False}) == (other.space, other.size, other.strategy)
    rows = [{"part": "M2N2", "name": niches()[0].name, "seed": seed, "score": 0.5, "layers": 6} for seed in (0, 1)]
    others = [{**row, "name": alone()[0].name, "score": 0.4} for row in rows]
    assert figures({"searches": rows + others})["M2N2.task_vectors.over.task_vectors_no_attraction"] == "10.0 ± 0.0"


def test_a_plain_cut_of_smollm2_leaves_a_block_out() -> None:
    path = path_of(without({"merge": "m"}, 21, 8), DEPTH)
    assert [stop.layer for stop in path] == [*range(21), 29]


def test_the_table_of_smollm2_has_cuts_and_searches() -> None:
    values = dict(zip(KEYS, (-1.5, -2.5, 0.5, 0.25), strict=True))
    searches = [{"name": "EDA", "seed": seed, **values, KEYS[0]: -float(seed)} for seed in (1, 3)]
    cut = {"removed": 2, "by": "best block", "first": 4, **values}
    assert tables_of_smollm2({"cuts": [cut], "searches": searches})[0].splitlines()[2:] == [
        "| 2 | best block: 4 to 5 | | -1.5 | -2.5 | 50 | 25 |",
        "| 8 | EDA | 2 | -2.0 ± 1.0 | -2.5 ± 0.0 | 50 ± 0 | 25 ± 0 |",
    ]
