"""The data-flow space's network of scales: its factors, and the genes of given factors."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from search_spaces.recipes import mergekit_yaml
from search_spaces.recipes.baselines import source_recipe
from search_spaces.recipes.errors import RecipeError
from search_spaces.recipes.fields import PathLayer
from search_spaces.recipes.layer_path import path_recipe
from search_spaces.recipes.layout import ModelLayout
from search_spaces.spaces.context import SpaceContext
from search_spaces.spaces.data_flow import DataFlowConfig, ScaleNetwork, ScaleRange

LAYER = ("input_layernorm.w", "self_attn.o_proj.w", "post_attention_layernorm.w", "mlp.down_proj.w")
LAYOUT = ModelLayout(("embed",), (LAYER,) * 4, "layers.{}.", ("norm",), None, "self_attn", "mlp")
CONTEXT = SpaceContext({"base": "/m/base", "a": "/m/a"}, LAYOUT, {})
PATH = [("base", 0), ("base", 1), ("a", 1), ("a", 2), ("base", 3)]
RANGES = st.sampled_from([(0.5, 1.5), (1.0, 1.2), (0.8, 1.0), (0.01, 100.0), (0.999, 1.001)])


def network(hidden=8, low=0.5, high=1.5):
    return ScaleNetwork(["base", "a"], 4, hidden, ScaleRange(low=low, high=high), 8)


def space(**config):
    return DataFlowConfig(scales="network", **config).build(CONTEXT)


@settings(max_examples=15)
@given(st.integers(1, 20), RANGES, st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_factors_are_bounded_and_found_again(hidden, bounds, size, seed):
    rng, subject = np.random.default_rng(seed), network(hidden, *bounds)
    path = [("base", 0), *((("base", "a")[m], int(at)) for m, at in rng.integers((2, 4), size=(6, 2))), ("base", 3)]
    factors = subject.factors(size * rng.uniform(-1, 1, hidden + 1), path)
    assert factors.shape == (7,) and (bounds[0] <= factors).all() and (factors <= bounds[1]).all()
    genes = subject.genes_of(factors, path)
    assert np.abs(genes).max() <= 1 and np.array_equal(subject.factors(genes, path), factors)


def test_zeros_are_factors_of_one_and_a_bias_is_one_factor_for_all():
    subject = network()
    assert (subject.factors(np.zeros(9), PATH) == 1).all()
    assert not subject.genes_of(np.ones(4), PATH).any()
    bias = np.append(0.5, np.zeros(8))
    assert np.allclose(subject.factors(bias, PATH), 1.5**0.5)
    assert np.allclose(subject.factors(-bias, PATH), 0.5**0.5)
    assert np.array_equal(subject.factors(subject.genes_of(np.full(4, 1.25), PATH), PATH).round(3), np.full(4, 1.25))


def test_factors_depend_on_layers_models_and_the_step():
    genes = np.random.default_rng(0).uniform(-0.2, 0.2, 9)
    twice = network().factors(genes, [("base", 0), ("a", 1), ("base", 0), ("a", 1), ("a", 2), ("base", 2)])
    assert len(set(twice.tolist())) == 5


def test_the_order_of_the_base_has_the_genes_of_the_start():
    subject = space()
    assert subject.dimension == len(subject.slots) + 9
    found = subject.encode(subject.decode(subject.start))
    assert np.array_equal(found, subject.start)
    assert np.array_equal(subject.encode(source_recipe("/m/base", 4)), subject.start)


def test_how_far_off_other_factors_are_is_told(tmp_path):
    """One hidden unit cannot tell these transitions apart as the recipe does; 32 can, to a step of the output."""
    by_slot = DataFlowConfig(scales="slot").build(CONTEXT)
    point = np.array(by_slot.start)
    point[by_slot._factors] = np.linspace(0.6, 1.4, len(point[by_slot._factors]))
    file = tmp_path / "start.yaml"
    file.write_text(mergekit_yaml.dump(by_slot.decode(point)))
    paths = {}
    for hidden in (1, 32):
        subject = space(hidden=hidden, start=str(file))
        assert "begins at the nearest recipe: " in subject.notes[0]
        paths[hidden] = [layer.scale for layer in subject.path(subject.start)]
    expected = [layer.scale for layer in by_slot.path(point)]
    assert np.allclose(paths[32], expected, rtol=1e-3) and not np.allclose(paths[1], expected, rtol=1e-2)


def test_hidden_units_without_a_network_are_refused():
    with pytest.raises(ValidationError, match="scales: slot has no network; write scales: network, or remove hidden"):
        DataFlowConfig(hidden=4)


@pytest.mark.parametrize("scales", ["none", "slot", "network"])
def test_a_layer_that_is_scaled_away_is_refused(scales):
    path = [PathLayer("/m/base", 0), PathLayer("/m/base", 1, 0.0), PathLayer("/m/base", 3)]
    with pytest.raises(RecipeError, match=r"scales base\.1 by 0 or less, and factors are above 0; leave the layer out"):
        DataFlowConfig(scales=scales).build(CONTEXT).encode(path_recipe(path, "/m/base", 4))
