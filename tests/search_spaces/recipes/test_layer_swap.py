import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search_spaces.recipes.errors import RecipeError
from search_spaces.recipes.layer_swap import layer_shares, layer_swap_recipe
from search_spaces.recipes.recipe import Recipe
from search_spaces.recipes.resolve import resolve
from search_spaces.spaces.coefficients import CoefficientConfig, CoefficientSpace


def test_shares_by_layer():
    assert layer_shares(8, bottom=2, top=1) == (1, 1, 0, 0, 0, 0, 0, 1)
    assert layer_shares(8, bottom=2, top=1, transition=1) == (1, 1, 0.5, 0, 0, 0, 0.5, 1)
    assert layer_shares(4, bottom=1, top=1, transition=3) == (1, 0.5, 0.5, 1)
    assert layer_shares(3, bottom=0, top=0) == (0, 0, 0)


@settings(deadline=None)
@given(st.integers(1, 40), st.data())
def test_shares_are_those_asked_for(count, data):
    bottom = data.draw(st.integers(0, count))
    top = data.draw(st.integers(0, count - bottom))
    transition = data.draw(st.integers(0, 5))
    shares = layer_shares(count, bottom=bottom, top=top, transition=transition)
    assert len(shares) == count
    assert shares.count(1.0) == bottom + top
    assert shares.count(0.5) == min(2 * transition, count - bottom - top)
    mirrored = layer_shares(count, bottom=top, top=bottom, transition=transition)
    assert shares == mirrored[::-1]


def test_recipe_takes_each_layer_from_its_model(layout):
    recipe = layer_swap_recipe(
        "/m/ja", "/m/math", layout, bottom=1, top=1, transition=1, embeddings="language", head="task"
    )
    weights = {
        plan.name: {c.model: c.parameters["weight"] for c in plan.contributions} for plan in resolve(recipe, layout)
    }
    assert weights["model.embed_tokens.weight"] == {"/m/ja": 1, "/m/math": 0}
    assert [weights[f"model.layers.{i}.mlp.up_proj.weight"]["/m/ja"] for i in range(4)] == [1, 0.5, 0.5, 1]
    assert weights["lm_head.weight"] == weights["model.norm.weight"] == {"/m/ja": 0, "/m/math": 1}
    assert recipe.donor == "/m/math"
    assert recipe.mergekit_obstacles() == ()
    assert Recipe.from_yaml(recipe.to_yaml()).hash == recipe.hash


def test_a_search_can_start_from_it(layout):
    models = {"math": "/m/math", "ja": "/m/ja"}
    recipe = layer_swap_recipe("/m/ja", "/m/math", 4, bottom=1, top=0)
    space = CoefficientSpace(CoefficientConfig(method="linear"), models, layout)
    again = space.decode(space.encode(recipe))
    for plan, expected in zip(resolve(again, layout), resolve(recipe, layout), strict=True):
        found = {c.model: c.parameters["weight"] for c in plan.contributions}
        assert found == pytest.approx({c.model: c.parameters["weight"] for c in expected.contributions})


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"bottom": 3, "top": 2}, "bottom 3 and top 2 are more than the 4 layers; write smaller ones"),
        ({"bottom": -1, "top": 2}, "bottom -1, top 2, transition 0: write counts of 0 or more"),
        ({"bottom": 1, "top": 1, "head": "both"}, "head: 'both' is no donor; write language, task or mean"),
    ],
)
def test_impossible_swaps_are_refused(counts, message):
    with pytest.raises(RecipeError, match=message):
        layer_swap_recipe("a", "b", 4, **counts)
