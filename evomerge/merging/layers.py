"""Which source layer each output layer comes from, and the configuration that says so.

Some architectures list a property per layer in their configuration (Qwen3 and Gemma: full or sliding
attention). A merge that reorders, repeats or drops layers must carry these along: mergekit 0.1.5 keeps them
positional, which gives a moved layer another layer's attention, and fails to save when the depth changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from transformers import PretrainedConfig

from search_spaces.recipe import Recipe

LayerOrder: TypeAlias = tuple[tuple[str, int], ...]
"""For each output layer, the model (by reference) and the layer in it that decide its kind."""


def layer_order(recipe: Recipe) -> LayerOrder:
    """Return where the layers come from: the base where it is a source, else the first source."""
    order: list[tuple[str, int]] = []
    for part in recipe.slices:
        base = recipe.base_of(part)
        leader = next((source for source in part.sources if source.model == base), part.sources[0])
        order.extend((leader.model, leader.start + index) for index in range(part.num_layers))
    if recipe.path is None:
        return tuple(order)
    return tuple(order[stop.layer] if stop.model is None else (stop.model, stop.layer) for stop in recipe.path)


def reordered(config: PretrainedConfig, order: LayerOrder, configs: Mapping[str, PretrainedConfig]) -> PretrainedConfig:
    """Return `config` for the layers of `order`: their number, and every list that has an entry per layer.

    Parameters
    ----------
    config
        The donor's configuration; not changed.
    order
        The output's layers.
    configs
        Configurations by model reference, for all models that `order` names.
    """
    values = config.to_dict()
    for name in per_layer_lists(config):
        values[name] = [_entry(configs[model], name, layer, values[name]) for model, layer in order]
    values[config.attribute_map.get("num_hidden_layers", "num_hidden_layers")] = len(order)
    return type(config).from_dict(values)


def per_layer_lists(config: PretrainedConfig) -> tuple[str, ...]:
    """Return the names of lists with an entry per layer: ``layer_types``, ``no_rope_layers``."""
    return tuple(
        name
        for name, value in config.to_dict().items()
        if name.endswith(("layer_types", "_layers"))
        and isinstance(value, (list, tuple))
        and len(value) == config.num_hidden_layers
    )


def _entry(config: PretrainedConfig, name: str, layer: int, fallback: list[Any]) -> Any:
    own = getattr(config, name, None) or fallback
    return own[layer] if layer < len(own) else fallback[-1]
