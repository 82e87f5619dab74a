"""Paths in a model other than the base, or in a merge from a file, and paths at which a search begins."""

from dataclasses import replace

import numpy as np
import pytest
from pydantic import ValidationError

from search_spaces.recipes import mergekit_yaml
from search_spaces.recipes.baselines import source_recipe, task_arithmetic_recipe
from search_spaces.recipes.errors import RecipeError
from search_spaces.recipes.fields import PathLayer
from search_spaces.recipes.layer_path import path_recipe
from search_spaces.recipes.resolve import resolve
from search_spaces.spaces.data_flow import DataFlowConfig
from search_spaces.spaces.two_stage import TwoStageConfig


@pytest.fixture
def written(tmp_path):
    """Return a function that writes a recipe and returns the path of its file."""

    def write(recipe, name="recipe.yaml"):
        (tmp_path / name).write_text(mergekit_yaml.dump(recipe))
        return str(tmp_path / name)

    return write


@pytest.fixture
def merge(models, layout, written):
    return written(task_arithmetic_recipe(models, layout, 0.7))


def test_a_model_as_the_anchor_gives_the_ends_and_the_start(context):
    space = DataFlowConfig(anchor="x", models=("base",)).build(context)
    recipe = space.decode(space.start)
    assert recipe.models == ("/m/x",)
    assert recipe == source_recipe("/m/x", 4)
    assert list(space.pool) == ["x", "base"]


def test_a_merge_as_the_anchor_is_the_recipe_with_a_path(context, layout, merge):
    space = DataFlowConfig(anchor=merge, models=("ops",), repeats=1).build(context)
    assert space.decode(space.start) == task_arithmetic_recipe(context.models, layout, 0.7)
    point = np.array(space.start)
    for at, gene in enumerate(space.genes):
        if gene.name in ("use[ops.2 #1]", "use[anchor.1 #1]"):
            point[at] = gene.coordinate("use" if "ops" in gene.name else "skip")
    recipe = space.decode(point)
    plans = {plan.name: plan for plan in resolve(recipe, layout)}
    assert [(layer.model, layer.layer) for layer in recipe.path] == [(None, 0), (None, 2), ("/m/ops", 2), (None, 3)]
    assert plans["model.layers.1.mlp.up_proj.weight"].method == "task_arithmetic"
    assert {contribution.tensor for contribution in plans["model.layers.1.mlp.up_proj.weight"].contributions} == {
        "model.layers.2.mlp.up_proj.weight"
    }


def test_a_search_begins_at_a_path(context, written):
    path = [PathLayer("/m/base", layer) for layer in (0, 1, 1, 3)]
    file = written(path_recipe(path, "/m/base", 4, out_dtype=context.out_dtype))
    space = DataFlowConfig(start=file, scales="none").build(context)
    assert [layer.layer for layer in space.path(space.start)] == [0, 1, 1, 3]
    assert not space.notes


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"anchor": "opz"}, "space.anchor: there is no file opz; write one, or one of the models base, ops, x, y"),
        ({"anchor": "9" * 5000}, "space.anchor: there is no file 999"),
        ({"start": "nothing.yaml"}, "space.start: there is no file nothing.yaml; write one, or remove the key"),
    ],
)
def test_what_is_no_file_is_refused(context, config, message):
    with pytest.raises(RecipeError, match=message):
        DataFlowConfig(**config).build(context)


def test_files_that_do_not_fit_are_refused(context, layout, models, merge, written):
    foreign = written(task_arithmetic_recipe({"base": "/m/base", "z": "/m/z"}, layout), "foreign.yaml")
    with pytest.raises(RecipeError, match=r"space.anchor: its model '/m/z' is not in the search file; use only base"):
        DataFlowConfig(anchor=foreign).build(context)
    short = written(path_recipe([PathLayer("/m/base", 0)], "/m/base", 4), "short.yaml")
    with pytest.raises(RecipeError, match=r"space.anchor: .*short.yaml is not a merge of all 4 layers"):
        DataFlowConfig(anchor=short).build(context)
    with pytest.raises(RecipeError, match=r"space.start: the recipe's path does not lead from base.0 to base.3"):
        DataFlowConfig(start=short).build(context)
    with pytest.raises(RecipeError, match=r"the recipe is not that of space.anchor with a path"):
        DataFlowConfig(anchor=merge).build(context).encode(source_recipe("/m/x", 4))
    with pytest.raises(RecipeError, match=r"models.anchor: space.anchor gives its merge this name; rename the model"):
        DataFlowConfig(anchor=merge).build(replace(context, models={**models, "anchor": "/m/w"}))


@pytest.mark.parametrize("key", ["anchor", "start"])
def test_the_second_of_two_stages_is_anchored_in_the_first(key):
    with pytest.raises(ValidationError, match=f"{key}: the merge of the first stage is the anchor"):
        TwoStageConfig(flow={key: "file.yaml"})
