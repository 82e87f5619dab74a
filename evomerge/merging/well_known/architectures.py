"""Architectures of the Llama family: names and shapes of their tensors from the numbers in config.json."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from search_spaces.recipes.layout import ModelLayout

Shape: TypeAlias = tuple[int, ...]

EMBEDDINGS = "model.embed_tokens.weight"
NORM = "model.norm.weight"
HEAD = "lm_head.weight"
LAYERS = "model.layers.{}."


@dataclass(frozen=True)
class Family:
    """One `model_type` of config.json.

    Attributes
    ----------
    architecture
        Class of the causal language model.
    biased
        Attention's projections that always have a bias; with `may_be_biased`, config.json decides (`attention_bias`).
    has_head_norms
        Whether queries and keys are normalised by head.
    needs_head_dim
        Whether `head_dim` has to be stated, as its default does not follow from the width.
    """

    architecture: str
    biased: tuple[str, ...] = ()
    may_be_biased: bool = False
    has_head_norms: bool = False
    needs_head_dim: bool = False


FAMILIES: Mapping[str, Family] = {
    "llama": Family("LlamaForCausalLM", may_be_biased=True),
    "mistral": Family("MistralForCausalLM"),
    "qwen2": Family("Qwen2ForCausalLM", biased=("q_proj", "k_proj", "v_proj")),
    "qwen3": Family("Qwen3ForCausalLM", may_be_biased=True, has_head_norms=True, needs_head_dim=True),
}

_COUNTS = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
_OPTIONAL_COUNTS = ("head_dim", "num_key_value_heads", "max_position_embeddings", "pretraining_tp")
_FLAGS = ("attention_bias", "mlp_bias", "tie_word_embeddings", "use_cache", "use_sliding_window")
_NUMBERS = ("rms_norm_eps", "rope_theta", "initializer_range", "attention_dropout")
_WITHOUT_EFFECT = re.compile(
    r"architectures|is_llama_config|max_window_layers|model_type|rope_interleaved|transformers_version|"
    r"transformers\.js_config|axolotl.*|unsloth.*|_commit_hash|.*name_or_path"
)
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id")
_DTYPES = ("float64", "float32", "float16", "bfloat16")
_ACTIVATIONS = ("silu", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu")
_ROPE: Mapping[str, frozenset[str]] = {
    "default": frozenset(),
    "llama3": frozenset({"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}),
}
"""Numbers that each kind of rotary embedding needs."""


@dataclass(frozen=True)
class WellKnownModel:
    """A model whose tensors are known from config.json.

    Attributes
    ----------
    stated
        The contents of config.json.
    architecture
        Class of the causal language model.
    layout
        Its tensors by position.
    shapes
        By name; a tied head is left out.
    """

    stated: Mapping[str, Any]
    architecture: str
    layout: ModelLayout
    shapes: Mapping[str, Shape]


def well_known_model(stated: Any) -> WellKnownModel | None:
    """Return the model that a config.json describes; None if anything in it is not expected."""
    if not isinstance(stated, dict) or stated.get("model_type") not in FAMILIES:
        return None
    family = FAMILIES[stated["model_type"]]
    if stated.get("architectures") != [family.architecture] or not _is_expected(stated, family):
        return None
    in_layer = dict(_layer(stated, family))
    width, vocabulary, count = stated["hidden_size"], stated["vocab_size"], stated["num_hidden_layers"]
    tied = stated.get("tie_word_embeddings", False)
    layout = ModelLayout(
        embeddings=(EMBEDDINGS,),
        layers=(tuple(in_layer),) * count,
        layer_prefix=LAYERS,
        final=(NORM,) if tied else (NORM, HEAD),
        head=None if tied else HEAD,
        attention="self_attn",
        mlp="mlp",
    )
    shapes = {EMBEDDINGS: (vocabulary, width), NORM: (width,)} | ({} if tied else {HEAD: (vocabulary, width)})
    shapes |= {layout.layer_tensor(layer, name): shape for layer in range(count) for name, shape in in_layer.items()}
    return WellKnownModel(stated, family.architecture, layout, shapes)


def _layer(stated: Mapping[str, Any], family: Family) -> Iterator[tuple[str, Shape]]:
    """Yield name and shape of a layer's tensors, in the order in which the module has them."""
    width, inner, heads = stated["hidden_size"], stated["intermediate_size"], stated["num_attention_heads"]
    head = stated.get("head_dim") or width // heads
    own, shared = heads * head, (stated.get("num_key_value_heads") or heads) * head
    attention = {"q_proj": (own, width), "k_proj": (shared, width), "v_proj": (shared, width), "o_proj": (width, own)}
    biased = attention if family.may_be_biased and stated.get("attention_bias") else family.biased
    for name, shape in attention.items():
        yield f"self_attn.{name}.weight", shape
        if name in biased:
            yield f"self_attn.{name}.bias", shape[:1]
    if family.has_head_norms:
        yield "self_attn.q_norm.weight", (head,)
        yield "self_attn.k_norm.weight", (head,)
    for name, shape in {"gate_proj": (inner, width), "up_proj": (inner, width), "down_proj": (width, inner)}.items():
        yield f"mlp.{name}.weight", shape
        if stated.get("mlp_bias"):
            yield f"mlp.{name}.bias", shape[:1]
    yield "input_layernorm.weight", (width,)
    yield "post_attention_layernorm.weight", (width,)


def _is_expected(stated: Mapping[str, Any], family: Family) -> bool:
    """Whether every key is known and has a value that transformers takes as it is."""
    if any(not _is_count(stated.get(key)) for key in _COUNTS):
        return False
    if stated["num_attention_heads"] % (stated.get("num_key_value_heads") or stated["num_attention_heads"]):
        return False
    if stated.get("head_dim") is None and (
        family.needs_head_dim or stated["hidden_size"] % stated["num_attention_heads"]
    ):
        return False
    if stated.get("use_sliding_window"):
        return False  # then layers differ
    if stated.get("mlp_bias") and stated["model_type"] != "llama":
        return False
    return all(_is_known(key, value, stated) for key, value in stated.items())


def _is_known(key: str, value: Any, stated: Mapping[str, Any]) -> bool:
    if key in _COUNTS or _WITHOUT_EFFECT.fullmatch(key):
        return True
    if key in _OPTIONAL_COUNTS:
        return value is None or _is_count(value)
    if key in _FLAGS:
        return isinstance(value, bool)
    if key in _NUMBERS:
        return _is_number(value)
    if key in _TOKENS:
        ids = value if isinstance(value, list) and key == "eos_token_id" else [value]
        return value is None or all(_is_int(each) and 0 <= each < stated["vocab_size"] for each in ids)
    return _is_setting(key, value, stated["num_hidden_layers"])


def _is_setting(key: str, value: Any, layers: int) -> bool:
    if key in ("dtype", "torch_dtype"):
        return value in _DTYPES
    if key == "hidden_act":
        return value in _ACTIVATIONS
    if key == "sliding_window":
        return value is None or _is_count(value)
    if key == "layer_types":
        return value is None or value == ["full_attention"] * layers
    if key in ("rope_parameters", "rope_scaling"):
        return value is None or _is_rope(value)
    return False


def _is_rope(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    kind = value.get("rope_type", "default")
    numbers = {name: number for name, number in value.items() if name != "rope_type"}
    needed = _ROPE.get(kind) if isinstance(kind, str) else None
    if needed is None or not needed <= numbers.keys() <= needed | {"rope_theta"}:
        return False
    return all(map(_is_number, numbers.values()))


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return _is_int(value) and value > 0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0
