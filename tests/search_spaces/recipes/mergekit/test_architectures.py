"""The table of the tensors that mergekit merges: it is mergekit's, and EVOMERGE_UPDATE_SNAPSHOTS=1 writes it again."""

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from types import SimpleNamespace
from typing import Any

from search_spaces.recipes.mergekit.architectures import TABLE, Model

LAYERS = 3


def pattern(name: str) -> str:
    return ".".join("{}" if part.isdigit() else part for part in name.split("."))


def definition(module: Any) -> dict[str, list[str]]:
    config = SimpleNamespace(first_k_dense_replace=1, **{module.num_layers_config_key(): LAYERS})
    parts = [module.pre_weights(config) + module.post_weights(config)] * LAYERS
    parts += [module.layer_weights(layer, config) for layer in range(LAYERS)]
    found = {pattern(weight.name) for part in parts for weight in part}
    needed = Counter(
        name for part in parts for name in {pattern(weight.name) for weight in part if not weight.optional}
    )
    required = {name for name, count in needed.items() if count == LAYERS}
    return {"required": sorted(required), "optional": sorted(found - required)}


def definitions() -> Iterator[dict[str, Any]]:
    """Those of causal language models."""
    from mergekit.architecture.json_definitions import JSON_ARCHITECTURES
    from mergekit.architecture.moe_defs import AfmoeModuleArchitecture, Glm4MoeModuleArchitecture

    in_code = {
        kind.ARCHITECTURE_NAME: kind(num_experts=2) for kind in (AfmoeModuleArchitecture, Glm4MoeModuleArchitecture)
    }
    for known in JSON_ARCHITECTURES:
        named = [name.replace("_AfmoePartial", "Afmoe") for name in known.architectures]
        names = [name for name in named if name.endswith(("ForCausalLM", "LMHeadModel"))]
        if names:
            (module,) = known.modules.values()
            own = definition(in_code.get(names[0], module.architecture))
            yield {"architectures": names, "model_type": known.expected_model_type, **own}


def test_the_table_is_mergekits() -> None:
    found = sorted(definitions(), key=lambda entry: (entry["architectures"], entry["model_type"]))
    text = "[\n" + ",\n".join(map(json.dumps, found)) + "\n]\n"
    if os.environ.get("EVOMERGE_UPDATE_SNAPSHOTS"):
        TABLE.write_text(text, encoding="utf-8")
    assert TABLE.read_text(encoding="utf-8") == text


def llama(names: Iterable[str]) -> Model:
    return Model("LlamaForCausalLM", "llama", tuple(names))


def test_a_definition_has_all_layers_and_experts() -> None:
    known = llama(()).definition
    assert known is not None
    names = [name.format(11) for name in known.tensors]
    assert llama(names).dropped() == []
    assert llama([*names, "model.layers.11.mlp.up_proj.bias"]).dropped() == ["model.layers.11.mlp.up_proj.bias"]
    assert llama(names).lacking() == llama([name for name in names if name != "lm_head.weight"]).lacking() == []
    assert llama(name for name in names if "q_proj" not in name).lacking() == ["model.layers.0.self_attn.q_proj.weight"]
    experts = Model("AfmoeForCausalLM", "afmoe", ("model.layers.11.mlp.experts.127.up_proj.weight",))
    assert experts.dropped() == []


def test_of_two_definitions_the_model_type_decides() -> None:
    old, new = ("transformer.embd.wte.weight",), ("model.embed_tokens.weight",)
    assert Model("PhiForCausalLM", "phi", old).dropped() == list(old)
    assert Model("PhiForCausalLM", "phi", new).dropped() == []
    assert Model("PhiForCausalLM", "phi-msft", old).dropped() == []
    assert Model("PhiForCausalLM", "other", old).definition is None
    assert Model("OPTForCausalLM", "opt", ("any",)).dropped() == Model("OPTForCausalLM", "opt", ()).lacking() == []
