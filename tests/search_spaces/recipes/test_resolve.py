"""mergekit 0.1.5's semantics; numbers measured with it, on models whose weights are all 0 or all 1."""

import pytest

from search_spaces.recipes import mergekit_yaml
from search_spaces.recipes.errors import RecipeError
from search_spaces.recipes.layout import ModelLayout
from search_spaces.recipes.resolve import resolve, unused_filters

EDGES = ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")


def weights(recipe, layout, model="a", parameter="weight"):
    """Return the value for each output tensor."""
    return {
        plan.name: next(c.parameters.get(parameter) for c in plan.contributions if c.model == model)
        for plan in resolve(recipe, layout)
    }


def by_position(recipe, layout, part="self_attn.q_proj.weight", **which):
    """Return the values of the embeddings, of one tensor per layer, of the norm and of the head."""
    found = weights(recipe, layout, **which)
    layers = [found[f"model.layers.{layer}.{part}"] for layer in range(4)]
    return [found[EDGES[0]], *layers, found[EDGES[1]], found[EDGES[2]]]


def task_arithmetic(**fields):
    return mergekit_yaml.build({"merge_method": "task_arithmetic", "base_model": "base", **fields})


def sliced(*slices, **fields):
    """Return a recipe from (weight, start, end) triples."""
    parts = [
        {
            "sources": [
                {"model": "a", "layer_range": [start, end], "parameters": {"weight": weight}},
                {"model": "base", "layer_range": [start, end]},
            ]
        }
        for weight, start, end in slices
    ]
    return task_arithmetic(slices=parts, **fields)


def test_embeddings_norm_and_head_take_the_first_of_a_gradient(layout):
    recipe = task_arithmetic(models=[{"model": "a", "parameters": {"weight": [0.1, 0.4, 0.6, 0.9]}}])
    assert by_position(recipe, layout) == pytest.approx([0.1, 0.1, 0.4, 0.6, 0.9, 0.1, 0.1])


def test_a_single_layer_takes_the_last_of_a_gradient(layout):
    gradient = [0.2, 0.8]
    recipe = sliced((gradient, 0, 1), (0.5, 1, 3), (gradient, 3, 4))
    assert by_position(recipe, layout) == [0.2, 0.8, 0.5, 0.5, 0.8, 0.2, 0.2]


def test_slices_without_layers_address_embeddings_norm_and_head(layout):
    tail = [{"filter": "norm", "value": 0.91}, {"value": 0.33}]
    recipe = sliced((0.11, 0, 0), (0.2, 0, 1), (0.4, 1, 2), (0.6, 2, 3), (0.8, 3, 4), (tail, 4, 4))
    assert by_position(recipe, layout) == [0.11, 0.2, 0.4, 0.6, 0.8, 0.91, 0.33]


def test_filters_of_per_model_parameters_see_the_source(layout):
    setting = [{"filter": "layers.3.", "value": 0.9}, {"value": 0.1}]
    recipe = sliced((setting, 3, 4), (setting, 0, 3))
    assert by_position(recipe, layout) == [0.1, 0.9, 0.1, 0.1, 0.1, 0.1, 0.1]
    first = resolve(recipe, layout)[1]
    assert first.name == "model.layers.0.input_layernorm.weight"
    assert first.contributions[0].tensor == "model.layers.3.input_layernorm.weight"
    assert first.base.tensor == "model.layers.3.input_layernorm.weight"


def test_filters_that_are_part_of_no_name(layout):
    """Names of the models and of a deeper result are those that filters are compared with, in all scopes."""

    def conditions(*filters):
        return {"weight": [*({"filter": part, "value": 0.1} for part in filters), {"filter": "*", "value": 0.5}]}

    expert, base = ({"model": model, "layer_range": [0, 4]} for model in ("a", "base"))
    slices = [
        {"sources": [{**expert, "parameters": conditions("mlp", "self_atn")}, base]},
        {"sources": [expert, base], "parameters": conditions("layers.7.", "layers.8.")},
    ]
    recipe = task_arithmetic(slices=slices, parameters=conditions("lm_head", "block_sparse_moe", "self_atn"))
    assert unused_filters(recipe, layout) == ("block_sparse_moe", "self_atn", "layers.8.")


