"""Per-layer properties of the configuration follow the layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from evomerge.merging.layers import layer_order, per_layer_lists, reordered
from search_spaces.recipe import Recipe, Slice, Source
from search_spaces.settings import constant

PER_LAYER = {
    "qwen2": ("layer_types",),
    "qwen3": ("layer_types",),
    "gemma2": ("layer_types",),
    "gemma3": ("layer_types",),
}


def weighted(model: str, start: int, end: int) -> Source:
    return Source(model, (start, end), (("weight", constant(0.5)),))


def test_order_follows_the_base_where_it_is_a_source() -> None:
    recipe = Recipe(
        "linear",
        (
            Slice((weighted("a", 1, 3), weighted("base", 0, 2))),
            Slice((weighted("a", 0, 1), weighted("b", 3, 4))),
        ),
        base_model="base",
    )
    assert layer_order(recipe) == (("base", 0), ("base", 1), ("a", 0))


def test_lists_per_layer_are_found_by_name(configs: dict[str, Callable[[], Any]]) -> None:
    for name, build in configs.items():
        assert per_layer_lists(build()) == PER_LAYER.get(name, ()), name


def test_a_list_of_token_ids_is_not_per_layer(configs: dict[str, Callable[[], Any]]) -> None:
    config = configs["llama"]()
    config.eos_token_id = [1, 2, 3, 4]
    found = reordered(config, (("m", 0), ("m", 1)), {"m": config})
    assert found.eos_token_id == [1, 2, 3, 4]


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3", "gpt2"])
def test_reordered_config(configs: dict[str, Callable[[], Any]], name: str) -> None:
    config, other = configs[name](), configs[name]()
    before = config.to_dict()
    if name in PER_LAYER:
        other.layer_types = ["full_attention"] * 4
    order = (("m", 2), ("m", 0), ("n", 0), ("m", 3), ("m", 1), ("m", 1))
    found = reordered(config, order, {"m": config, "n": other})
    assert found.num_hidden_layers == 6
    assert config.to_dict() == before
    if name in PER_LAYER:
        kinds = config.layer_types
        assert found.layer_types == [kinds[2], kinds[0], "full_attention", kinds[3], kinds[1], kinds[1]]
