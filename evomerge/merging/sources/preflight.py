"""Checks of the sources against each other, before the first candidate."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PretrainedConfig

from evomerge.merging.sources.aligned import AlignedSource, original
from evomerge.merging.sources.errors import CheckpointError
from evomerge.merging.sources.licences import conflicts, licence
from evomerge.merging.sources.open_sources import unverified_base
from evomerge.merging.sources.similarity import Similarity, measure_similarity
from evomerge.merging.sources.source import Source
from search_spaces.recipes.references import parts

STRETCH = 1 << 22  # entries read together when scanning for NaN

# All other settings of a configuration can change what a model computes with the same weights. A merge uses the base's,
# so a source with other values behaves differently inside a merge than on its own.
_NO_BEHAVIOUR = re.compile(
    r"_.*|architectures|auto_map|chunk_size_feed_forward|dtype|finetuning_task|gradient_checkpointing|id2label|"
    r"initializer_range|is_encoder_decoder|label2id|license|model_type|name_or_path|num_labels|output_.*|pretraining_tp|"
    r"problem_type|quantization_config|return_dict|router_aux_loss_coef|router_jitter_noise|task_specific_params|"
    r"tie_word_embeddings|tokenizer_class|torch_dtype|transformers_version|use_cache|vocab_size|.*_token_ids?|.*dropout.*|"
    r".*_pdrop|.*_drop"
)


@dataclass(frozen=True)
class Report:
    """What the check found about sources that can be merged.

    Attributes
    ----------
    architecture
        Class of the models.
    layers, parameters
        Of the base; tied parameters counted once.
    tied
        Whether the head is the embedding matrix.
    dtypes
        Stored dtype by model name.
    similarity
        How similar experts and base are, measured on a sample of the weights.
    warnings
        One line each.
    """

    architecture: str
    layers: int
    parameters: int
    tied: bool
    dtypes: Mapping[str, str]
    similarity: Similarity
    warnings: tuple[str, ...]


def check(checkpoints: Mapping[str, Source], base: str, *, scan: bool = True, allow_unrelated: bool = False) -> Report:
    """Check that the sources can be merged.

    Parameters
    ----------
    checkpoints
        Opened sources by the user's names for them.
    base
        The name of the source that all others are compared with.
    scan
        Read every weight once, to find NaN and infinite values.
    allow_unrelated
        Warn about sources that do not share the base instead of refusing them. Decided from a sample of each tensor.

    Raises
    ------
    CheckpointError
        If architectures, shapes, vocabularies, or tied and untied heads differ, a weight is not finite, or a source
        does not share the base.
    """
    reference = checkpoints[base]
    warnings: list[str] = []
    for name, checkpoint in checkpoints.items():
        if checkpoint is not reference:
            check_form(name, checkpoint, base, reference)
            check_tokenizers(name, checkpoint, base, reference)
            warnings.extend(behaviour(name, checkpoint, base, reference))
    warnings.extend(unverified_bases(checkpoints, base))
    warnings.extend(f"{base}: {line}" for line in reference.left_out)
    if scan:
        for name, checkpoint in checkpoints.items():
            _check_finite(name, checkpoint)
    similarity = measure_similarity(checkpoints, base, sample=True)
    for line in unrelated(similarity, base):
        if not allow_unrelated:
            raise CheckpointError(
                f"{line}; name fine-tunes of {base}, or allow unrelated models with allow_unrelated: true "
                "(--allow-unrelated)"
            )
        warnings.append(line)
    warnings.extend(conflicts({name: licence(checkpoint) for name, checkpoint in checkpoints.items()}))
    warnings.extend(differing_statements(checkpoints, base))
    dtypes = {name: str(checkpoint.dtype).removeprefix("torch.") for name, checkpoint in checkpoints.items()}
    if len(set(dtypes.values())) > 1:
        listed = ", ".join(f"{name} {dtype}" for name, dtype in dtypes.items())
        warnings.append(f"weights are stored in different precisions: {listed}")
    return Report(
        architecture=reference.outline.architecture,
        layers=reference.layout.num_layers,
        parameters=reference.outline.num_parameters,
        tied=reference.outline.tied,
        dtypes=dtypes,
        similarity=similarity,
        warnings=tuple(warnings),
    )


def check_form(name: str, checkpoint: Source, base: str, reference: Source) -> None:
    """Refuse a source whose architecture, depth or shapes are not the base's."""
    _check_architecture(name, checkpoint, base, reference)
    _check_shapes(name, checkpoint, base, reference)


