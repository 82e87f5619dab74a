"""`evomerge init --from`: genomes of mergekit-evolve become search files that open and mean the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from evomerge.cli.init import init_from
from evomerge.cli.plan_offline import OfflinePlan, offline_plan
from evomerge.config.errors import ConfigError
from evomerge.config.genome import METHODS_OF_EVOLVE
from evomerge.config.load import load
from tests.zoo import ZOO

MODELS = {name: str(ZOO / "models" / name) for name in ("base", "ops", "ja", "eo")}
EXPERTS = [MODELS[name] for name in ("ops", "ja", "eo")]


@pytest.fixture
def converted(tmp_path: Path, tasks: Path) -> Any:
    """Return a function that converts a genome and opens the search file as `plan --offline` does."""

    def convert(
        more: dict[str, Any] | None = None, task: object = "zoo_target_gen", **genome: Any
    ) -> tuple[dict[str, Any], OfflinePlan]:
        entry = task if isinstance(task, dict) else {"name": task, "metric": "exact_match,none"}
        whole = {"models": EXPERTS, "merge_method": "linear", **genome}
        (tmp_path / "genome.yml").write_text(yaml.safe_dump({"genome": whole, "tasks": [entry]} | (more or {})))
        init_from(tmp_path / "genome.yml", tmp_path / "search.yaml", [tasks])
        written: dict[str, Any] = yaml.safe_load((tmp_path / "search.yaml").read_text(encoding="utf-8"))
        return written, offline_plan(load(tmp_path / "search.yaml"), None)

    return convert


def genes(plan: OfflinePlan) -> int:
    return len(plan.space.genes)


@pytest.mark.parametrize("method", METHODS_OF_EVOLVE)
@pytest.mark.parametrize("granularity", [0, 1, 3])
def test_every_method_opens(converted: Any, method: str, granularity: int) -> None:
    models = EXPERTS[:1] if method == "slerp" else EXPERTS
    written, plan = converted(
        models=models, merge_method=method, base_model=MODELS["base"], layer_granularity=granularity
    )
    groups = {0: 1, 1: 6, 3: 2}[granularity]
    each = {"slerp": 1, "ties": 6, "dare_ties": 6}.get(method, 3)
    assert genes(plan) == groups * each
    assert written["space"]["method"] == method


def test_one_value_for_the_whole_model(converted: Any) -> None:
    written, plan = converted(merge_method="task_arithmetic", base_model=MODELS["base"])
    assert written["space"]["groups"] == "model"
    assert genes(plan) == 3  # a weight for each expert
    assert plan.space.decode(plan.space.start).merge_method == "task_arithmetic"


def test_groups_have_the_embeddings_and_the_head_where_mergekit_evolve_has_them(converted: Any) -> None:
    written, _ = converted(layer_granularity=3)
    assert written["space"]["groups"] == [["embeddings", "0-2"], ["3-5", "final"]]
    assert "smooth" not in written["space"]


def test_smooth_and_filters(converted: Any, tmp_path: Path) -> None:
    written, plan = converted(layer_granularity=3, smooth=True, filters=["self_attn", "mlp"])
    assert written["space"]["groups"] == [["embeddings", "0-2", "final"], ["3-5"]]
    assert written["space"]["smooth"] is True
    assert written["space"]["modules"] == ["self_attn", "mlp", "other"]
    assert genes(plan) == 3 * 3 * 2


def test_weights_and_normalisation(converted: Any) -> None:
    written, _ = converted(merge_method="ties", base_model=MODELS["base"], allow_negative_weights=True, normalize=False)
    assert written["space"]["weight"] == {"low": -1.0, "high": 1.5, "start": 0.3333}
    assert written["space"]["density"]["start"] == 1.0
    assert written["space"]["fixed"] == {"normalize": False}


def test_dare_ties_is_normalised_as_mergekit_evolve_does(converted: Any) -> None:
    written, _ = converted(merge_method="dare_ties", base_model=MODELS["base"])
    assert written["space"]["fixed"] == {"normalize": True}  # not the default of dare_ties


def test_linear_merges_exactly_the_models(converted: Any) -> None:
    written, _ = converted(base_model=MODELS["base"])
    assert list(written["models"]) == ["ops", "ja", "eo"]


@pytest.mark.parametrize(
    ("source", "expected", "second"),
    [
        ("union", "union", "ops"),
        ("base", "base", "ops"),
        (MODELS["base"], "base", "ops"),
        (MODELS["eo"], "first", "eo"),
    ],
)
def test_vocabulary(converted: Any, source: str, expected: str, second: str) -> None:
    written, _ = converted(merge_method="ties", base_model=MODELS["base"], tokenizer_source=source)
    assert written["vocabulary"] == expected
    assert list(written["models"])[1] == second


def test_tasks(converted: Any, capsys: pytest.CaptureFixture[str]) -> None:
    more = {"limit": 20, "num_fewshot": 2, "apply_chat_template": False, "random_init": True, "colour": "red"}
    written, plan = converted(more, {"name": "zoo_target_gen", "weight": -0.5, "metric": "exact_match,none"})
    assert written["fitness"]["tasks"] == [{"task": "zoo_target_gen", "metric": "exact_match,none", "weight": -0.5}]
    assert (written["fitness"]["subset"], written["fitness"]["num_fewshot"]) == (20, 2)
    assert plan.summary["tasks"][0]["name"] == "zoo_target_gen"
    said = capsys.readouterr().err
    assert "warning: " in said
    assert "colour has no effect" in said
    assert "note: random_init has no counterpart" in said
    assert "is better if its metric is lower" in said


@pytest.mark.parametrize(
    ("genome", "message"),
    [
        ({"merge_method": "della"}, "genome: merge_method della is none of linear"),
        ({"merge_method": "ties"}, "ties needs a base; add base_model"),
        ({"merge_method": "slerp", "smooth": True}, "slerp takes neither smooth nor filters"),
        ({"layer_granularity": 4}, "genome.layer_granularity: 4 does not divide the models' 6 layers"),
        ({"models": EXPERTS[:1]}, "only the base is there"),
        ({"tokenizer_source": "other"}, "tokenizer_source: other is not one of the models"),
        ({"models": "ops"}, "genome.models"),
    ],
)
def test_refused(converted: Any, tmp_path: Path, genome: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        converted(**genome)
    assert not (tmp_path / "search.yaml").exists()


def test_other_files(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("merge_method: linear\nmodels: [{model: a}]")
    with pytest.raises(ConfigError, match="is not a file of mergekit-evolve"):
        init_from(file, tmp_path / "search.yaml", [])
    (tmp_path / "search.yaml").touch()
    with pytest.raises(ConfigError, match="exists already"):
        init_from(file, tmp_path / "search.yaml", [])
