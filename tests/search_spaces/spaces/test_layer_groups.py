"""Which tensors share coefficients: groups of layers, their parts, ties between genes, and lines between knots."""

import re

import numpy as np
import pytest
from pydantic import ValidationError

from search_spaces.recipes import mergekit_yaml
from search_spaces.recipes.errors import RecipeError
from search_spaces.recipes.resolve import resolve
from search_spaces.spaces.layer_coefficients import CoefficientConfig
from search_spaces.spaces.registry import build_space


@pytest.fixture
def make(context):
    return lambda **config: build_space(CoefficientConfig(**config), context)


def weights(space, point, layout, model="/m/ops"):
    """Return the weight of a model in each tensor of the recipe of `point`."""
    plans = resolve(space.decode(point), layout)
    return {p.name: next(c.parameters["weight"] for c in p.contributions if c.model == model) for p in plans}


def names(space):
    return [gene.name for gene in space.genes]


def test_one_group_is_one_coefficient_for_the_whole_model(make, layout):
    space = make(groups="model")
    assert names(space) == ["ops.weight[model]", "x.weight[model]", "y.weight[model]"]
    assert set(weights(space, np.array([0.25, 0.5, 0.75]), layout).values()) == {0.25}


def test_groups_are_free_and_may_have_names(make, layout):
    space = make(groups={"ends": ["embeddings", 0, "3", "final"], "middle": ["1-2"]})
    assert names(space)[::3] == ["ops.weight[ends]", "ops.weight[middle]"]
    found = weights(space, np.array([0.1, 0, 0, 0.9, 0, 0]), layout)
    assert {name for name, weight in found.items() if weight == 0.9} == {
        name for name in layout.tensors() if ".layers.1." in name or ".layers.2." in name
    }
    unnamed = make(groups=[["embeddings", 0, "1"], ["3", "2", "final"]])
    assert names(unnamed)[::3] == ["ops.weight[embeddings+layers 0-1]", "ops.weight[layers 2-3+final]"]


def test_modules_are_parts_of_names_as_mergekits_filters(make, layout):
    space = make(groups="model", modules=["q_proj", "norm", "lm_head", "other"])
    assert names(space)[::3] == [f"ops.weight[model, {part}]" for part in ("q_proj", "norm", "lm_head", "other")]
    point = np.repeat([0.1, 0.2, 0.3, 0.4], 3)
    for name, weight in weights(space, point, layout).items():
        first = next((at for at, part in enumerate(("q_proj", "norm", "lm_head")) if part in name), 3)
        assert weight == point[3 * first]


def test_parts_without_tensors_have_no_genes(make):
    space = make(modules=["attention", "lm_head", "other"], layers_per_group=4)
    assert names(space)[::3] == [
        "ops.weight[embeddings]",
        "ops.weight[layers 0-3, attention]",
        "ops.weight[layers 0-3, other]",
        "ops.weight[final, lm_head]",
        "ops.weight[final, other]",
    ]


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([["embeddings", "0-3"]], "space.groups: no group has final; add one that does"),
        ([["embeddings", "final", 0, 3]], "space.groups: no group has layers 1-2; add one"),
        ([["embeddings", "final", "0-2"]], "space.groups: no group has layer 3; add one"),
        ([["0-3", "embeddings", "final", 2]], "space.groups.0: layer 2 is in two groups; name it once"),
        ([["0-3"], ["embeddings", "final", "3"]], "space.groups.1: layer 3 is in two groups"),
        ({"a": ["embeddings", "0-4", "final"]}, "space.groups.a: '0-4' does not fit; the models have layers 0 to 3"),
        ({"a": ["embedding", "0-3", "final"]}, "space.groups.a: 'embedding' is not a layer; write embeddings, final"),
        ([["embeddings", "3-0", "final"]], "space.groups.0: '3-0' does not fit"),
        ([["embeddings", -1, "final"]], "space.groups.0: '-1' is not a layer"),
        ([["embeddings", "0-3", "final"], []], "space.groups.1: the group is empty; name layers, embeddings or final"),
    ],
)
def test_groups_that_do_not_fit_the_models(make, groups, message):
    with pytest.raises(RecipeError, match=re.escape(message)):
        make(groups=groups)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"groups": "model", "layers_per_group": 2}, "both define which layers share coefficients; remove one"),
        ({"groups": {"a, b": [0]}}, "has a name with one of"),
        ({"modules": ["q[", "other"]}, "has a name that no tensor can have"),
        ({"smooth": True, "method": ["ties", "slerp"], "method_scope": "layers"}, "no line between two methods; write"),
    ],
)
def test_what_no_config_says(config, message):
    with pytest.raises(ValidationError, match=message):
        CoefficientConfig(**config)


def test_a_module_that_no_tensor_has(make):
    with pytest.raises(RecipeError, match=r"no tensor's name contains 'self_atn'; did you mean .self_attn"):
        make(modules=["self_atn", "other"])


def test_methods_of_layers_follow_free_groups(make):
    config = {"method": ["task_arithmetic", "ties"], "method_scope": "layers"}
    space = make(groups={"ends": ["embeddings", 0, "3", "final"], "middle": ["1-2"]}, **config)
    assert names(space)[:2] == ["method[ends]", "method[middle]"]
    point = np.array(space.start)
    point[1] = space.genes[1].coordinate("ties")
    recipe = space.decode(point)
    assert [recipe.spec_of(part).name == "ties" for part in recipe.slices] == [False, False, True, True, False, False]


# --- lines between knots ---


