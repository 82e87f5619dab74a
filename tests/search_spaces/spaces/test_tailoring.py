"""Models with fewer layers: which ones stay, what they are made of, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest

from search_spaces.recipes import mergekit_export, mergekit_yaml
from search_spaces.recipes.baselines import source_recipe
from search_spaces.recipes.errors import RecipeError
from search_spaces.recipes.resolve import difference, resolve
from search_spaces.spaces.depth.tailoring import TailoringConfig

COPIED = """
merge_method: passthrough
base_model: /m/base
dtype: float32
slices:
- sources: [{model: MODEL, layer_range: RANGE}]
"""
SUMMED = """
merge_method: METHOD
base_model: /m/base
dtype: float32
parameters: {weight: 0.5}
slices:
- sources: [{model: /m/base, layer_range: [0, 0]}]
  evomerge: {merge_method: passthrough}
- sources:
  - {model: MODEL, layer_range: [0, 3]}
  - {model: /m/x, layer_range: [0, 3]}
  - {model: /m/base, layer_range: [0, 3]}
  parameters: {weight: 0.5}
  evomerge: {merge_method: METHOD}
- sources: [{model: /m/base, layer_range: [4, 4]}]
  evomerge: {merge_method: passthrough}
"""


@pytest.fixture
def built(context):
    return lambda **config: TailoringConfig(**config).build(context)


def point_of(space, **values):
    """Return the start with some genes at a value."""
    point = np.array(space.start)
    for at, gene in enumerate(space.genes):
        if gene.name in values:
            point[at] = gene.coordinate(values[gene.name])
    return point


def layers(recipe):
    """Return the layer and the sources of each slice between the ends."""
    return [(part.sources[0].start, [source.model for source in part.sources]) for part in recipe.slices[1:-1]]


def test_a_quarter_goes_before_the_last_layer_unless_asked_otherwise(built):
    space = built()
    assert layers(space.decode(space.start)) == [(0, ["/m/base"]), (1, ["/m/base"]), (3, ["/m/base"])]
    assert [layer for layer, _ in layers(built(remove=3).decode(built(remove=3).start))] == [3]


def test_bits_copy_a_layer_or_sum_task_vectors_over_the_base(built, layout):
    space = built(anchor="x", models=("base", "ops", "x"))
    on = {"ops[layer 0]": "on", "base[layer 1]": "on", "ops[layer 3]": "on", "x[layer 3]": "on", "scale[layer 3]": 0.7}
    recipe = space.decode(point_of(space, **on))
    assert layers(recipe) == [(0, ["/m/ops"]), (1, ["/m/base"]), (3, ["/m/ops", "/m/x", "/m/base"])]
    plans = {plan.name: plan for plan in resolve(recipe, layout)}
    assert plans["model.embed_tokens.weight"].contributions[0].model == "/m/x"
    merged = plans["model.layers.2.mlp.up_proj.weight"]
    assert merged.method == "task_arithmetic"
    assert merged.base.tensor == "model.layers.3.mlp.up_proj.weight"
    assert [part.parameters["weight"] for part in merged.contributions] == [0.7, 0.7]


def test_mergekit_gets_copies_and_sums_as_sums(built, layout):
    space = built(anchor="x")
    recipe = space.decode(point_of(space, **{"ops[layer 0]": "on", "ops[layer 3]": "on", "y[layer 3]": "on"}))
    assert mergekit_export.obstacles(recipe) == ()
    written, given_up = mergekit_export.rounded(recipe)
    assert not given_up
    assert [spec.name for spec in written.specs] == ["task_arithmetic"]
    assert "evomerge" not in mergekit_yaml.dump(written)
    plans = {plan.name: plan for plan in resolve(written, layout)}
    copy = plans["model.layers.1.mlp.up_proj.weight"]
    assert [(part.model, part.parameters["weight"]) for part in copy.contributions] == [("/m/x", 1.0)]


def test_the_number_of_layers_can_be_a_gene(built):
    space = built(remove=(1, 3))
    lengths = {len(layers(space.decode(point_of(space, remove=count)))) for count in (1, 2, 3)}
    assert lengths == {1, 2, 3}
    assert all(gene.name != "remove" for gene in built(remove=2).genes)


def test_the_share_of_weights_says_how_many_layers_go(built, context):
    sizes, whole = context.sizes, sum(context.sizes.values())
    for share in (0.5, 0.6, 0.8):
        space = built(max_parameters=share)
        rng = np.random.default_rng(0)
        for _ in range(5):
            left = {part.sources[0].start for part in space.decode(space.sample(rng)).slices[1:-1]}
            dropped = [name for name in sizes if any(f"layers.{at}." in name for at in set(range(4)) - left)]
            assert whole - sum(sizes[name] for name in dropped) <= share * whole
    assert built(max_parameters=0.6, remove=(0, 3)).fewest == built(max_parameters=0.6).fewest > 0
    smallest = replace(context, sizes={**sizes, "model.layers.2.mlp.up_proj.weight": 1})
    assert TailoringConfig(max_parameters=0.8).build(smallest).fewest >= built(max_parameters=0.8).fewest


def test_what_has_too_many_layers_falls_short(built, models, layout):
    space = built(remove=(1, 3))
    assert space.shortfall(source_recipe(models["ops"], layout)) == "4 layers, where the most are 3,"
    assert space.shortfall(space.decode(space.start)) is None


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"remove": 4}, "space.remove: the models have 4 layers and one must stay; write at most 3"),
        ({"models": ("base",), "remove": 0}, "nothing is removed and nothing merged; write remove: 1 or more"),
        ({"anchor": "opz"}, "space.anchor: there is no model 'opz'; did you mean 'ops'?"),
        ({"models": ("z1",)}, "space.models: there is no model 'z1'; use one of base, ops, x, y"),
        ({"max_parameters": 0.1}, "cannot be met: with one layer left, .* remain; write at least 0"),
        (
            {"max_parameters": 0.5, "remove": 1},
            "needs 3 of 4 layers removed, and space.remove allows 1; write remove: 3",
        ),
    ],
)
def test_what_cannot_be_is_refused(built, config, message):
    with pytest.raises(RecipeError, match=message):
        built(**config)


@pytest.mark.parametrize("config", [{"remove": [2, 2]}, {"scale": [1, 0]}, {"scale": [0, 11]}])
def test_ranges_are_ranges(config):
    with pytest.raises(ValueError, match="is not a range"):
        TailoringConfig(**config)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (COPIED.replace("MODEL", "/m/base").replace("RANGE", "[0, 4]"), "has 4 layers, the space allows 3 to 3"),
        (COPIED.replace("MODEL", "/m/x").replace("RANGE", "[0, 3]"), "embeddings and head are not those of /m/base"),
        (SUMMED.replace("METHOD", "ties").replace("MODEL", "/m/ops"), "merges layer 0 by ties"),
        (SUMMED.replace("METHOD", "task_arithmetic").replace("MODEL", "/m/z"), "use only /m/base, /m/ops, /m/x"),
    ],
)
def test_recipes_of_other_spaces_have_no_genotype(built, recipe, message):
    with pytest.raises(RecipeError, match=message):
        built().encode(mergekit_yaml.parse(recipe))


def test_a_weight_outside_of_the_range_is_refused(built, layout):
    recipe = SUMMED.replace("METHOD", "task_arithmetic").replace("MODEL", "/m/ops")
    space = built(scale=(0.6, 1.0))
    with pytest.raises(RecipeError, match=r"weight 0.5 is outside \[0.6, 1.0\]; set space.scale"):
        space.encode(mergekit_yaml.parse(recipe))
    whole = built()
    assert (
        difference(whole.decode(whole.encode(mergekit_yaml.parse(recipe))), mergekit_yaml.parse(recipe), layout) is None
    )


def test_mutants_put_a_removed_layer_back(built):
    space, rng = built(models=("base",), remove=2), np.random.default_rng(0)
    assert all(space.decode(space.mutate(space.start, rng)).hash != space.decode(space.start).hash for _ in range(10))
    flat = np.full(space.dimension, 0.5)
    assert all(space.decode(space.mutate(flat, rng)).hash != space.decode(flat).hash for _ in range(10))
