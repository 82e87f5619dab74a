"""Which merges, known without a search, are points of which space."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import evomerge
from evomerge.config.load import load_mapping
from evomerge.runs.history import RunHistory
from evomerge.runs.run import ReferenceScore, Run
from evomerge.search.founders import expressed
from evomerge.search.problem import Problem
from fitness.results import Evaluation
from search_spaces.recipes.baselines import weighted_recipe
from search_spaces.recipes.resolve import difference, model_weights
from tests.zoo import ZOO, short_tasks

ALL = ["base", "ops", "ja", "eo", "uniform average", "task arithmetic 0.3", "start"]


def config(models: str = "base ops ja eo", **changes: Any) -> dict[str, Any]:
    return {
        "models": {name: str(ZOO / "models" / name) for name in models.split()},
        "strategy": {"kind": "random"},
        "fitness": {"tasks": ["zoo_target_ja"], "include_path": [str(short_tasks())], "subset": 10, "held_out": 0.9},
        "budget": {"evaluations": 4},
        "workers": {"threads": 1},
    } | changes


def problem(**changes: Any) -> Problem:
    return Problem(load_mapping(config(**changes), []), scan=False)


@pytest.mark.parametrize(
    ("space", "names"),
    [
        ({"method": "task_arithmetic"}, ALL),
        ({"method": "linear"}, ALL),
        ({"method": "ties"}, ["start"]),
        ({"method": ["task_arithmetic", "ties"], "layers_per_group": 6}, ALL),
        ({"kind": "mixture", "chunks": 4}, ALL),
        ({"kind": "mixture", "chunks": 4, "weights": "signed"}, ALL),
        ({"kind": "data_flow", "repeats": 1}, ["base"]),
        ({"kind": "two_stage", "parameters": {"method": "task_arithmetic"}, "flow": {"repeats": 1}}, ALL),
        ({"method": "task_arithmetic", "start": "task_arithmetic"}, [name for name in ALL if name != "start"]),
    ],
)
def test_a_space_has_these(space: dict[str, Any], names: list[str]) -> None:
    opened = problem(space=space)
    found = {founder.entry.name: founder for founder in opened.founders}
    assert list(found) == names
    for founder in found.values():
        assert difference(opened.space.decode(founder.genotype), founder.entry.recipe, opened.layout) is None
    assert any(np.array_equal(founder.genotype, opened.space.settled(opened.space.start)) for founder in found.values())
    assert [entry.name for entry in opened.alternatives()] == (ALL if "start" in names else ALL[:-1])


def test_one_expert_is_its_own_average() -> None:
    opened = problem(models="base ops")
    (ops, uniform) = (founder for founder in opened.founders if founder.entry.name in ("ops", "uniform average"))
    assert np.array_equal(ops.genotype, uniform.genotype)
    history = RunHistory()
    history.spelt_alike(opened.other_spellings())
    answers = Evaluation("ok", items=("t/test/0",), scores=np.ones(1, np.float32))
    history.add(ReferenceScore("parent", ops.entry.recipe.hash, answers))
    assert history.answers(uniform.entry.recipe.hash) == {"t/test/0": 1.0}
    assert opened.strategy().population == 4


def test_both_ends_of_slerp_are_sources() -> None:
    opened = problem(models="base ops", space={"method": "slerp"})
    assert [founder.entry.name for founder in opened.founders] == ["base", "ops", "uniform average", "start"]


def test_the_weights_of_a_sum_are_the_same_in_every_spelling() -> None:
    opened = problem()
    weights = {"base": 0.4, "ops": 0.5, "ja": 0.1}
    one, other = (
        weighted_recipe(method, opened.config.models, opened.layout, weights)
        for method in ("linear", "task_arithmetic")
    )
    assert one.hash != other.hash and difference(one, other, opened.layout) is None
    found = model_weights(one, opened.layout)
    assert found is not None
    assert found == pytest.approx({opened.config.models[name]: weight for name, weight in weights.items()})
    point = expressed(one, opened.config.models, opened.layout, opened.space)
    assert point is not None and difference(opened.space.decode(point), one, opened.layout) is None
    outside = weighted_recipe("linear", opened.config.models, opened.layout, {"base": -4.0, "ops": 5.0})
    assert expressed(outside, opened.config.models, opened.layout, opened.space) is None


@pytest.mark.parametrize("strategy", ["random", "cma_es"])
def test_sources_that_an_estimator_has_scored_are_asked_nothing_more(tmp_path: Path, strategy: str) -> None:
    """A source answers all search items once; as a founder and as a finalist it takes these answers."""
    settings = config(strategy={"kind": strategy})
    evomerge.search(settings, run=tmp_path / "run")
    with Run.read(tmp_path / "run") as run:
        history = RunHistory(run.events())
    opened = Problem(load_mapping(settings, []), scan=False)
    spelt = opened.other_spellings()
    experts = [entry.recipe.hash for entry in opened.sources() if entry.name != "base"]
    for source in experts:
        assert ("parent", source) in history.reference_scores
        founder = next(i for i, asked in history.asked.items() if asked.recipe == spelt[source])
        assert history.asked[founder].candidate.kind == "founder" and history.told[founder].cached
        assert ("confirm", source) not in history.reference_scores
    assert history.evaluations == 4 and history.extra == 7


@pytest.mark.parametrize("vocabulary", ["same", "base"])
def test_merges_known_without_a_search_have_its_vocabulary(vocabulary: str) -> None:
    """So that `evomerge merge` takes them as the search scored them, and each is asked once, as a founder."""
    opened = problem(models="base ops ja", vocabulary=vocabulary)
    merges = [entry.recipe for entry in opened.baselines() if entry.kind != "source"]
    wanted = opened.space.decode(opened.space.start).tokenizer_source
    assert wanted == (None if vocabulary == "same" else vocabulary)
    assert [recipe.tokenizer_source for recipe in merges] == [wanted] * 2
    assert all(founder.exact for founder in opened.founders if founder.entry.kind in ("uniform", "task_arithmetic"))
