"""Which source layer each output layer comes from, and the configuration that says so.

Some architectures state in their configuration what kind each layer is: by a list with an entry per layer (Qwen3 and
Gemma: full or sliding attention), by a list of the layers of one kind (Qwen-MoE: ``mlp_only_layers``), or by a rule
over layer numbers (DeepSeek: ``first_k_dense_replace``). When a merge reorders, repeats or drops layers, these settings
must move with them. mergekit 0.1.5 leaves them in place, which gives a moved layer another layer's attention, and fails
to save when the depth changes. Moves that a configuration cannot express are refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from evomerge.merging.sources.architecture import layout_of
from search_spaces.recipes.errors import RecipeError
from search_spaces.recipes.layout import ModelLayout
from search_spaces.recipes.recipe import Recipe

if TYPE_CHECKING:
    from transformers import PretrainedConfig


LayerOrder: TypeAlias = tuple[tuple[str, int], ...]
"""For each output layer: the reference of a model and the number of its layer, which decide the output layer's kind."""

Values: TypeAlias = dict[str, Any]
"""A configuration as plain data."""

# All names come from the configurations of decoder-only models in transformers 5.
_PER_LAYER = re.compile(
    r"(?!mtp_).*(layer_types|layers_block_type|_layers|_per_layer|layer_rope_theta|indexer_types|sparsity_pattern)"
    r"|sliding_windows|swiglu_limits(_shared)?|intermediate_size|num_experts|moe_topk|num_(attention|key_value)_heads"
)
_NUMBERS = (  # lists of the numbers of all layers of one kind
    "attn_layer_indices",
    "cross_attention_layers",
    "local_layer_ids",
    "mlp_only_layers",
    "moe_layers",
    "rope_scaling_layers",
)
_FIRST = ("first_k_dense_replace", "num_dense_layers")  # number of layers at the beginning without experts
_DEPTHS = ("num_blocks",)  # the number of layers, stated once more (xLSTM)
_CYCLES = ("block_types",)  # kinds that repeat until there is one for each layer (RecurrentGemma)
_BY_PLACE = {
    "scale_attn_by_inverse_layer_idx": "attention is divided by the layer's number",
    "num_kv_shared_layers": "the last layers use the keys and values of earlier ones",
    "kv_source_layers": "layers use the keys and values of earlier ones",
    "hidden_size_per_layer_input": "each layer reads its own part of the embeddings",
    "ple_layer_ids": "layers read embeddings that belong to their numbers",
}
_MODELS_BY_PLACE = {
    "diffllama": "the amount that its attention subtracts depends on the layer's number",
    "minimax": "the decay of its attention depends on the layer's number",
    "zamba": "its layers share attention blocks",
    "zamba2": "its layers share attention blocks",
}


def layer_order(recipe: Recipe) -> LayerOrder:
    """Return where the output's layers come from: from the base where it is a source, else from the first source."""
    order: list[tuple[str, int]] = []
    for part in recipe.slices:
        base = recipe.base_of(part)
        leader = next((source for source in part.sources if source.model == base), part.sources[0])
        order.extend((leader.model, leader.start + index) for index in range(part.num_layers))
    if recipe.path is None:
        return tuple(order)
    return tuple(order[step.layer] if step.model is None else (step.model, step.layer) for step in recipe.path)


def is_in_place(recipe: Recipe, layers: int) -> bool:
    """Whether the layers of a recipe, written out in full, are numbers 0 … `layers` − 1 of the models, in order."""
    order = [layer for _, layer in layer_order(recipe)]
    return order == list(range(layers))


def reordered(config: PretrainedConfig, order: LayerOrder, configs: Mapping[str, PretrainedConfig]) -> PretrainedConfig:
    """Return `config` for the layers of `order`: with their number and all settings that depend on layer numbers.

    Parameters
    ----------
    config
        The donor's configuration; it is not changed.
    order
        The output's layers.
    configs
        Configurations by model reference, for all models that `order` names.

    Raises
    ------
    RecipeError
        If layers move, and they depend on their position in a way that a configuration cannot express.
    """
    values = config.to_dict()
    sources = {model: configs[model].to_dict() for model in dict.fromkeys(model for model, _ in order)}
    layers = [(sources[model], layer) for model, layer in order]
    lists = per_layer_lists(config)
    if [layer for _, layer in order] != list(range(config.num_hidden_layers)):
        for own in (values, *sources.values()):
            _refuse_by_place(own, lists)
        _write_rules(values, layers)
    for name in lists:
        values[name] = [_entry(own, name, layer, values[name]) for own, layer in layers]
    for name in _NUMBERS:
        if isinstance(values.get(name), (list, tuple)):
            values[name] = [place for place, (own, layer) in enumerate(layers) if layer in (own.get(name) or ())]
    if any("per_layer_config" in own for own, _ in layers):
        overrides = [own.get("per_layer_config", {}).get(str(layer)) for own, layer in layers]
        values["per_layer_config"] = {str(place): own for place, own in enumerate(overrides) if own}
    stated_again = [name for name in _DEPTHS if values.get(name) == config.num_hidden_layers]
    for name in (config.attribute_map.get("num_hidden_layers", "num_hidden_layers"), *stated_again):
        values[name] = len(order)
    return type(config).from_dict(values)


