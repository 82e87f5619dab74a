"""One forward pass over packed rows: tree masks, position ids, and the keys and values of a common prefix.

Which models support it
-----------------------
A model reads packed rows correctly if it (1) mixes positions only in attention, (2) takes the attention mask from its
caller, and (3) takes positions from `position_ids`. `obstacle` rules out models that are known not to: recurrent and
convolutional layers, chunked attention, kernels without arbitrary masks, ALiBi, rotary embeddings that depend on the
length of the input. `LoglikelihoodPlan` checks the others by measurement.

Sliding windows are written into the mask, counted in positions of the sequences and not in slots of the row; the cache
therefore keeps all keys. Soft caps, scalings and projections act on single scores or positions and need no change.

Shapes: B rows, S slots, F tokens of the prefix, P slots read, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import Cache, DynamicLayer

from fitness.scoring.prefix_tree import Row
from fitness.scoring.quantized import is_quantized

ATTENTION = {"eager", "sdpa"}  # implementations that accept any additive mask
LAYERS = {"full_attention", "sliding_attention"}
ROTARY_BY_LENGTH = {"dynamic", "longrope"}  # rotary embeddings that depend on the length of the input


@dataclass(frozen=True)
class Packed:
    """Rows padded to equal width; a padded slot attends to the prefix and to itself."""

    input_BS: torch.Tensor
    position_BS: torch.Tensor
    end_BS: torch.Tensor  # the slot after the last descendant
    plain: bool  # without branches and prefix: an ordinary causal batch

    @classmethod
    def of(cls, rows: Sequence[Row], prefix: int, device: str | torch.device) -> Packed:
        """Pad rows on the right."""
        width = max(len(row.tokens) for row in rows)
        slots, padding = tuple(range(1, width + 1)), (0,) * width
        input_BS = torch.tensor([row.tokens + padding[len(row.tokens) :] for row in rows])
        position_BS = torch.tensor([row.position + padding[len(row.tokens) :] for row in rows])
        end_BS = torch.tensor([row.end + slots[len(row.tokens) :] for row in rows])
        plain = not prefix and not any(row.branches for row in rows)
        return cls(input_BS.to(device), position_BS.to(device), end_BS.to(device), plain)


def obstacle(model: Any) -> str | None:
    """Return why this model cannot read packed rows; None if no reason is known."""
    config = model.config.get_text_config(decoder=True)
    missing = {"position_ids", "attention_mask", "past_key_values"} - set(inspect.signature(model.forward).parameters)
    if config.is_encoder_decoder or missing:
        return "its forward pass does not take position ids, a mask and a cache"
    if config._attn_implementation not in ATTENTION:
        return f"its attention ({config._attn_implementation}) takes no custom mask"
    others = set(getattr(config, "layer_types", None) or ()) - LAYERS
    if others:
        return f"it has layers other than attention over earlier tokens ({', '.join(sorted(others))})"
    if getattr(config, "alibi", False):
        return "its attention uses distances in slots (ALiBi)"
    changing = ROTARY_BY_LENGTH & _rotary_types(getattr(config, "rope_parameters", None))
    return f"its rotary embeddings depend on the length of the input ({', '.join(changing)})" if changing else None


def kind_of(model: Any) -> tuple[object, ...]:
    """Return a key that models have in common if they read packed rows alike."""
    config = model.config
    return (
        type(model),
        model.dtype,
        is_quantized(model),
        config._attn_implementation,
        config.to_json_string(use_diff=False),
    )


def _rotary_types(parameters: Any) -> set[Any]:
    """Types of the rotary embeddings: one for all layers, or one per kind of layer."""
    if not isinstance(parameters, dict):
        return set()
    nested = (_rotary_types(value) for value in parameters.values())
    return {parameters.get("rope_type")}.union(*nested)


def read_prefix(model: Any, prefix: Sequence[int], device: str | torch.device) -> Cache:
    """Return keys and values of a prefix, for any number of rows."""
    input_1F = torch.tensor([prefix], device=device)
    origin = torch.zeros(1, dtype=torch.long, device=device)
    cache = DynamicCache()
    _forward(model, input_1F, origin, origin, past_key_values=cache, use_cache=True)
    return Cache(layers=[_Prefix(layer.keys, layer.values) for layer in cache.layers])


class _Prefix(DynamicLayer):  # type: ignore[misc]  # mypy does not follow transformers
    """Keys and values of the prefix in one layer; those of a batch are appended and not kept."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        count = len(key_states)
        keys = torch.cat([self.keys.expand(count, -1, -1, -1), key_states], dim=-2)
        return keys, torch.cat([self.values.expand(count, -1, -1, -1), value_states], dim=-2)


