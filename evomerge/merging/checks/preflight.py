"""Checks of the sources against each other, before the first candidate."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from evomerge.files.messages import counted
from evomerge.merging.checks.behaviour import behaviour, differing_statements
from evomerge.merging.checks.licences import conflicts, licence
from evomerge.merging.checks.similarity import Similarity, measure_similarity
from evomerge.merging.sources.errors import CheckpointError
from evomerge.merging.sources.open_sources import unverified_base
from evomerge.merging.sources.source import Source, all_finite
from search_spaces.recipes.references import parts

STRETCH = 1 << 22  # entries read together when scanning for NaN


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


def check(
    checkpoints: Mapping[str, Source],
    base: str,
    *,
    scan: bool = True,
    allow_unrelated: bool = False,
    scanned: Callable[[str], None] = lambda name: None,
    before_scan: Callable[[], None] | None = None,
) -> Report:
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
    scanned
        Called with a source's name before its weights are read.
    before_scan
        Called when all shapes fit and no weight has been read: for further checks that take no time.

    Raises
    ------
    CheckpointError
        If architectures, shapes, vocabularies, or tied and untied heads differ, a weight is not finite, or a source
        does not share the base.
    """
    reference = checkpoints[base]
    warnings: list[str] = []
    for name, checkpoint in checkpoints.items():
        if checkpoint.tokenizer.files and (checkpoint is reference or not reference.tokenizer.files):
            checkpoint.tokenizer.check()  # the others are compared with it
        if checkpoint is not reference:
            check_form(name, checkpoint, base, reference)
            check_tokenizers(name, checkpoint, base, reference)
            warnings.extend(behaviour(name, checkpoint, base, reference))
    warnings.extend(unverified_bases(checkpoints, base))
    for name, checkpoint in checkpoints.items():
        said = () if checkpoint is reference else reference.left_out  # an adapter's are its base's
        warnings.extend(f"{name}: {line}" for line in checkpoint.left_out if line not in said)
    if before_scan is not None:
        before_scan()
    if scan:
        for name, checkpoint in checkpoints.items():
            scanned(name)
            _check_finite(name, checkpoint)
    similarity = measure_similarity(checkpoints, base, sample=True)
    for line in unrelated(similarity, base):
        if not allow_unrelated:
            raise CheckpointError(
                f"{line}; name fine-tunes of {base}, try evomerge match on a model whose units are in another order, "
                "or allow unrelated models with allow_unrelated: true (--allow-unrelated)"
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
            f"{name}: it has {counted(checkpoint.layout.num_layers, 'layer')}, and {base} has "
            f"{reference.layout.num_layers}; "
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
    "set vocabulary: base, union, first or pad (in a recipe tokenizer_source: base or union, or evomerge: {vocabulary: "
    "first} or {vocabulary: pad}; in init and inspect --vocabulary), or resize one with "
    "model.resize_token_embeddings()"
)


def unrelated(similarity: Similarity, base: str) -> Iterator[str]:
    """Yield a line for each expert that does not share the base."""
    for expert in similarity.experts:
        if (reason := similarity.why_unrelated(expert)) is not None:
            yield f"{expert}: {reason}; averaging it with {base} gives no working model"


def check_tokenizers(name: str, checkpoint: Source, base: str, reference: Source) -> None:
    """Compare vocabularies where both models have a tokenizer; a model without one uses the base's."""
    if not (checkpoint.tokenizer.files and reference.tokenizer.files):
        return
    if checkpoint.tokenizer.has_vocabulary_of(reference.tokenizer):
        return
    own, wanted = checkpoint.tokenizer.load().get_vocab(), reference.tokenizer.load().get_vocab()
    if own.keys() != wanted.keys() and sorted(own.values()) == sorted(wanted.values()):
        theirs = {place: token for token, place in wanted.items()}
        renamed = {place: token for token, place in own.items() if theirs[place] != token}
        if not any(token in wanted for token in renamed.values()):
            place = min(renamed)
            raise CheckpointError(
                f"{name}: its tokenizer calls row {place} {renamed[place]!r}, and that of {base} calls it "
                f"{theirs[place]!r} (other names in {counted(len(renamed), 'row')}); set vocabulary: pad to "
                "merge them row by "
                f"row under the names of {base}, or vocabulary: first for those of the first model after {base} (in a "
                "recipe evomerge: {vocabulary: pad} or {vocabulary: first}; in init and inspect --vocabulary pad or "
                "first)"
            )
    token = min(token for token in own.keys() | wanted.keys() if own.get(token) != wanted.get(token))
    ids = [f"the id {one[token]}" if token in one else "none" for one in (own, wanted)]
    raise CheckpointError(
        f"{name}: its tokenizer gives {token!r} {ids[0]}, and that of {base} gives it {ids[1]}; {_POLICY}"
    )


def _check_finite(name: str, checkpoint: Source) -> None:
    for tensor in checkpoint.names:
        check_finite(name, tensor, checkpoint.tensor(tensor))


def check_finite(name: str, tensor: str, values: Tensor) -> None:
    """Refuse a tensor of the source `name` that holds NaN or infinity."""
    for part in values.reshape(-1).split(STRETCH):
        if not all_finite(part):
            bad = int((~torch.isfinite(part)).sum())
            raise CheckpointError(
                f"{name}: {tensor} contains NaN or infinite values ({bad} found); use another checkpoint"
            )
