"""The layout and the models that these tests speak of; none of them needs to exist."""

import pytest

from search_spaces.layout import ModelLayout

LAYER = (
    "input_layernorm.weight",
    "self_attn.q_proj.weight",
    "self_attn.o_proj.weight",
    "post_attention_layernorm.weight",
    "mlp.up_proj.weight",
    "mlp.down_proj.weight",
)


@pytest.fixture(scope="session")
def layout() -> ModelLayout:
    """Return a Llama of four layers."""
    return ModelLayout(
        embeddings=("model.embed_tokens.weight",),
        layers=(LAYER,) * 4,
        layer_prefix="model.layers.{}.",
        final=("model.norm.weight", "lm_head.weight"),
        head="lm_head.weight",
        attention="self_attn",
        mlp="mlp",
    )


@pytest.fixture(scope="session")
def models() -> dict[str, str]:
    """Return a base and three experts."""
    return {"base": "/m/base", "ops": "/m/ops", "x": "/m/x", "y": "org/y@main"}
