"""What a model's folder says besides its weights: statements that are refused, repaired or left out of a merge.

The table in docs/sources.md lists them all.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge.files.messages import reason
from evomerge.merging.sources.architecture import quiet
from evomerge.merging.sources.errors import CheckpointError
from evomerge.merging.sources.limits import read_json
from evomerge.merging.well_known import generation

if TYPE_CHECKING:
    from transformers import PretrainedConfig

TEXT_PARTS = (
    "aria", "deepseek_vl", "exaone4_5", "gemma3", "got_ocr2", "idefics2", "idefics3", "internvl", "janus", "lfm2_vl",
    "lighton_ocr", "llama4", "llava", "llava_next", "llava_next_video", "llava_onevision", "mistral3", "ovis2",
    "paligemma", "qwen2_5_vl", "qwen2_vl", "qwen3_5", "qwen3_5_moe", "qwen3_vl", "qwen3_vl_moe", "smolvlm",
    "video_llama_3", "video_llava", "vipllava",
)  # fmt: skip
"""Models whose text part, saved as a text model, gives the same logits for text: tested for each of them.

Others may not do so: Cohere's vision models do not scale their logits as its text models do.
"""

_OTHER_HEADS = (
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForQuestionAnswering",
    "ForMultipleChoice",
    "RewardModel",
)
_WITH_IMAGE_POSITIONS = {
    "qwen2_vl_text": "qwen2",
    "qwen2_5_vl_text": "qwen2",
    "qwen3_vl_text": "qwen3",
    "qwen3_vl_moe_text": "qwen3_moe",
}
_TEXT_MODULE = re.compile(r"(^|\.)(?:language_model|text_model)\.")
_BARE_TEXT = re.compile(r"(model\.)?(layers|embed_tokens|norm|lm_head)\.")
_DECODERS_BY_DEFAULT = ("gpt_neox", "gpt_neox_japanese")  # their is_decoder is false, and they are decoders


def refuse_code(reference: str, config: Mapping[str, Any]) -> None:
    """Refuse an architecture that is code in the model's folder, where transformers has none of that name."""
    if "auto_map" not in config:
        return
    from transformers import CONFIG_MAPPING

    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        raise CheckpointError(
            f"{reference}: its architecture ({kind}) is code in its folder (auto_map in config.json), which evomerge "
            "does not run; name a model whose architecture transformers has, or update transformers"
        )


def refuse_other_models(reference: str, config: PretrainedConfig) -> None:
    """Refuse configurations that do not describe a decoder-only text model, or one with such a part."""
    kind = config.model_type
    has_field = hasattr(type(config), "is_decoder")
    cure = "name a decoder-only text model instead"
    if getattr(config, "is_encoder_decoder", False):
        what = f"{kind} is an encoder with a decoder"
    elif _reads_more_than_text(config):
        if kind in TEXT_PARTS and _text_decoder(config) is not None:
            return
        what = f"{kind} reads more than text, and evomerge knows no decoder that computes the same as its text part"
        cure = "name a decoder-only text model instead, such as its text part saved on its own"
    elif has_field and not config.is_decoder and kind not in _DECODERS_BY_DEFAULT:
        what = f"{kind} is an encoder, not a decoder"
    elif not getattr(config, "num_hidden_layers", None):
        what = f"{kind} has no num_hidden_layers"
    elif (head := _other_head(config)) is not None:
        what = f"{head} gives scores or classes, not text"
        cure = "name the model that it was trained from"
    else:
        return
    raise CheckpointError(f"{reference}: {what}; {cure}")


def _other_head(config: PretrainedConfig) -> str | None:
    stated = config.architectures
    named = [name for name in stated if isinstance(name, str)] if isinstance(stated, list | tuple) else []
    return next((name for name in named if name.endswith(_OTHER_HEADS)), None)


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


def text_name(key: str) -> str:
    """Return a text tensor's name in a text model: ``model.language_model.norm.weight`` is ``model.norm.weight``."""
    return _TEXT_MODULE.sub(r"\1", key, count=1)


def is_text_name(key: str) -> bool:
    """Whether a tensor of a vision-language or speech model belongs to its text part."""
    return bool(_TEXT_MODULE.search(key) or _BARE_TEXT.match(key))


def _text_decoder(config: PretrainedConfig) -> PretrainedConfig | None:
    """Return a text model's configuration that computes what the text part of a larger model does on text alone."""
    try:
        part: PretrainedConfig = config.get_text_config()
    except ValueError:  # several text parts
        return None
    if part is config or getattr(part, "is_encoder_decoder", False):
        return None
    if part.model_type in _WITH_IMAGE_POSITIONS:
        return _without_image_positions(part)
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return part if part.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES else None


def _without_image_positions(part: PretrainedConfig) -> PretrainedConfig:
    """Return Qwen's text model for its vision-language one.

    Its rotary embedding takes a position in time, height and width; those of text are equal, which gives the common
    embedding.
    """
    from transformers import CONFIG_MAPPING

    kind = CONFIG_MAPPING[_WITH_IMAGE_POSITIONS[part.model_type]]
    values = part.to_dict()
    rope = {key: value for key, value in values["rope_parameters"].items() if not key.startswith("mrope")}
    known = {key: value for key, value in values.items() if key in kind().to_dict() and key != "model_type"}
    # Qwen3-VL always divides the weights of a token's experts by their sum; the text model does so if told
    known |= {"norm_topk_prob": True} if part.model_type == "qwen3_vl_moe_text" else {}
    kept: PretrainedConfig = kind(**(known | {"rope_parameters": rope}))
    return kept


def _reads_more_than_text(config: PretrainedConfig) -> bool:
    if any(getattr(config, part, None) is not None for part in ("vision_config", "audio_config", "vision_encoder")):
        return True
    try:
        return config.get_text_config() is not config
    except ValueError:  # several text parts
        return True


def usable_generation_config(reference: str, values: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the contents of generation_config.json without settings that have no effect, and those settings.

    transformers loads a file that sets ``temperature`` beside ``do_sample: false``, and refuses to save it. Without
    these settings it generates the same.

    Raises
    ------
    CheckpointError
        If transformers does not accept what is left.
    """
    if generation.is_plain(values):
        return dict(values), ()
    from transformers import GenerationConfig

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
