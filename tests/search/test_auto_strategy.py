"""What `strategy: auto` means for a space, its tasks and a budget."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

import evomerge
from evomerge.config.load import load, load_mapping
from evomerge.search.api import resume_search
from evomerge.search.problem import Problem
from evomerge.strategies import AnyStrategy, CmaEsConfig, EdaConfig, Nsga2Config, StagedConfig
from evomerge.strategies.auto import AutoConfig
from evomerge.strategies.gradient import GradientConfig
from tests.zoo import ZOO, short_tasks

NOT_DIFFERENTIABLE = {"method": "sce", "layers_per_group": 6}


def config(space: dict[str, Any] | None = None, evaluations: int = 60, **fitness: Any) -> dict[str, Any]:
    return {
        "models": {name: str(ZOO / "models" / name) for name in ("base", "ops")},
        "space": space or {"layers_per_group": 6},
        "fitness": {"tasks": ["zoo_target_ja"], "include_path": [str(short_tasks())], "held_out": 0.5} | fitness,
        "budget": evaluations,
        "workers": {"threads": 1},
    }


def chosen(**changes: Any) -> Problem:
    return Problem(load_mapping(config(**changes), []), scan=False)


def test_an_absent_key_means_auto() -> None:
    assert load_mapping(config(), []).strategy == AutoConfig()


def test_gradients_come_first_where_there_are_any() -> None:
    problem = chosen()
    strategy = problem.config.strategy
    assert isinstance(strategy, GradientConfig) and isinstance(strategy.then, CmaEsConfig)
    assert (strategy.steps, strategy.then.sigma, strategy.items) == (48, 0.02, 25)
    assert problem.config.fitness.subset.items == 25 and problem.config.fitness.subset.rotates()
    assert problem.chosen == (
        "strategy auto: 48 gradient steps, then cma_es around their result (sigma 0.02); each candidate is asked "
        "25 fresh items per task"
    )


@pytest.mark.parametrize(
    ("space", "kind", "why"),
    [
        (NOT_DIFFERENTIABLE, CmaEsConfig, "cma_es with small steps (sigma 0.1); there are no gradients: no gene of"),
        (
            {"kind": "data_flow", "repeats": 1},
            EdaConfig,
            "eda, since some genes are choices; there are no gradients: many",
        ),
        ({"kind": "two_stage", "flow": {"repeats": 1}}, StagedConfig, "staged, since the space has two stages"),
        (
            {"method": ["task_arithmetic", "ties"], "layers_per_group": 6},
            GradientConfig,
            "30 gradient steps, then eda, since some genes",
        ),
    ],
)
def test_evolution_follows_from_the_space(space: dict[str, Any], kind: type, why: str) -> None:
    problem = chosen(space=space)
    assert isinstance(problem.config.strategy, kind)
    assert why in problem.chosen


def test_several_objectives_mean_a_front() -> None:
    problem = chosen(tasks=["zoo_target_ja", "zoo_short_en"], objectives="per_task")
    assert isinstance(problem.config.strategy, Nsga2Config) and "nsga2" in problem.chosen


def test_one_evaluation_is_too_few_for_steps() -> None:
    problem = chosen(evaluations=1)
    assert isinstance(problem.config.strategy, CmaEsConfig) and "the budget is too small" in problem.chosen


def test_what_the_file_says_about_items_is_kept() -> None:
    assert chosen(subset="all").config.fitness.subset.items == "all"
    assert chosen(subset=40).config.fitness.subset.items == 40
    assert chosen(racing={"block": 4}).config.fitness.subset.items == "all"


def test_what_was_chosen_is_recorded_and_resumed(tmp_path: Path) -> None:
    said: list[str] = []
    evomerge.search(config(evaluations=4), run=tmp_path / "run", say=said.append)
    assert any(sentence.startswith("strategy auto: 3 gradient steps") for sentence in said)
    recorded = load(tmp_path / "run" / "config.yaml")
    assert isinstance(recorded.strategy, GradientConfig) and recorded.strategy.steps == 3
    assert "strategy auto: 3 gradient steps" in (tmp_path / "run" / "environment.json").read_text()
    result = resume_search(tmp_path / "run", overrides=["budget.evaluations=7"])
    assert result.evaluations == 7


def test_an_earlier_run_takes_the_place_of_gradients(tmp_path: Path) -> None:
    evomerge.search(config(evaluations=3), run=tmp_path / "former")
    problem = Problem(load_mapping(config() | {"strategy": {"warm_start": str(tmp_path / "former")}}, []), scan=False)
    assert isinstance(problem.config.strategy, CmaEsConfig)
    problem = Problem(
        load_mapping(config() | {"strategy": {"kind": "auto", "warm_start": str(tmp_path / "former")}}, []), scan=False
    )
    assert isinstance(problem.config.strategy, CmaEsConfig) and problem.chosen.startswith(
        "strategy auto: cma_es with small steps (sigma 0.1), from the earlier run"
    )
    assert problem.resolved().strategy.earlier_run is not None


def test_steps_first_is_another_spelling_of_then() -> None:
    read = TypeAdapter(AnyStrategy).validate_python
    spelt = read({"kind": "genetic", "population": 8, "warm_start": {"gradient": {"steps": 5, "items": 9}}})
    assert spelt == read({"kind": "gradient", "steps": 5, "items": 9, "then": {"kind": "genetic", "population": 8}})
    assert read({"kind": "eda", "warm_start": {"gradient": None}}) == GradientConfig(then=EdaConfig())
