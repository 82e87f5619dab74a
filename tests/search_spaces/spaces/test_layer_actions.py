"""Paths by actions: what each action does, what a policy sees, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest
from pydantic import ValidationError

from search_spaces.recipes import mergekit_export, mergekit_yaml
from search_spaces.recipes.baselines import source_recipe
from search_spaces.recipes.errors import RecipeError
from search_spaces.recipes.resolve import resolve
from search_spaces.spaces.depth.layer_actions import LayerActionsConfig
from search_spaces.spaces.wrappers import FixedGenesSpace

WHOLE = """
merge_method: METHOD
base_model: BASE
dtype: float32
parameters: {weight: 0.4}
slices:
- sources: [{model: /m/ops, layer_range: RANGE}, {model: BASE, layer_range: RANGE}]
"""


@pytest.fixture
def built(context):
    return lambda **config: LayerActionsConfig(**config).build(context)


def point_of(space, *actions):
    """Return the genotype of some actions; the last one again until the end."""
    given = [*actions, *[actions[-1]] * (space.steps - len(actions))]
    return np.array([space.genes[0].coordinate(action) for action in given])


def layers(space, *actions):
    """Return what the layers of the path are of."""
    parts = space.decode(point_of(space, *actions)).slices[1:-1]
    return [(part.sources[0].start, part.sources[0].model.rpartition("/")[2]) for part in parts]


def test_actions_take_skip_and_go_back(built):
    space = built()
    actions = ("ops", "back", "x", "skip", "back", "base", "skip", "ops")
    assert layers(space, *actions) == [(0, "ops"), (0, "x"), (1, "base"), (3, "ops")]
    assert np.flatnonzero(space.active(point_of(space, *actions))).tolist() == list(range(8))
    assert np.flatnonzero(space.active(point_of(space, "ops"))).tolist() == [0, 1, 2, 3]


def test_what_cannot_be_done_is_the_anchors_layer(built):
    assert layers(built(anchor="x"), "back", "ops") == [(0, "x"), (1, "ops"), (2, "ops"), (3, "ops")]
    assert layers(built(min_layers=2), "skip") == [(2, "base"), (3, "base")]
    assert layers(built(max_layers=3), "ops") == [(0, "ops"), (1, "ops"), (2, "ops")]
    endless = layers(built(), *["ops", "back"] * 4)
    assert endless[-1][0] == 3 and len(endless) > 4


def test_merges_are_methods_and_files(built, layout, tmp_path):
    file = tmp_path / "half.yaml"
    file.write_text(WHOLE.replace("METHOD", "ties").replace("BASE", "/m/base").replace("RANGE", "[0, 4]"))
    space = built(merges=("dare_ties", str(file)), anchor="dare_ties")
    recipe = space.decode(point_of(space, "ops", "dare_ties", str(file), "base"))
    assert {spec.name for spec in recipe.specs} == {"dare_ties", "passthrough", "ties"}
    assert recipe.seed == 5
    plans = {plan.name: plan for plan in resolve(recipe, layout)}
    assert [plans[f"model.layers.{at}.mlp.up_proj.weight"].method for at in range(4)] == [
        "passthrough",
        "dare_ties",
        "ties",
        "passthrough",
    ]
    assert plans["lm_head.weight"].method == "dare_ties"
    assert plans["model.layers.2.mlp.up_proj.weight"].contributions[0].parameters["weight"] == 0.4
    assert space.decode(space.encode(mergekit_yaml.parse(mergekit_yaml.dump(recipe)))).hash == recipe.hash
    assert "layers have their own methods" in mergekit_export.obstacles(recipe)[0]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"models": ("base",), "skip": False, "back": False},
            "the only action is to take the layer of base; add models",
        ),
        ({"min_layers": 5}, "space.min_layers: 5 are more than the models' 4"),
        ({"max_layers": 2, "min_layers": 3}, "space.max_layers: no path has 2 layers or fewer; write at least 3"),
        ({"max_layers": 3, "skip": False}, "no path has 3 layers or fewer; write at least 4"),
        ({"steps": 3}, "space.steps: 3 steps lead through no 4 layers"),
        ({"models": ("opz",)}, "space.models: there is no model 'opz'; did you mean 'ops'"),
        ({"anchor": "ties"}, "space.anchor: there is no 'ties'; use one of base, ops, x, y"),
        ({"merges": ("tiez",)}, "space.merges: there is no file tiez; write one, or the name of a merge method"),
        ({"merges": ("ties", "ties")}, "'ties' is named twice"),
        ({"merges": ("slerp",)}, "space.merges: "),
    ],
)
def test_what_cannot_be_is_refused(built, config, message):
    with pytest.raises(RecipeError, match=message):
        built(**config)


@pytest.mark.parametrize(
    ("base", "span", "message"),
    [("/m/z", "[0, 4]", "its model '/m/z' is not one"), ("/m/base", "[0, 3]", "it is not a merge of all 4 layers")],
)
def test_files_are_merges_of_all_layers_of_the_models(built, tmp_path, base, span, message):
    file = tmp_path / "merge.yaml"
    file.write_text(WHOLE.replace("METHOD", "ties").replace("BASE", base).replace("RANGE", span))
    with pytest.raises(RecipeError, match=message):
        built(merges=(str(file),))


def test_a_model_called_like_an_action_is_refused(context):
    models = {"base": "/m/base", "skip": "/m/ops"}
    with pytest.raises(RecipeError, match=r"models.skip: an action has this name; rename the model"):
        LayerActionsConfig().build(replace(context, models=models))
    with pytest.raises(ValidationError):
        LayerActionsConfig(min_layers=0)


@pytest.mark.parametrize(
    ("config", "actions", "message"),
    [
        ({"back": False}, ("ops", "back", "ops"), "goes back; write space.back: true"),
        ({"models": ("base", "x")}, ("ops", "x"), r"layer 0 \(passthrough of /m/ops\) is not in the space"),
        ({"max_layers": 4}, ("ops", "back", "ops"), "of 5 layers is outside the space's bounds"),
        ({"steps": 5}, ("ops", "back", "ops"), "takes 6 actions; set space.steps"),
        ({"anchor": "x"}, ("ops",), "embeddings and head are not those of x"),
    ],
)
def test_paths_of_other_spaces_have_no_genotype(built, config, actions, message):
    recipe = built().decode(point_of(built(), *actions))
    with pytest.raises(RecipeError, match=message):
        built(**config).encode(recipe)


def test_what_is_larger_than_the_space_allows_falls_short(built, models, layout):
    source = source_recipe(models["ops"], layout)
    assert built(max_layers=3).shortfall(source) == "4 layers, where the most are 3,"
    assert built().shortfall(source) is None


def test_a_policy_sees_the_counts_the_cursor_and_the_steps_left(built):
    space = built(models=("base", "ops"))
    point = point_of(space, "ops", "back", "ops", "skip", "base")
    point[4:] = np.nan
    seen = space.observation(point)
    counts, cursor, left = seen[:8].reshape(4, 2), seen[8:-1], seen[-1]
    assert counts.tolist() == [[0, 2], [0, 0], [0, 0], [0, 0]]
    assert np.flatnonzero(cursor).tolist() == [2]
    assert left == 0.5
    first = space.observation(np.full(space.dimension, np.nan))
    assert first.shape == seen.shape
    assert np.flatnonzero(first[8:-1]).tolist() == [0] and not first[:8].any()
    fixed = FixedGenesSpace(space, {"action 1": "back"})
    assert np.array_equal(fixed.observation(np.delete(point, 1)), seen)
