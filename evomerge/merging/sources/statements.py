"""What a model's folder says besides its weights: statements that are refused, repaired or left out of a merge.

The table in docs/sources.md lists them all.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from evomerge.files.messages import reason
from evomerge.merging.sources.architecture import quiet
from evomerge.merging.sources.errors import CheckpointError
from evomerge.merging.sources.limits import read_json

_DECODERS_BY_DEFAULT = ("gpt_neox", "gpt_neox_japanese")  # their is_decoder is false, and they are decoders


def refuse_other_models(reference: str, config: PretrainedConfig) -> None:
    """Refuse configurations that do not describe a decoder-only text model."""
    kind = config.model_type
    if _reads_more_than_text(config):
        if _text_decoder(config) is not None:
            return
        raise CheckpointError(
            f"{reference}: {kind} reads images or sound, and transformers has no decoder for its text part alone; "
            "name a decoder-only text model instead"
        )
    has_field = hasattr(type(config), "is_decoder")
    if getattr(config, "is_encoder_decoder", False):
        what = f"{kind} is an encoder with a decoder"
    elif has_field and not config.is_decoder and kind not in _DECODERS_BY_DEFAULT:
        what = f"{kind} is an encoder, not a decoder"
    elif not getattr(config, "num_hidden_layers", None):
        what = f"{kind} has no num_hidden_layers"
    else:
        return
    raise CheckpointError(f"{reference}: {what}; name a decoder-only text model instead")


def text_part(config: PretrainedConfig, keys: Iterable[str]) -> PretrainedConfig | None:
    """Return the configuration of the text part of a vision-language or speech model; None for other models.

    Parameters
    ----------
    config
        The whole model's.
    keys
        Names of the stored tensors: they decide whether the head is tied, which such configurations state twice.
    """
    part = _text_decoder(config) if _reads_more_than_text(config) else None
    if part is None:
        return None
    own = type(part).from_dict(part.to_dict())
    own.tie_word_embeddings = not any(key.endswith("lm_head.weight") for key in keys)
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if getattr(config, key, None) is not None:
            setattr(own, key, getattr(config, key))
    return own


def _text_decoder(config: PretrainedConfig) -> PretrainedConfig | None:
    try:
        part: PretrainedConfig = config.get_text_config()
    except ValueError:  # several text parts
        return None
    return None if part is config or part.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES else part


def _reads_more_than_text(config: PretrainedConfig) -> bool:
    return any(getattr(config, part, None) is not None for part in ("vision_config", "audio_config", "vision_encoder"))


def usable_generation_config(reference: str, values: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the contents of generation_config.json without settings that have no effect, and those settings.

    transformers loads a file that sets ``temperature`` beside ``do_sample: false``, and refuses to save it. Without
    these settings it generates the same.

    Raises
    ------
    CheckpointError
        If transformers does not accept what is left.
    """
    kept, dropped = dict(values), []
    for _ in range(len(kept) + 1):
        try:
            with quiet():
                GenerationConfig.from_dict(kept).validate(strict=True)
        except Exception as error:  # ValueError, TypeError, AttributeError, for values of the wrong type
            useless = [key for key in re.findall(r"^- `(\w+)`:", str(error), flags=re.MULTILINE) if key in kept]
            if not useless:
                raise CheckpointError(
                    f"{reference}: generation_config.json is not valid ({reason(error)}); correct or remove it"
                ) from error
            dropped.extend(useless)
            kept = {key: value for key, value in kept.items() if key not in useless}
        else:
            break
    return kept, tuple(dropped)


def left_out(folder: Path, dropped: tuple[str, ...], *, is_text_part: bool = False) -> tuple[str, ...]:
    """Return a sentence for each statement of a model's folder that a merge does not take over.

    Parameters
    ----------
    folder
        The model's folder.
    dropped
        Settings of generation_config.json that `usable_generation_config` removed.
    is_text_part
        Whether only the text part of the model is used.
    """
    lines = []
    if is_text_part:
        lines.append("it reads images or sound, and a merge has its text part alone")
    if dropped:
        lines.append(
            f"generation_config.json sets {', '.join(dropped)}, which has no effect there and which transformers "
            "refuses to save; a merge is written without"
        )
    for name in ("config.json", "tokenizer_config.json"):
        if "auto_map" in _values(folder / name):
            lines.append(
                f"{name} names code (auto_map), which evomerge neither runs nor copies; a merge is written without"
            )
    return tuple(lines)


def _values(path: Path) -> Mapping[str, Any]:
    try:
        values = read_json(path) if path.is_file() else {}
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}
