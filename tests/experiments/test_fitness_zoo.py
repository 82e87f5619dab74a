"""The cost of fitness in a search: the experiment runs, and its README shows the committed results."""

from __future__ import annotations

import json
import statistics
from typing import Any

import pytest

from experiments.fitness_zoo.__main__ import ARMS, FOLDER, Outcome, main, markdown

EVERY, MEAN, INHERITED, RACING = ARMS


@pytest.fixture(scope="module")
def committed() -> dict[str, list[Outcome]]:
    found = json.loads((FOLDER / "results.json").read_text(encoding="utf-8"))["outcomes"]
    return {arm: [Outcome(**outcome) for outcome in found if outcome["arm"] == arm] for arm in ARMS}


def mean(outcomes: list[Outcome], name: str) -> float:
    return statistics.mean(getattr(outcome, name) for outcome in outcomes)


def test_readme_shows_the_committed_results(committed: dict[str, list[Outcome]]) -> None:
    seeds = [outcome.seed for outcome in committed[EVERY]]
    assert seeds and all([outcome.seed for outcome in found] == seeds for found in committed.values())
    table = markdown([outcome for found in committed.values() for outcome in found])
    assert table in (FOLDER / "README.md").read_text(encoding="utf-8")


def test_twenty_items_cost_at_most_a_tenth(committed: dict[str, list[Outcome]]) -> None:
    assert mean(committed[INHERITED], "items") <= 0.1 * mean(committed[EVERY], "items")


def test_racing_saves_thirty_per_cent(committed: dict[str, list[Outcome]]) -> None:
    assert mean(committed[RACING], "asked") <= 0.7 * mean(committed[INHERITED], "asked")


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
