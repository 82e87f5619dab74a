"""Search files with one to six genes: a sweep of lambda, Sakana's six genes, mergekit-evolve's granularity 0."""

import json

import pytest

import evomerge
from evomerge.cli.plan_offline import offline_plan
from evomerge.config.load import load
from tests.zoo import ZOO, few_items

FILES = {
    "lambda_sweep": ["lambda[model]"],
    "six_genes": [
        f"{model}.{parameter}[model]" for model in ("ops", "ja", "eo") for parameter in ("weight", "density")
    ],
    "layer_granularity_0": [
        f"{model}.weight[model, {part}]" for part in ("self_attn", "other") for model in ("ops", "ja", "eo")
    ],
}


@pytest.mark.parametrize("name", FILES)
def test_it_has_these_genes(name):
    plan = offline_plan(load(ZOO / f"{name}.yaml"), ZOO / "models" / "base" / "config.json")
    assert [gene.name for gene in plan.space.genes] == FILES[name]


def test_every_model_of_the_sweep_has_the_same_weight():
    plan = offline_plan(load(ZOO / "lambda_sweep.yaml"), ZOO / "models" / "base" / "config.json")
    proposed = [plan.space.genes[0].value(c.genotype[0]) for c in plan.strategy.ask(16)]
    assert proposed == pytest.approx([step / 10 for step in range(11)])
    recipe = plan.space.decode([0.4])
    assert recipe.merge_method == "task_arithmetic"


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_it_runs(name, tmp_path):
    tasks = few_items(tmp_path / "tasks", ["zoo_target_gen"], 30)
    config = load(ZOO / f"{name}.yaml", [f"fitness.include_path=[{tasks}]", "fitness.subset.items=10"])
    evomerge.search(config, run=tmp_path / "run", overrides=["budget.evaluations=11"])
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    scored_before = name == "lambda_sweep"  # the scale 0.3 is a founder of every search
    assert result["evaluations"] == 11 - scored_before
    assert "found" in {row["kind"] for row in result["held_out"]}
