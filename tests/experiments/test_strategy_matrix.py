"""No strategy over any space hands over a loss: a slice of the matrix, and the committed results."""

from __future__ import annotations

import json

import pytest

from evomerge.strategies import STRATEGIES as REGISTERED
from experiments.strategy_matrix.__main__ import EXPERIMENT, SPACES, STRATEGIES, judged, tables
from search_spaces.spaces.registry import SPACES as REGISTERED_SPACES


def test_no_strategy_and_no_space_is_left_out() -> None:
    assert {one["kind"].partition(":")[0] for one in STRATEGIES.values()} >= set(REGISTERED)
    assert {space.get("kind", "layer_coefficients") for space in SPACES.values()} == set(REGISTERED_SPACES)


def test_the_committed_results_have_no_loss() -> None:
    pairs = json.loads((EXPERIMENT.folder / EXPERIMENT.file).read_text())["pairs"]
    assert pairs
    assert not [(pair["strategy"], pair["space"]) for pair in pairs if pair.get("lost to")]


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "space"), [("genetic", "mixture"), ("random", "ties"), ("cma_es", "dare_ties")])
def test_nothing_significantly_worse_is_handed_over(strategy: str, space: str) -> None:
    pair = judged(strategy, space)
    assert pair["lost to"] == []
    assert pair["best.yaml"] >= pair["best alternative"] - 0.05


def test_a_pair_that_does_not_fit_is_refused_with_the_reason() -> None:
    assert "is for space.kind two_stage" in judged("staged", "ties")["refused"]


def test_the_tables_mark_losses() -> None:
    pair = {"strategy": "random", "space": "ties", "outcome": "worse", "best.yaml": 0.5, "lost to": ["ops"]}
    other = {"strategy": "random", "space": "linear", "refused": "no"}
    matrix, sums = tables({"pairs": [pair | {"found lost to": ["ops", "ja"]}, other]})
    assert "| random | refused | 0.50 **loss** |" in matrix
    assert sums.endswith("| 1 | 1 | 1 | 0 | 0 | 1 |")