def read_rows(
    model: Any, packed: Packed, row_P: torch.Tensor, slot_P: torch.Tensor, prefix: Cache | None
) -> torch.Tensor:
    """Return the logits [P, V] at the slots that are read."""
    options: dict[str, Any] = {"use_cache": False}
    if prefix is not None:
        options = {"past_key_values": prefix, "use_cache": True}
    if not packed.plain:
        options["position_ids"] = packed.position_BS
        options["attention_mask"] = _masks(model, packed, 0 if prefix is None else prefix.get_seq_length())
    return _forward(model, packed.input_BS, row_P, slot_P, **options)


def _masks(model: Any, packed: Packed, prefix: int) -> Any:
    """The mask, or one per kind of attention layer if they differ."""
    config = model.config.get_text_config(decoder=True)
    window = getattr(config, "sliding_window", None)
    dtype = model.dtype
    kinds = set(getattr(config, "layer_types", None) or ())
    if window is None or kinds == {"full_attention"} or int(packed.position_BS.max()) < window:
        return _mask(packed, prefix, None, dtype)
    if len(kinds) < 2:
        return _mask(packed, prefix, window, dtype)
    return {
        "full_attention": _mask(packed, prefix, None, dtype),
        "sliding_attention": _mask(packed, prefix, window, dtype),
    }


def _mask(packed: Packed, prefix: int, window: int | None, dtype: torch.dtype) -> torch.Tensor:
    """The additive attention mask [B, 1, S, F + S]: 0 for a slot's ancestors and the slot itself."""
    rows, width = packed.input_BS.shape
    device = packed.input_BS.device
    slot_S = torch.arange(width, device=device)
    seen_BSS = (slot_S[None, :, None] >= slot_S) & (slot_S[None, :, None] < packed.end_BS[:, None, :])
    seen = torch.cat([seen_BSS.new_ones(rows, width, prefix), seen_BSS], dim=2)
    if window is not None:
        prefix_BF = torch.arange(prefix, device=device).expand(rows, -1)
        position = torch.cat([prefix_BF, packed.position_BS], dim=1)
        seen &= packed.position_BS[:, :, None] - position[:, None, :] < window
    mask = torch.zeros(seen.shape, dtype=dtype, device=device)
    return mask.masked_fill_(~seen, torch.finfo(dtype).min).unsqueeze(1)


def _forward(
    model: Any, input_BS: torch.Tensor, row_P: torch.Tensor, slot_P: torch.Tensor, **options: Any
) -> torch.Tensor:
    """Logits [P, V]; the output projection is computed only for the slots that are read.

    A hook on the projection selects the hidden states, so that what an architecture does to its logits afterwards
    (scaling, soft caps) still applies.
    """
    cut = False

    def keep_read_slots(_: torch.nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        nonlocal cut
        if not args or args[0].shape[:2] != input_BS.shape:
            return None
        cut = True
        return (args[0][row_P, slot_P].unsqueeze(0), *args[1:])

    head = model.get_output_embeddings()
    handle = None if head is None else head.register_forward_pre_hook(keep_read_slots)
    try:
        logits: torch.Tensor = model(input_ids=input_BS, **options).logits
    finally:
        if handle is not None:
            handle.remove()
    return logits[0] if cut else logits[row_P, slot_P]
