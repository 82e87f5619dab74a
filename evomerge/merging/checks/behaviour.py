"""What a merge does otherwise than a source on its own: settings of config.json, ends of texts, chat templates."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from evomerge.merging.sources.aligned import AlignedSource, original
from evomerge.merging.sources.errors import CheckpointError
from evomerge.merging.sources.source import Source
from evomerge.merging.sources.tokenizer_folder import DEFAULT

LONGEST = 120  # characters of a value in a message

# All other settings of a configuration can change what a model computes with the same weights. A merge uses the base's,
# so a source with other values behaves differently inside a merge than on its own.
_NO_BEHAVIOUR = re.compile(
    r"_(attn_.*|commit_hash|experts_.*|from_.*|name_or_path)|architectures|auto_map|axolotl.*|chunk_size_feed_forward|dtype|"
    r"finetuning_task|gradient_checkpointing|id2label|initializer_(factor|range|std)|is_encoder_decoder|label2id|license|"
    r"model_type|name_or_path|num_labels|output_(attentions|hidden_states|past|router_logits|scores)|pretraining_tp|"
    r"problem_type|quantization_config|return_dict|task_specific_params|tie_word_embeddings|tokenizer_class|torch_dtype|"
    r"unsloth.*|use_cache|vocab_size|.*_aux_loss.*|.*_token_ids?|.*_jitter.*|.*dropout.*|.*_drop|.*_pdrop|.*version"
)


def behaviour(name: str, checkpoint: Source, base: str, reference: Source) -> Iterator[str]:
    """Yield a line for each setting with which the source computes something else than the base does.

    Settings that a file leaves out have the architecture's defaults.
    """
    if _behave_alike(checkpoint.outline.stated, reference.outline.stated):
        return
    own, wanted = _settings(checkpoint), _settings(reference)
    for key in sorted(own.keys() | wanted.keys()):
        if own.get(key) != wanted.get(key) and not _NO_BEHAVIOUR.fullmatch(key):
            shown = (_cut(values.get(key, "not set")) for values in (own, wanted))
            yield f"{name}: {key} is {next(shown)} here and {next(shown)} in {base}; a merge has the base's"


def _behave_alike(own: Mapping[str, Any] | None, wanted: Mapping[str, Any] | None) -> bool:
    """Whether two models are well-known and state the same settings."""
    if own is None or wanted is None:
        return False
    stated = ({key: value for key, value in each.items() if not _NO_BEHAVIOUR.fullmatch(key)} for each in (own, wanted))
    return next(stated) == next(stated)


def _settings(source: Source) -> dict[str, Any]:
    """Return the configuration, with the rotary embedding's type under its present name alone."""
    values = source.config.to_dict()
    if isinstance(values.get("rope_parameters"), dict):
        values["rope_parameters"] = _without_old_type(values["rope_parameters"])
    return values


def _without_old_type(rope: dict[str, Any]) -> dict[str, Any]:
    """Return rotary settings without ``type``, which older files write for ``rope_type``; those of layer types too."""
    return {
        key: _without_old_type(value) if isinstance(value, dict) else value
        for key, value in rope.items()
        if key != "type" or "rope_type" not in rope
    }


def _cut(value: object) -> str:
    text = str(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ..."


def differing_statements(checkpoints: Mapping[str, Source], base: str) -> Iterator[str]:
    """Yield a line for each way of ending or sampling a text in which a source is not as the merge will be.

    The rule is the same in a search and in what it writes. A merge has the end-of-sequence ids, the tokenizer and the
    chat template of its base, or of the model that a vocabulary policy names, and the base's other generation settings.
    A source's own row has the source's ids and settings, with a policy the ids of the model that it names; prompts are
    the same for every row, so they are made with the merge's tokenizer and template.
    """
    merged = checkpoints[base]
    owner = merged.owner if isinstance(merged, AlignedSource) else base
    templates, ids, settings = merged.tokenizer.chat_templates(), _end_ids(merged), _generation_settings(merged)
    for name, source in checkpoints.items():
        own = original(source)
        stated = own.tokenizer.chat_templates()
        if stated and stated != templates:
            if not templates:
                line = f"it has a chat template and {owner} has none; a merge has none either"
            else:
                differing = [key for key in stated if stated[key] != templates.get(key)] or [*templates.keys() - stated]
                which = "" if differing[0] == DEFAULT else f" named {differing[0]}"
                line = f"its chat template{which} differs from that of {owner}; a merge has that of {owner}"
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
    token = merged.tokenizer.end_token_id() if merged.tokenizer.files else None
    if token is not None and token not in ids:
        yield (
            f"{owner}: its tokenizer ends texts with token {token} (eos_token), and its generation_config.json or "
            f"config.json with {_shown(ids)} (eos_token_id); scoring stops at both, generation only at the latter"
        )


_TAKES = "vocabulary: first in a search file, or tokenizer_source: MODEL in a recipe, takes another model's"


def check_chat_template(checkpoints: Mapping[str, Source], base: str) -> None:
    """Refuse to format prompts with a chat template that the merge will not have.

    Raises
    ------
    CheckpointError
        If the tokenizer of candidates has none; the message names the sources that have one.
    """
    if not checkpoints[base].tokenizer.files or checkpoints[base].tokenizer.chat_template() is not None:
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
    """Return the ids that end a text, as in transformers: those of generation_config.json, without it config.json's."""
    known = source.outline.stated or {}
    settings: Mapping[str, Any] | None = source.generation_config()
    if settings is None and "eos_token_id" in known:
        settings = known
    stated = getattr(source.config, "eos_token_id", None) if settings is None else settings.get("eos_token_id")
    return tuple(sorted(stated if isinstance(stated, list) else [] if stated is None else [stated]))


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
