import pytest

from search_spaces.recipes import mergekit_export, mergekit_yaml
from search_spaces.recipes.baselines import source_recipe, task_arithmetic_recipe, uniform_recipe
from search_spaces.recipes.errors import RecipeError
from search_spaces.recipes.resolve import resolve


def test_uniform_average_is_over_the_experts(layout, models):
    recipe = uniform_recipe(models, layout)
    for plan in resolve(recipe, layout):
        assert plan.parameters == {"normalize": True}
        assert [c.model for c in plan.contributions] == ["/m/ops", "/m/x", "org/y@main"]
        assert {c.parameters["weight"] for c in plan.contributions} == {1.0}
    assert recipe.base_model == "/m/base"  # config and tokenizer
    assert recipe == uniform_recipe(models, layout.num_layers)


def test_uniform_average_by_task_vectors(layout, models):
    plan = resolve(uniform_recipe(models, layout, "task_arithmetic"), layout)[0]
    assert plan.base.model == "/m/base"
    assert [c.parameters["weight"] for c in plan.contributions] == [1 / 3] * 3


def test_task_arithmetic(layout, models):
    recipe = task_arithmetic_recipe(models, layout, 0.4, dtype="bfloat16", out_dtype=None)
    assert (recipe.dtype, recipe.out_dtype) == ("bfloat16", None)
    for plan in resolve(recipe, layout):
        assert [c.parameters["weight"] for c in plan.contributions] == [0.4] * 3
        assert plan.base.model == "/m/base"


def test_source_as_it_is(layout):
    recipe = source_recipe("/m/x", layout)
    assert recipe.models == ("/m/x",)
    for plan in resolve(recipe, layout):
        assert plan.contributions[0].tensor == plan.name
        assert plan.contributions[0].parameters == {}


def test_baselines_are_plain_mergekit(layout, models):
    for recipe in (
        uniform_recipe(models, layout),
        task_arithmetic_recipe(models, layout),
        source_recipe("a", 4),
    ):
        assert mergekit_export.obstacles(recipe) == ()
        assert mergekit_yaml.parse(mergekit_yaml.dump(recipe)) == recipe


def test_without_experts(layout):
    for baseline in (uniform_recipe, task_arithmetic_recipe):
        with pytest.raises(RecipeError, match="models: 1 given; name a base and at least one expert"):
            baseline({"base": "/m/base"}, layout)
