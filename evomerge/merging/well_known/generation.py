"""Generation settings that transformers takes, and saves, as they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
_SAMPLING: Mapping[str, Callable[[float], bool]] = {
    "temperature": lambda value: value > 0,
    "top_k": lambda value: value > 0 and value == int(value),
    "top_p": lambda value: 0 < value <= 1,
}
_FLAGS = ("_from_model_config", "do_sample", "output_attentions", "output_hidden_states", "use_cache")


def is_plain(values: Mapping[str, Any]) -> bool:
    """Whether all settings are common ones with values in their ranges, and sampling is set only where it is done."""
    return all(_is_plain(key, value, samples=values.get("do_sample") is True) for key, value in values.items())


def _is_plain(key: str, value: Any, *, samples: bool) -> bool:
    if key in _IDS:
        ids = value if isinstance(value, list) and key == "eos_token_id" else [value]
        return all(isinstance(each, int) and each >= 0 for each in ids)
    if key in _SAMPLING:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return samples and is_number and _SAMPLING[key](value)
    if key in ("output_attentions", "output_hidden_states"):
        return value is False
    return isinstance(value, bool) if key in _FLAGS else key == "transformers_version" and isinstance(value, str)
