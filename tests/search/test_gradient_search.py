"""Searches by gradients on the zoo: what they record, how they resume, what they refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import evomerge
from evomerge.cli.export import export
from evomerge.config.errors import ConfigError
from evomerge.runs.result import read_rows
from evomerge.runs.run import Asked, Run, RunError, Told
from evomerge.search.api import resume_search
from search_spaces.recipes import mergekit_yaml

ZOO = Path(__file__).parents[2] / "experiments" / "zoo"


def config(**changes: Any) -> dict[str, Any]:
    """A search of a second or two: 8 steps by gradients on the target with choices, few held-out items."""
    return {
        "models": {name: str(ZOO / "models" / name) for name in ("base", "ops", "ja")},
        "space": {"kind": "layer_coefficients", "method": "task_arithmetic", "layers_per_group": 3},
        "strategy": {"kind": "gradient", "items": 8},
        "fitness": {
            "tasks": [{"task": "zoo_target_ja"}],
            "include_path": [str(ZOO / "tasks")],
            "subset": {"items": 10},
            "held_out": 0.9,
        },
        "budget": {"evaluations": 8},
        "workers": {"threads": 1},
    } | changes


def events(path: Path) -> list[Any]:
    with Run.read(path) as run:
        return list(run.events())


def steps(path: Path) -> list[Told]:
    return [event for event in events(path) if isinstance(event, Told) and event.evaluation.status == "step"]


def test_steps_lower_the_loss_and_their_mean_is_the_result(tmp_path: Path) -> None:
    result = evomerge.search(
        config(strategy={"kind": "gradient", "items": 16}, budget={"evaluations": 16}), run=tmp_path / "run"
    )
    told = steps(tmp_path / "run")
    losses = [-step.evaluation.objectives[0] for step in told]
    assert len(told) == result.evaluations == 16
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    assert {row.name for row in result.held_out} > {"found", "mean of the steps", "base"}
    assert {len(step.evaluation.items) for step in told} == {16}
    assert len({step.evaluation.items for step in told}) > 1
    genes = {len(step.evaluation.gradient) for step in told}
    assert genes == {len(next(e for e in events(tmp_path / "run") if isinstance(e, Asked)).candidate.genotype)}


class Stopped(Exception):
    """Stands for a kill."""


def test_a_stopped_search_continues_exactly(tmp_path: Path) -> None:
    settings = config(
        strategy={"kind": "gradient", "items": 8, "steps": 5, "then": {"kind": "cma_es", "population": 4}},
        budget={"evaluations": 14},
    )
    evomerge.search(settings, run=tmp_path / "whole")
    for stop in (3, 7):  # among the steps, and in the second strategy

        def progress(state: Any, stop: int = stop) -> None:
            if len(state.history.told) == stop:
                raise Stopped

        path = tmp_path / f"stopped-{stop}"
        with pytest.raises(Stopped):
            evomerge.search(settings, run=path, progress=progress)
        resume_search(path)
        assert_same(events(path), events(tmp_path / "whole"))


def assert_same(found: list[Any], expected: list[Any]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert type(one) is type(other)
        if isinstance(one, Asked):
            np.testing.assert_array_equal(one.candidate.genotype, other.candidate.genotype)
            assert (one.candidate.kind, one.recipe) == (other.candidate.kind, other.recipe)
        else:
            assert one.evaluation.items == other.evaluation.items
            np.testing.assert_array_equal(one.evaluation.scores, other.evaluation.scores)
            assert one.evaluation.gradient == other.evaluation.gradient


def test_a_raised_budget_is_spent_on_further_steps(tmp_path: Path) -> None:
    evomerge.search(config(budget={"evaluations": 5}), run=tmp_path / "raised")
    resume_search(tmp_path / "raised", overrides=["budget.evaluations=8"])
    evomerge.search(config(budget={"evaluations": 8}), run=tmp_path / "whole")
    raised, whole = steps(tmp_path / "raised"), steps(tmp_path / "whole")
    assert len(raised) == 8
    assert [step.evaluation.gradient for step in raised] == [step.evaluation.gradient for step in whole]


def test_the_recipe_found_is_exported_also_where_another_is_recommended(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with pytest.raises(RunError, match="is not a run directory"):
        export(path, None, None, "evomerge", False, row="found")
    evomerge.search(config(budget={"evaluations": 2}), run=path)
    for name in ("found", "mean of the steps", "uniform average"):
        export(path, tmp_path / "recipe.yaml", None, "evomerge", False, row=name)
        assert mergekit_yaml.read(tmp_path / "recipe.yaml") == read_rows(path)[name]
    with pytest.raises(RunError, match="has no recipe of this name; write found, mean of the steps, base"):
        export(path, None, None, "evomerge", False, row="best")
    (path / "rows.json").unlink()
    with pytest.raises(RunError, match="has no final table yet"):
        export(path, None, None, "evomerge", False, row="found")


def test_another_strategy_starts_at_the_mean_of_the_steps(tmp_path: Path) -> None:
    strategy = {"kind": "gradient", "items": 8, "then": {"kind": "cma_es", "population": 4, "sigma": 0.01}}
    evomerge.search(config(strategy=strategy, budget={"evaluations": 12}), run=tmp_path / "run")
    asked = [event.candidate for event in events(tmp_path / "run") if isinstance(event, Asked)]
    asked = [one for one in asked if one.kind != "founder"]
    assert [one.kind for one in asked[:7]] == ["gradient"] * 6 + ["mean"]
    around = np.array([one.genotype for one in asked[7:]])
    assert len(around) == 5
    assert np.abs(around - asked[6].genotype).max() < 0.2
    assert np.abs(asked[6].genotype - asked[0].genotype).max() > 0.02


def test_steps_do_not_race_and_what_follows_them_does(tmp_path: Path) -> None:
    settings = config(
        strategy={"kind": "gradient", "items": 8, "steps": 3, "then": {"kind": "cma_es", "population": 4}},
        budget={"evaluations": 12},
    )
    settings["fitness"] |= {"subset": {"items": "all"}, "racing": {"error": 0.5, "block": 4}}
    evomerge.search(settings, run=tmp_path / "run")
    found = [event.evaluation for event in events(tmp_path / "run") if isinstance(event, Told)]
    first = next(at for at, one in enumerate(found) if one.status == "step")
    assert {(one.status, len(one.items)) for one in found[:first]} == {("ok", 8)}  # the founders
    told = found[first:]
    assert [one.status for one in told[:3]] == ["step"] * 3
    assert [len(one.items) for one in told[:3]] == [8] * 3
    assert {one.status for one in told[3:]} == {"ok", "stopped"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"space": {"kind": "layer_coefficients", "method": "sce"}},
            "no gene of this space has derivatives: merged weights are smooth in no parameter of sce; write",
        ),
        ({"space": {"kind": "data_flow", "scales": "none"}}, "no gene of this space has derivatives"),
        (
            {"strategy": {"kind": "gradient", "steps": 8, "then": "random"}},
            r"strategy\.steps: 8 of budget\.evaluations 8 leave too little",
        ),
        ({"strategy": {"kind": "gradient", "then": "gradient"}}, "then"),
    ],
)
def test_what_has_no_derivatives_is_refused_before_the_search(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        evomerge.search(config(**changes), run=tmp_path / "run")
    assert not (tmp_path / "run").exists()
