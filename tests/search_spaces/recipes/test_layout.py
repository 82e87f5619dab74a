from dataclasses import replace

import pytest

from search_spaces.recipes.errors import RecipeError


def test_names_in_order(layout):
    names = layout.tensors()
    assert names[0] == "model.embed_tokens.weight"
    assert names[1] == "model.layers.0.input_layernorm.weight"
    assert names[-2:] == ("model.norm.weight", "lm_head.weight")
    assert len(names) == 1 + 4 * 6 + 2
    assert layout.num_layers == 4
    assert layout.layer_tensor(3, "mlp.up_proj.weight") == "model.layers.3.mlp.up_proj.weight"


def test_module_filter_matches_no_layernorm(layout):
    gpt_neox = replace(layout, attention="attention")
    pattern = gpt_neox.module_filter("attention")
    assert pattern in "gpt_neox.layers.0.attention.dense.weight"
    assert pattern not in "gpt_neox.layers.0.post_attention_layernorm.weight"
    assert layout.module_filter("mlp") == ".mlp."


def test_module_without_a_name(layout):
    with pytest.raises(RecipeError, match="no mlp module that is known by name; use modules: all"):
        replace(layout, mlp=None).module_filter("mlp")
