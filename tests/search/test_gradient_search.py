"""Gradient searches on the zoo: what they record, how they resume, what they refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import evomerge
from evomerge.cli.export import export
from evomerge.cli.plan import plan
from evomerge.config.errors import ConfigError
from evomerge.config.load import load_mapping
from evomerge.runs.result import read_rows
from evomerge.runs.run import Asked, Run, RunError, Told
from evomerge.search.api import resume_search
from evomerge.search.problem import Problem
from fitness.results import TaskError
from search_spaces.recipes import mergekit_yaml
from tests.zoo import ZOO, short_tasks


def config(**changes: Any) -> dict[str, Any]:
    """A search of a second or two: 8 gradient steps on the target with choices, few held-out items."""
    return {
        "models": {name: str(ZOO / "models" / name) for name in ("base", "ops", "ja")},
        "space": {"kind": "layer_coefficients", "method": "task_arithmetic", "layers_per_group": 3},
        "strategy": {"kind": "gradient", "items": 8},
        "fitness": {
            "tasks": [{"task": "zoo_target_ja"}],
            "include_path": [str(short_tasks())],
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


@pytest.mark.slow
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


@pytest.mark.slow
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
    with pytest.raises(RunError, match="has no final table"):
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


@pytest.fixture
def text(tmp_path: Path) -> Path:
    words = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    (tmp_path / "text.txt").write_text(" ".join(words[(7 * at * at) % 11] for at in range(900)), encoding="utf-8")
    return tmp_path / "text.txt"


@pytest.mark.parametrize("kind", ["entropy", "js"])
def test_losses_without_right_answers_are_searched(kind: str, text: Path, tmp_path: Path) -> None:
    loss = {"kind": kind} if kind == "entropy" else {"kind": kind, "text": str(text), "window": 32}
    settings = config(strategy={"kind": "gradient", "items": 8, "learning_rate": 0.05, "loss": loss})
    evomerge.search(settings | {"budget": {"evaluations": 12}}, run=tmp_path / "run")
    told = [step.evaluation for step in steps(tmp_path / "run")]
    losses = [-evaluation.objectives[0] for evaluation in told]
    assert len(told) == 12 and np.isfinite(losses).all()
    if kind == "entropy":
        assert np.mean(losses[-3:]) < np.mean(losses[:3])
    experts = {item.split("/")[0] for evaluation in told for item in evaluation.items}
    assert experts == ({"zoo_target_ja"} if kind == "entropy" else {"ops", "ja"})


def test_penalties_pull_the_genes(tmp_path: Path) -> None:
    found = {}
    for towards in ("start", "zero"):
        loss = {"kind": "right_answer", "l2": 1e4, "towards": towards}
        strategy = {"kind": "gradient", "items": 8, "learning_rate": 0.05, "loss": loss}
        evomerge.search(config(strategy=strategy), run=tmp_path / towards)
        asked = [
            event.candidate.genotype
            for event in events(tmp_path / towards)
            if isinstance(event, Asked) and event.candidate.kind == "gradient"
        ]
        found[towards] = asked[0], asked[-1]
    (first, kept), (_, pulled) = found["start"], found["zero"]
    assert np.abs(kept - first).max() < 0.1  # Adam's steps have one size, whatever the penalty's
    assert (np.abs(pulled) < np.abs(first) - 0.2).all()


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ("js", "loss js compares predictions of a text; write text: FILE, or loss: entropy"),
        ({"kind": "entropy", "text": "x"}, "loss entropy reads no text; remove text, or write kind: js"),
        ({"kind": "kl", "text": "/nowhere/at/all"}, r"strategy\.loss\.text: /nowhere/at/all cannot be read"),
        (
            {"kind": "kl", "text": {"ops": "TEXT"}},
            r"strategy\.loss\.text: ja has no text; write a file for each of ops, ja",
        ),
        ({"kind": "kl", "text": {"ops": "TEXT", "ja": "TEXT", "eo": "TEXT"}}, "eo is not an expert"),
        ({"kind": "js", "text": "TEXT", "window": 5000}, "less than one window of 5000; write more text"),
        ({"kind": "js", "text": "HELD OUT"}, r"contains the held-out item zoo_target_ja/"),
        ({"kind": "perplexity"}, "right_answer"),
    ],
)
def test_what_is_wrong_with_a_loss_is_said_before_the_search(
    loss: Any, message: str, text: Path, tmp_path: Path
) -> None:
    def with_files(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: with_files(each) for key, each in value.items()}
        return (
            {"TEXT": str(text), "HELD OUT": str(tmp_path / "held.txt")}.get(value, value)
            if value == str(value)
            else value
        )

    problem = Problem(load_mapping(config(), []))
    item = problem.suite.item(problem.held_out_items[3])
    question = problem.suite.task(item.task).question(item)
    (tmp_path / "held.txt").write_text(text.read_text() + f"\n{question} and more", encoding="utf-8")
    with pytest.raises((ConfigError, TaskError), match=message):
        evomerge.search(config(strategy={"kind": "gradient", "loss": with_files(loss)}), run=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_plan_says_what_a_step_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "search.yaml").write_text(yaml.safe_dump(config()), encoding="utf-8")
    plan(tmp_path / "search.yaml", [], as_json=True)
    found = json.loads(capsys.readouterr().out)
    steps, footprint = found["steps"], found["footprint"]
    assert steps["peak_bytes"] == footprint["peak_bytes"] + steps["gradient_bytes"] + steps["activation_bytes"]
    assert steps["activation_bytes"] > 0 and steps["how"] == "64 sequences a batch"
    plan(tmp_path / "search.yaml", [], as_json=False)
    assert "a step needs at most" in capsys.readouterr().out


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