def test_filters_of_shared_parameters_see_the_output(layout):
    recipe = sliced(
        (1.0, 3, 4),
        (1.0, 0, 3),
        parameters={"lambda": [{"filter": "layers.3.", "value": 0.9}, {"value": 0.1}]},
    )
    scales = {plan.name: plan.parameters["lambda"] for plan in resolve(recipe, layout)}
    assert scales["model.layers.0.mlp.up_proj.weight"] == 0.1
    assert scales["model.layers.3.mlp.up_proj.weight"] == 0.9


def test_the_narrowest_scope_with_a_match_decides(layout):
    recipe = task_arithmetic(
        parameters={"weight": 0.1},
        slices=[
            {
                "parameters": {"weight": [{"filter": "mlp", "value": 0.2}]},
                "sources": [
                    {
                        "model": "a",
                        "layer_range": [0, 4],
                        "parameters": {"weight": [{"filter": "mlp.up", "value": 0.3}]},
                    },
                    {"model": "b", "layer_range": [0, 4]},
                    {"model": "base", "layer_range": [0, 4]},
                ],
            }
        ],
    )
    a, b = weights(recipe, layout, "a"), weights(recipe, layout, "b")
    layer = "model.layers.2."
    assert [a[layer + n] for n in ("mlp.up_proj.weight", "mlp.down_proj.weight", "input_layernorm.weight")] == [
        0.3,
        0.2,
        0.1,
    ]
    assert [b[layer + n] for n in ("mlp.up_proj.weight", "input_layernorm.weight")] == [0.2, 0.1]


def test_module_scope_lies_between_slice_and_recipe(layout):
    recipe = task_arithmetic(
        parameters={"weight": 0.1, "lambda": 0.5},
        modules={
            "default": {
                "parameters": {"weight": [{"filter": "mlp", "value": 0.2}]},
                "models": [{"model": "a"}, {"model": "b", "parameters": {"weight": 0.7}}],
            }
        },
    )
    assert weights(recipe, layout)["model.layers.0.mlp.up_proj.weight"] == 0.2
    assert weights(recipe, layout)["model.norm.weight"] == 0.1
    assert set(weights(recipe, layout, "b").values()) == {0.7}


def test_defaults_and_parameters_without_effect(layout):
    recipe = mergekit_yaml.build(
        {
            "merge_method": "ties",
            "base_model": "base",
            "parameters": {"weight": 1, "int8_mask": True},
            "models": [{"model": "a"}],
        }
    )
    plan = resolve(recipe, layout)[0]
    assert plan.parameters == {"normalize": True, "lambda": 1.0, "rescale": False, "whole_model": False}
    assert plan.contributions[0].parameters == {"weight": 1.0, "density": 1.0}


def test_the_base_is_apart_and_sources_keep_their_order(layout):
    recipe = task_arithmetic(parameters={"weight": 1.0}, models=[{"model": "b"}, {"model": "base"}, {"model": "a"}])
    for plan in resolve(recipe, layout):
        assert [c.model for c in plan.contributions] == ["b", "a"]
        assert plan.base.model == "base"
        assert plan.base.tensor == plan.name


def test_the_base_may_differ_by_slice(layout):
    recipe = task_arithmetic(
        parameters={"weight": 1.0},
        slices=[
            {"sources": [{"model": m, "layer_range": [0, 2]} for m in ("a", "base")]},
            {"sources": [{"model": m, "layer_range": [2, 4]} for m in ("a", "base")], "base_model": "a"},
        ],
    )
    plans = resolve(recipe, layout)
    assert (plans[0].base.model, plans[-1].base.model) == ("base", "a")
    assert plans[-1].contributions[0].model == "base"
    assert resolve(recipe.canonical(), layout) == plans


def test_linear_weighs_the_base_as_any_source(layout):
    recipe = mergekit_yaml.build(
        {
            "merge_method": "linear",
            "base_model": "base",
            "models": [{"model": m, "parameters": {"weight": w}} for m, w in (("base", 0.25), ("a", 0.75))],
        }
    )
    plan = resolve(recipe, layout)[0]
    assert [(c.model, c.parameters["weight"]) for c in plan.contributions] == [("base", 0.25), ("a", 0.75)]
    assert plan.base is None