def per_layer_lists(config: PretrainedConfig) -> tuple[str, ...]:
    """Return the names of lists with an entry per layer: ``layer_types``, ``no_rope_layers``."""
    return tuple(
        name
        for name, value in config.to_dict().items()
        if isinstance(value, (list, tuple))
        and (len(value) == config.num_hidden_layers or (name == "no_rope_layers" and value))  # may be longer
        and _PER_LAYER.fullmatch(name)
        and name not in (*_NUMBERS, *_BY_PLACE)
    )


def check_kinds(config: PretrainedConfig, order: LayerOrder, layouts: Mapping[str, ModelLayout]) -> None:
    """Check that `config`, as `reordered` returned it, builds layers with the tensors of those that `order` names.

    Parameters
    ----------
    layouts
        Layouts of the models that `order` names, by reference.

    Raises
    ------
    RecipeError
        If it does not: the architecture has a rule over layer numbers that evomerge does not know.
    """
    wanted = [layouts[model].layers[layer] for model, layer in order]
    if len({names for layout in layouts.values() for names in layout.layers}) == 1:
        return  # all layers are alike; building a module takes a while
    for place, (found, names) in enumerate(zip(layout_of(config).layers, wanted, strict=True)):
        if set(found) != set(names):
            model, layer = order[place]
            raise RecipeError(
                f"layer {layer} of {model} cannot be layer {place} of the merge: {config.model_type} has another kind "
                "of layer there; keep each layer where its kind belongs"
            )


def _refuse_by_place(values: Values, lists: tuple[str, ...]) -> None:
    """Refuse to move layers that depend on their position, or may: where a list named after layers is unknown."""
    kind = values.get("model_type", "")
    reasons = [f"{kind}: {_MODELS_BY_PLACE[kind]}"] if kind in _MODELS_BY_PLACE else []
    for name, value in values.items():
        shares_nothing = name == "kv_source_layers" and value == list(range(len(value or ())))
        if name in _BY_PLACE and value and not shares_nothing:
            reasons.append(f"{kind}: {_BY_PLACE[name]} ({name})")
        listed = isinstance(value, (list, tuple)) and value and ("layer" in name or "block" in name)
        if listed and not name.startswith("mtp_") and name not in (*lists, *_NUMBERS, *_BY_PLACE, *_CYCLES):
            reasons.append(f"{kind}: evomerge does not know what its list {name} means for moved layers")
    if reasons:
        raise RecipeError(f"{reasons[0]}, so its layers cannot be moved; keep every layer in its place")


def _write_rules(values: Values, layers: list[tuple[Values, int]]) -> None:
    """Rewrite rules over layer numbers so that each layer keeps its kind."""
    if "decoder_sparse_step" in values and "mlp_only_layers" in values:
        # Layers without experts are those listed and those that the step skips: list them all.
        for own in {id(own): own for own, _ in layers}.values():
            step, numbers = own["decoder_sparse_step"], own["mlp_only_layers"] or ()
            own["mlp_only_layers"] = [n for n in range(own["num_hidden_layers"]) if n in numbers or (n + 1) % step]
        values["decoder_sparse_step"] = 1
    for name in _FIRST:
        if isinstance(values.get(name), int) and "mlp_layer_types" not in values:
            dense = [layer < own[name] for own, layer in layers]
            values[name] = sum(dense)
            if not all(dense[: sum(dense)]):
                raise RecipeError(
                    f"{values['model_type']}: layers without experts must come first ({name}), and the recipe puts one "
                    "after a layer with experts; keep them before all others"
                )
    for name in _CYCLES:
        if values.get(name):
            values[name] = [own[name][layer % len(own[name])] for own, layer in layers]
    if values.get("kv_source_layers"):
        values["kv_source_layers"] = list(range(len(layers)))  # no layer shares: others were refused


def _entry(own: Values, name: str, layer: int, fallback: list[Any]) -> Any:
    entries = own.get(name) or fallback
    return entries[layer] if layer < len(entries) else fallback[-1]