def test_smooth_coefficients_are_a_mergekit_recipes_list_of_values(make, layout, models):
    """The same numbers for layers, embeddings and head as mergekit makes of ``weight: [0.2, 1.0, 0.4]``."""
    space = make(groups=[["embeddings", 0, 1], [2], [3, "final"]], smooth=True, fixed={"x.*": 0.5, "y.*": 0.5})
    experts = "".join(
        f"  - {{model: {model}, parameters: {{weight: {weight}}}}}\n"
        for model, weight in zip(list(models.values())[1:], ("[0.2, 1.0, 0.4]", 0.5, 0.5), strict=True)
    )
    recipe = mergekit_yaml.parse(
        f"merge_method: task_arithmetic\nbase_model: /m/base\ndtype: float32\nmodels:\n{experts}"
    )
    asked = {plan.name: plan.contributions[0].parameters["weight"] for plan in resolve(recipe, layout)}
    found = weights(space, np.array([0.2, 1.0, 0.4]), layout)
    final = {name: 0.4 for name in layout.final}  # mergekit takes a list's first value there
    assert found == pytest.approx({**asked, **final})
    assert space.encode(space.decode([0.2, 1.0, 0.4])) == pytest.approx([0.2, 1.0, 0.4])


def test_smooth_needs_groups_in_order(make):
    with pytest.raises(RecipeError, match=r"space\.smooth: groups of layers must follow each other"):
        make(groups=[["embeddings", 0, 2], [1, 3, "final"]], smooth=True)
    with pytest.raises(RecipeError, match=r"space\.smooth: not all layers have all of space.modules"):
        make(groups=[["embeddings", "0-1"], ["2-3", "final"]], modules=["lm_head", "other"], smooth=True)


def test_smooth_encodes_the_nearest_knots(make):
    """By least squares: a recipe with other values per layer begins at the line through them."""
    fine, coarse = make(layers_per_group=1), make(layers_per_group=2, smooth=True)
    point = np.full(fine.dimension, 0.5)
    layers = np.array([0.1, 0.5, 0.3, 0.9])
    point[3:15:3] = layers
    start, end = coarse.encode(fine.decode(point))[[3, 6]]
    slope, intercept = np.polyfit(np.arange(4) / 3, layers, 1)
    assert (start, end) == pytest.approx((intercept, intercept + slope))


# --- ties ---


def test_tied_genes_are_one(make, layout):
    space = make(tie={"strength": ["*.weight[*]"]}, layers_per_group=4)
    assert names(space) == ["strength"]
    assert set(weights(space, np.array([0.3]), layout).values()) == {0.3}
    two = make(tie=["ops.weight[*]"], layers_per_group=4, fixed={"y.*": 1.0})
    assert names(two) == ["ops.weight[*]", *(f"x.weight[{g}]" for g in ("embeddings", "layers 0-3", "final"))]


def test_ties_encode_and_begin_at_the_mean(make):
    fine, tied = make(groups="model"), make(groups="model", tie={"all": "*.weight*"})
    assert tied.encode(fine.decode([0.2, 0.4, 0.6])) == pytest.approx([0.4])
    assert tied.start == fine.start[:1]


@pytest.mark.parametrize(
    ("tie", "message"),
    [
        (["opps.*"], "space.tie.opps.*: no gene is called 'opps.*'; write a name such as ops.weight[model]"),
        (["ops.weight*"], "space.tie.ops.weight*: only ops.weight[model] is called so; write a pattern of several"),
        (["*.weight*", "*.density*", "x.*"], "space.tie.x.*: x.weight[model] is tied twice; name it in one tie"),
        (["ops.*"], "space.tie.ops.*: ops.weight[model] and ops.density[model] have different ranges"),
        ({"all": []}, "space.tie.all: there is no pattern; write a pattern of several"),
        ({"x.density[model]": "*.weight*"}, "space.tie: 'x.density[model]' is the name of another gene or empty"),
    ],
)
def test_ties_that_do_not_fit(make, tie, message):
    with pytest.raises(RecipeError, match=re.escape(message)):
        make(groups="model", method="ties", tie=tie)


# --- starts that the space cannot express ---


def written(tmp_path, recipe):
    (tmp_path / "start.yaml").write_text(mergekit_yaml.dump(recipe))
    return str(tmp_path / "start.yaml")


def test_a_start_in_the_space_needs_no_note(make, tmp_path):
    fine = make(layers_per_group=2)
    point = fine.sample(np.random.default_rng(0))
    space = make(layers_per_group=2, start=written(tmp_path, fine.decode(point)))
    assert space.start == pytest.approx(point)
    assert space.notes == ()


@pytest.mark.parametrize("masks", ["none", "on_off"])
def test_a_start_outside_the_ranges_says_how_far_off_it_is(make, tmp_path, masks):
    recipe = make(weight=[0.0, 3.0]).decode(np.full(18, 2.5))
    space = make(weight=[0.0, 1.5], masks=masks, start=written(tmp_path, recipe))
    (note,) = space.notes
    assert "begins at the nearest recipe: 27 of 27 tensors differ, by up to 1 in the weight of" in note


def test_a_start_that_is_averaged_says_how_far_off_it_is(make, tmp_path):
    fine = make()
    point = np.array(fine.start)
    point[3] = 0.9  # a weight of layer 0, where the start has 0.5
    (note,) = make(layers_per_group=2, start=written(tmp_path, fine.decode(point))).notes
    assert "12 of 27 tensors differ, by up to 0.2 in the weight of /m/" in note


def test_a_named_start_outside_the_range(make):
    (ops, *_) = make(weight=[0.5, 1.0], start="task_arithmetic").notes
    assert "task_arithmetic has 0.3 for ops, outside the range 0.5 to 1 of ops.weight[embeddings]" in ops
