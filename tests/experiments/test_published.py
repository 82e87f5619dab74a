"""The search files at the papers' scale are valid, and mean what their README says, without any download."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from evomerge.cli.plan_offline import OfflinePlan
from evomerge.strategies.penalty import genes_of
from experiments.published.__main__ import FILES, FOLDER, check
from search_spaces.spaces.mixture import MixtureSpace

Found = dict[str, tuple[dict[str, Any], OfflinePlan]]


@pytest.fixture(scope="module")
def found() -> Found:
    return {name: check(FOLDER / f"{name}.yaml", *how) for name, how in FILES.items()}


def test_every_search_file_is_checked() -> None:
    assert {file.stem for file in FOLDER.glob("*.yaml")} == set(FILES)


def test_the_committed_results_are_what_the_check_gives(found: Found) -> None:
    committed = json.loads((FOLDER / "results.json").read_text(encoding="utf-8"))
    assert [short for short, _ in found.values()] == committed


def test_the_settings_are_the_papers(found: Found) -> None:
    keys = ("parameters", "genes", "population", "evaluations", "answers")
    assert {name: tuple(short[key] for key in keys) for name, (short, _) in found.items()} == {
        "merge3_arc": (7_241_732_096, 3 * 2, 25, 7 * 25, 7 * 25 * 4 * 20),
        "genome_plus": (2_614_341_888, 10, 10, 10 + 10 * 11.5, 125 * 200),
        "gptailor": (13_015_864_320, 40 * (1 + 3 + 1), 25, 500, None),
        "recycle_them": (11_846_072_320, 16, 41, 500, None),
        "evo_merging": (8_030_261_248, 20 + 20, 20, 400 + 800, 1200 * 300),
    }


def test_gptailor_keeps_30_of_40_layers(found: Found) -> None:
    space, rng = found["gptailor"][1].space, np.random.default_rng(0)
    assert {space.decode(space.sample(rng)).num_layers for _ in range(10)} == {30}


def test_shares_of_checkpoints_sum_to_one(found: Found) -> None:
    space = found["recycle_them"][1].space
    assert isinstance(space, MixtureSpace)
    weights = space.weights(space.sample(np.random.default_rng(0)))
    assert weights.size == 16
    assert weights.sum() == pytest.approx(1)


def test_evo_merging_has_a_density_and_a_signed_weight_for_each_adapter(found: Found) -> None:
    space = found["evo_merging"][1].space
    ranges = {kind: {(space.low[at], space.high[at]) for at in genes_of(space, kind)} for kind in ("density", "weight")}
    assert ranges == {"density": {(0.01, 1.0)}, "weight": {(-1.5, 1.5)}}
    assert len(genes_of(space, "density")) == len(genes_of(space, "weight")) == 20
