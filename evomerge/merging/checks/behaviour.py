"""What a merge does otherwise than a source on its own: settings of config.json, ends of texts, chat templates."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from transformers import PretrainedConfig

from evomerge.merging.sources.aligned import AlignedSource, original
from evomerge.merging.sources.errors import CheckpointError
from evomerge.merging.sources.source import Source

# All other settings of a configuration can change what a model computes with the same weights. A merge uses the base's,
# so a source with other values behaves differently inside a merge than on its own.
_NO_BEHAVIOUR = re.compile(
    r"_.*|architectures|auto_map|chunk_size_feed_forward|dtype|finetuning_task|gradient_checkpointing|id2label|"
    r"initializer_range|is_encoder_decoder|label2id|license|model_type|name_or_path|num_labels|output_.*|pretraining_tp|"
    r"problem_type|quantization_config|return_dict|router_aux_loss_coef|router_jitter_noise|task_specific_params|"
    r"tie_word_embeddings|tokenizer_class|torch_dtype|transformers_version|use_cache|vocab_size|.*_token_ids?|.*dropout.*|"
    r".*_pdrop|.*_drop"
)


def behaviour(name: str, checkpoint: Source, base: str, reference: Source) -> Iterator[str]:
    """Yield a line for each setting with which the source computes something else than the base does."""
    own, wanted = checkpoint.config.to_dict(), reference.config.to_dict()
    for key in sorted(_settings(reference.config)):
        if own.get(key) != wanted.get(key):
            yield f"{name}: {key} is {own.get(key)} here and {wanted.get(key)} in {base}; a merge has the base's"


def _settings(config: PretrainedConfig) -> set[str]:
    """Return the settings that the architecture reads; others in config.json (tools write their version) do nothing."""
    try:
        known = type(config)().to_dict()
    except Exception:  # a configuration without defaults
        known = config.to_dict()
    return {key for key in {*known, "rope_theta", "rope_scaling"} if not _NO_BEHAVIOUR.fullmatch(key)}


def differing_statements(checkpoints: Mapping[str, Source], base: str) -> Iterator[str]:
    """Yield a line for each way of ending or sampling a text in which a source is not as the merge will be.

    The rule is the same for candidates, the sources' rows and the export: end-of-sequence ids, tokenizer and chat
    template are the base's, or those of the model that a vocabulary policy names; other generation settings are the
    base's.
    """
    merged = checkpoints[base]
    owner = merged.owner if isinstance(merged, AlignedSource) else base
    template, ids, settings = merged.tokenizer.chat_template(), _end_ids(merged), _generation_settings(merged)
    for name, source in checkpoints.items():
        own = original(source)
        stated = own.tokenizer.chat_template()
        if stated is not None and stated != template:
            if template is None:
                line = f"it has a chat template and {owner} has none; a merge has none either"
            else:
                line = f"its chat template differs from that of {owner}; a merge has that of {owner}"
            yield f"{name}: {line} ({_TAKES}; a recipe can set chat_template)"
        if _end_ids(own) != ids:
            yield (
                f"{name}: its texts end with token {_shown(_end_ids(own))} (eos_token_id), and those of a merge with "
                f"{_shown(ids)}, as in {owner} ({_TAKES})"
            )
        others = {key for key, value in _generation_settings(own).items() if settings.get(key, value) != value}
        others |= _generation_settings(own).keys() ^ settings.keys()
        if name != base and others:
            yield f"{name}: its generation_config.json differs in {', '.join(sorted(others))}; a merge has the base's"


_TAKES = "vocabulary: first in a search file, or tokenizer_source: MODEL in a recipe, takes another model's"


def check_chat_template(checkpoints: Mapping[str, Source], base: str) -> None:
    """Refuse to format prompts with a chat template that the merge will not have.

    Raises
    ------
    CheckpointError
        If the tokenizer of candidates has none; the message names the sources that have one.
    """
    if not checkpoints[base].tokenizer.files or checkpoints[base].tokenizer.load().chat_template:
        return
    having = [name for name in checkpoints if original(checkpoints[name]).tokenizer.chat_template() is not None]
    first = next((name for name in checkpoints if name != base), base)
    if first in having:
        remedy = f"{first} has one: set vocabulary: first, or fitness.apply_chat_template: false"
    elif having:
        remedy = (
            f"{having[0]} has one: list it first among the models and set vocabulary: first, or set "
            "fitness.apply_chat_template: false"
        )
    else:
        remedy = "none of the models has one: set fitness.apply_chat_template: false"
    raise CheckpointError(f"fitness.apply_chat_template: the tokenizer of {base} has no chat template, and {remedy}")


def _end_ids(source: Source) -> tuple[int, ...]:
    """Return the ids that end a text: those of generation_config.json where it names any, else of config.json."""
    stated = (source.generation_config() or {}).get("eos_token_id")
    ids = getattr(source.config, "eos_token_id", None) if stated is None else stated
    return tuple(sorted(ids if isinstance(ids, list) else [] if ids is None else [ids]))


def _shown(ids: tuple[int, ...]) -> str:
    return " or ".join(map(str, ids)) or "none"


def _generation_settings(source: Source) -> dict[str, Any]:
    """Return the generation settings besides special tokens."""
    values = source.generation_config() or {}
    return {
        key: value
        for key, value in values.items()
        if not key.endswith("token_id") and key not in ("transformers_version", "_from_model_config")
    }
