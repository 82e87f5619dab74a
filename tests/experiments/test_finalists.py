"""The choice among finalists from known answers."""

from __future__ import annotations

import numpy as np

from experiments.finalists.__main__ import COUNTS, chosen, tables

ITEMS = [f"t/test/{index}" for index in range(40)]


def test_more_finalists_ask_more_and_find_the_better_one() -> None:
    rng = np.random.default_rng(0)
    skill = [0.3, 0.3, 0.3, 0.9, 0.3, 0.3]
    found = {
        "seed": 0,
        "items": ITEMS,
        "search": [(rng.random(len(ITEMS)) < one).astype(float).tolist() for one in skill],
        "held-out": skill,
        "known": [ITEMS[:8] for _ in skill],
    }
    scores = {count: chosen(found, count) for count in (1, 2, 4, 6)}
    assert scores[1] == (0.3, 32) and scores[2][0] == 0.3
    assert scores[4][0] == scores[6][0] == 0.9
    assert scores[1][1] < scores[2][1] <= scores[4][1] <= scores[6][1] < 6 * 32


def test_the_table_compares_with_the_most() -> None:
    by_count = {str(count): [0.5 + count / 100, 100 * count] for count in COUNTS}
    searches = [{"seed": seed, "best": 0.7, "chosen": by_count} for seed in range(2)]
    lines = tables({"searches": searches})[0].splitlines()
    assert lines[2] == "| 1 | 51.0 ± 0.0 | -14.0 ± 0.0 | 100 | 19.0 ± 0.0 |"
    assert lines[-1] == "| 15 | 65.0 ± 0.0 | 0.0 ± 0.0 | 1,500 | 5.0 ± 0.0 |"
