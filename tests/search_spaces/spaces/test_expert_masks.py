"""Genes that turn experts on and off, or subtract them."""

import numpy as np
import pytest

from search_spaces.recipes.errors import RecipeError
from search_spaces.recipes.resolve import resolve
from search_spaces.spaces.layer_coefficients import CoefficientConfig
from search_spaces.spaces.registry import build_space


@pytest.fixture
def make(context):
    return lambda **config: build_space(CoefficientConfig(groups="model", **config), context)


def weights(space, point, layout):
    """Return the weights of the experts in the first and the last tensor."""
    plans = resolve(space.decode(point), layout)
    return [
        [c.parameters["weight"] for c in plan.contributions if "/base" not in c.model]
        for plan in plans[:: len(plans) - 1]
    ]


def test_masks_come_first_and_multiply_the_weights(make, layout):
    space = make(masks="signed")
    assert [gene.name for gene in space.genes[:4]] == ["ops.mask", "x.mask", "y.mask", "ops.weight[model]"]
    masks = [gene.coordinate(option) for gene, option in zip(space.genes, ("minus", "off", "plus"), strict=False)]
    assert weights(space, [*masks, 0.5, 0.6, 0.7], layout) == [[-0.5, 0.0, 0.7]] * 2


def test_an_expert_that_is_off_keeps_its_inactive_weight(make):
    space = make(masks="on_off")
    point = np.array([space.genes[0].coordinate("off"), *space.start[1:3], 0.5, 0.6, 0.7])
    assert space.active(point).tolist() == [True, True, True, False, True, True]
    assert space.decode(point).hash == space.decode([*point[:3], 0.9, 0.6, 0.7]).hash


def test_all_coefficients_of_an_expert_that_is_off_are_inactive(make):
    space = make(masks="on_off", method="della", ranges={"epsilon": [0.0, 0.2]})
    point = np.array([space.genes[0].coordinate("off"), *space.start[1:]])
    off = [gene.name for gene, active in zip(space.genes, space.active(point), strict=True) if not active]
    assert off == ["ops.weight[model]", "ops.density[model]", "ops.epsilon[model]"]
    assert space.decode(point).hash == space.decode(np.where(space.active(point), point, space.low)).hash


def test_a_subtracted_expert_with_a_negative_weight_is_encoded_as_it_was(make):
    space = make(masks="signed", modules=["mlp", "other"])
    point = [space.genes[0].coordinate("minus"), *space.start[1:3], 0.55, 0.5, 0.5, -0.5, 0.5, 0.5]
    recipe = space.decode(np.array(point))
    assert space.decode(space.encode(recipe)).hash == recipe.hash


def test_masks_can_be_fixed(make, layout):
    space = make(masks="signed", fixed={"ops.mask": "minus", "x.mask": False, "y.weight*": 0.5})
    assert [gene.name for gene in space.genes] == ["y.mask", "ops.weight[model]", "x.weight[model]"]
    assert weights(space, [space.start[0], 0.2, 0.3], layout) == [[-0.2, 0.0, 0.5]] * 2
    with pytest.raises(RecipeError, match=r"space\.fixed: all experts are off, so no other gene has an effect"):
        make(masks="on_off", fixed={"*.mask": False})
    with pytest.raises(RecipeError, match=r"space.fixed: minus is not in ops.mask's range; write one of on, off"):
        make(masks="on_off", fixed={"ops.mask": "minus"})
    with pytest.raises(RecipeError, match=r"some is not in ops.weight\[model\]'s range; write one from -0.5 to 1.5"):
        make(fixed={"ops.weight[model]": "some"})


def test_a_range_without_zero_can_be_turned_off(make, layout):
    space = make(masks="on_off", weight={"low": 0.5, "high": 1.0})
    off = space.genes[0].coordinate("off")
    assert weights(space, [off, off, off, 0.5, 0.6, 0.7], layout) == [[0.0] * 3] * 2


def test_averages_are_divided_over_the_experts_that_are_on(make, layout):
    space = make(masks="on_off", method="linear")
    off = space.genes[0].coordinate("off")
    point = [off, *space.start[1:3], 0.0, 0.9, 0.3, 0.1]  # weights of base, ops, x, y
    assert weights(space, point, layout)[0] == pytest.approx([0.0, 0.75, 0.25])


def test_masks_of_groups(context, layout):
    config = CoefficientConfig(groups=[["embeddings", "0-1"], ["2-3", "final"]], masks="on_off", mask_scope="layers")
    space = build_space(config, context)
    assert [gene.name for gene in space.genes[:6:3]] == [
        "ops.mask[embeddings+layers 0-1]",
        "ops.mask[layers 2-3+final]",
    ]
    point = np.array(space.start)
    point[0] = space.genes[0].coordinate("off")
    assert [own[0] for own in weights(space, point, layout)] == [0.0, 0.5]


def test_encode_finds_who_is_off_and_who_is_subtracted(make):
    space, plain = make(masks="signed", weight=[0.0, 1.0]), make(weight=[-1.0, 1.0])
    point = space.encode(plain.decode([-0.5, 0.0, 0.25]))
    assert [gene.value(x) for gene, x in zip(space.genes[:3], point, strict=False)] == ["minus", "off", "plus"]
    assert space.decode(point).hash == plain.decode([-0.5, 0.0, 0.25]).hash


def test_a_space_without_weights_has_nothing_to_turn_off(context):
    two = dict(list(context.models.items())[:2])
    config = CoefficientConfig(method="slerp", masks="on_off")
    with pytest.raises(RecipeError, match=r"space\.masks: no weight is searched that a mask could turn off; remove it"):
        build_space(config, type(context)(two, context.layout, context.sizes))
