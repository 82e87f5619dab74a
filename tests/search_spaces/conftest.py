"""The layout and the models that these tests speak of; none of them needs to exist."""

import numpy as np
import pytest

from search_spaces.recipes.layout import ModelLayout
from search_spaces.spaces.context import SpaceContext

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


ENTRIES = {
    "model.embed_tokens.weight": 96,
    "lm_head.weight": 96,
    "self_attn.q_proj.weight": 64,
    "self_attn.o_proj.weight": 64,
    "mlp.up_proj.weight": 80,
    "mlp.down_proj.weight": 80,
}


@pytest.fixture(scope="session")
def vectors(layout, models) -> dict[str, dict[str, np.ndarray]]:
    """Return the weights of the models, flat, by name and tensor."""
    rng = np.random.default_rng(11)
    sizes = {name: _entries(name) for name in layout.tensors()}
    base = {name: rng.normal(size=size) for name, size in sizes.items()}
    experts = [
        {name: values + 0.7 * rng.normal(size=values.size) for name, values in base.items()} for _ in list(models)[1:]
    ]
    return dict(zip(models, [base, *experts], strict=True))


@pytest.fixture(scope="session")
def context(layout, models, vectors) -> SpaceContext:
    """Return what a space needs of the models."""

    def gram(chunks):
        result = []
        for chunk in chunks:
            rows = np.array(
                [
                    np.concatenate([tensors[name][start:end] for name, start, end in chunk])
                    for tensors in vectors.values()
                ]
            )
            result.append(rows @ rows.T)
        return np.array(result)

    sizes = {name: values.size for name, values in vectors["base"].items()}
    return SpaceContext(models, layout, sizes, seed=5, gram=gram)


def _entries(name: str) -> int:
    return next((size for end, size in ENTRIES.items() if name.endswith(end)), 8)