def test_slerp_goes_from_the_base_to_the_other(layout):
    recipe = mergekit_yaml.build(
        {
            "merge_method": "slerp",
            "base_model": "base",
            "parameters": {"t": [{"filter": "mlp", "value": [0.0, 1.0]}, {"value": 0.5}]},
            "slices": [{"sources": [{"model": m, "layer_range": [0, 4]} for m in ("a", "base")]}],
        }
    )
    plans = {plan.name: plan for plan in resolve(recipe, layout)}
    assert plans["model.layers.3.mlp.up_proj.weight"].parameters["t"] == 1.0
    assert plans["model.norm.weight"].parameters["t"] == 0.5
    assert plans["model.norm.weight"].base.model == "base"
    assert [c.model for c in plans["model.norm.weight"].contributions] == ["a"]


def test_passthrough_repeats_skips_and_scales(layout):
    recipe = mergekit_yaml.build(
        {
            "merge_method": "passthrough",
            "base_model": "a",
            "slices": [
                {"sources": [{"model": "a", "layer_range": [0, 2]}]},
                {
                    "sources": [
                        {
                            "model": "b",
                            "layer_range": [1, 2],
                            "parameters": {"scale": [{"filter": "o_proj", "value": 0.5}]},
                        }
                    ]
                },
                {"sources": [{"model": "b", "layer_range": [4, 4]}]},
            ],
        }
    )
    plans = {plan.name: plan.contributions[0] for plan in resolve(recipe, layout)}
    assert len(plans) == 1 + 3 * 6 + 2
    assert plans["model.layers.2.self_attn.o_proj.weight"].parameters == {"scale": 0.5}
    assert plans["model.layers.2.self_attn.o_proj.weight"].tensor == "model.layers.1.self_attn.o_proj.weight"
    assert plans["model.layers.2.mlp.up_proj.weight"].parameters == {}
    assert (plans["model.embed_tokens.weight"].model, plans["lm_head.weight"].model) == ("a", "b")


def test_output_order_and_names(layout):
    recipe = task_arithmetic(parameters={"weight": 1.0}, models=[{"model": "a"}])
    assert tuple(plan.name for plan in resolve(recipe, layout)) == layout.tensors()


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (sliced((1.0, 2, 5)), r"layer_range: \[2, 5\] is outside of a; end it at 4"),
        (sliced(([{"filter": "mlp", "value": 1.0}], 0, 4)), "weight: model.embed_tokens.weight of a has"),
        (
            mergekit_yaml.build({"merge_method": "linear", "base_model": "base", "models": [
                {"model": "a", "parameters": {"weight": 1.0}}
            ]}),
            "weight: model.embed_tokens.weight of base has no value; write weight: NUMBER",
        ),
        (
            mergekit_yaml.build({"merge_method": "slerp", "base_model": "base", "models": [{"model": "a"}]}),
            "t: model.embed_tokens.weight has no value; write t: NUMBER",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_resolved(layout, recipe, message):
    with pytest.raises(RecipeError, match=message):
        resolve(recipe, layout)


def test_layers_of_different_kinds_do_not_mix(layout):
    from dataclasses import replace

    hybrid = replace(layout, layers=(layout.layers[0][:3], *layout.layers[1:]))
    recipe = task_arithmetic(
        parameters={"weight": 1.0},
        slices=[{"sources": [{"model": "a", "layer_range": [0, 1]}, {"model": "base", "layer_range": [1, 2]}]}],
    )
    with pytest.raises(RecipeError, match="layers 0 and 1 have different tensors; merge layers of one kind"):
        resolve(recipe, hybrid)


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "dare_ties", "breadcrumbs", "della", "sce", "ram"])
def test_the_base_alone_is_the_base(method: str, layout: ModelLayout) -> None:
    recipe = mergekit_yaml.build({"merge_method": method, "base_model": "base", "models": [{"model": "base"}]})
    plans = resolve(recipe, layout)
    assert [plan.name for plan in plans] == list(layout.tensors())
    assert {(plan.method, plan.base, plan.contributions[0].model) for plan in plans} == {("passthrough", None, "base")}


def test_an_optional_base_must_be_a_source_of_every_slice() -> None:
    data = {
        "merge_method": "nuslerp",
        "base_model": "base",
        "parameters": {"weight": 0.5},
        "slices": [{"sources": [{"model": name, "layer_range": [0, 1]} for name in ("a", "b")]}],
    }
    with pytest.raises(RecipeError, match="the base is not among the sources"):
        mergekit_yaml.build(data)