def unverified_bases(checkpoints: Mapping[str, Source], base: str) -> Iterator[str]:
    """Yield a line for each adapter that may have been trained on another base."""
    for name, checkpoint in checkpoints.items():
        if (named := unverified_base(checkpoint)) is not None:
            model, adapter = parts(checkpoint.reference)
            on = base if adapter is None else model
            yield f"{name}: the adapter was trained on {named}; evomerge cannot tell whether {on} is the same model"


def _check_architecture(name: str, checkpoint: Source, base: str, reference: Source) -> None:
    own, wanted = checkpoint.outline.architecture, reference.outline.architecture
    if own != wanted:
        raise CheckpointError(
            f"{name}: its architecture is {own}, and that of {base} is {wanted}; merge models of one architecture"
        )
    if checkpoint.outline.tied != reference.outline.tied:
        tied, untied = (name, base) if checkpoint.outline.tied else (base, name)
        raise CheckpointError(
            f"{name}: the head of {tied} is tied to its embeddings, and the head of {untied} is not; "
            f"save {tied} with tie_word_embeddings=False and a copy of the embeddings as its head"
        )


def _check_shapes(name: str, checkpoint: Source, base: str, reference: Source) -> None:
    if checkpoint.layout.num_layers != reference.layout.num_layers:
        raise CheckpointError(
            f"{name}: it has {checkpoint.layout.num_layers} layers, and {base} has {reference.layout.num_layers}; "
            "name models of the same depth"
        )
    different = set(checkpoint.names) ^ set(reference.names)
    if different:
        tensor = min(different)
        holder, other = (name, base) if tensor in checkpoint.names else (base, name)
        raise CheckpointError(
            f"{name}: {holder} has the tensor {tensor}, and {other} does not; merge models of one architecture"
        )
    shapes = {tensor: (checkpoint.shape(tensor), reference.shape(tensor)) for tensor in reference.names}
    different = {tensor for tensor, (own, wanted) in shapes.items() if own != wanted}
    if not different:
        return
    by_token = reference.outline.rows_by_token
    by_vocabulary = {tensor for tensor in by_token if shapes[tensor][0][1:] == shapes[tensor][1][1:]}
    others = [tensor for tensor in reference.names if tensor in different - by_vocabulary]
    tensor = others[0] if others else next(tensor for tensor in reference.names if tensor in different)
    own, wanted = shapes[tensor]
    line = f"{name}: {tensor} has shape {list(own)} here and {list(wanted)} in {base}"
    if others:
        raise CheckpointError(f"{line}; merge models of one size")
    likewise = ", ".join(sorted(different - {tensor}))
    raise CheckpointError(
        f"{line}{f' ({likewise} likewise)' if likewise else ''}: the vocabularies differ in size; {_POLICY}"
    )


_POLICY = (
    "set vocabulary: base, union, first or pad (in a recipe tokenizer_source: base or union), or resize one with "
    "model.resize_token_embeddings()"
)


def unrelated(similarity: Similarity, base: str) -> Iterator[str]:
    """Yield a line for each expert that does not share the base."""
    for expert in similarity.experts:
        if (reason := similarity.why_unrelated(expert)) is not None:
            yield f"{expert}: {reason}; averaging it with {base} gives no working model"


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


def check_tokenizers(name: str, checkpoint: Source, base: str, reference: Source) -> None:
    """Compare vocabularies where both models have a tokenizer; a model without one uses the base's."""
    if not (checkpoint.tokenizer.files and reference.tokenizer.files):
        return
    own, wanted = checkpoint.tokenizer.load().get_vocab(), reference.tokenizer.load().get_vocab()
    if own != wanted:
        token = min(token for token in own.keys() | wanted.keys() if own.get(token) != wanted.get(token))
        raise CheckpointError(
            f"{name}: its tokenizer gives {token!r} the id {own.get(token)}, and that of {base} gives it "
            f"{wanted.get(token)}; {_POLICY}"
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


def _check_finite(name: str, checkpoint: Source) -> None:
    for tensor in checkpoint.names:
        for part in checkpoint.tensor(tensor).reshape(-1).split(STRETCH):
            # a sum is finite only if all terms are, and costs no mask; large weights may overflow it
            if not bool(torch.isfinite(part.sum(dtype=torch.float64))):
                bad = int((~torch.isfinite(part)).sum())
                if bad:
                    raise CheckpointError(
                        f"{name}: {tensor} holds NaN or infinite values ({bad} found); use another checkpoint"
                    )
