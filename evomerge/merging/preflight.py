"""Checks of the sources against each other, before the first candidate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from evomerge.merging.checkpoints import Checkpoint, CheckpointError

STRETCH = 1 << 22  # entries looked at together when scanning for NaN

# Settings that change what a model computes with the same weights. Where sources differ in one, a merge runs
# with the base's, and so may a source behave otherwise than alone.
BEHAVIOUR = ("rope_theta", "rope_scaling", "rope_parameters", "sliding_window", "layer_types", "hidden_act")


@dataclass(frozen=True)
class Report:
    """What the check found that does not stand in the way.

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
    warnings
        One line each.
    """

    architecture: str
    layers: int
    parameters: int
    tied: bool
    dtypes: Mapping[str, str]
    warnings: tuple[str, ...]


def check(checkpoints: Mapping[str, Checkpoint], base: str, *, scan: bool = True) -> Report:
    """Check that the sources can be merged.

    Parameters
    ----------
    checkpoints
        Opened sources by the user's name for them.
    base
        The name of the one all others are compared with.
    scan
        Read every weight once, to find NaN and infinite values.

    Raises
    ------
    CheckpointError
        If architectures, shapes, vocabularies, or tied and untied heads differ, or a weight is not finite.
    """
    reference = checkpoints[base]
    warnings: list[str] = []
    for name, checkpoint in checkpoints.items():
        if checkpoint is not reference:
            _check_architecture(name, checkpoint, base, reference)
            _check_shapes(name, checkpoint, base, reference)
            _check_tokenizers(name, checkpoint, base, reference)
            warnings.extend(_behaviour(name, checkpoint, base, reference))
    if scan:
        for name, checkpoint in checkpoints.items():
            _check_finite(name, checkpoint)
    dtypes = {name: str(checkpoint.dtype).removeprefix("torch.") for name, checkpoint in checkpoints.items()}
    if len(set(dtypes.values())) > 1:
        listed = ", ".join(f"{name} {dtype}" for name, dtype in dtypes.items())
        warnings.append(f"weights are stored in different precisions: {listed}")
    return Report(
        architecture=reference.architecture,
        layers=reference.layout.num_layers,
        parameters=reference.num_parameters,
        tied=reference.tied,
        dtypes=dtypes,
        warnings=tuple(warnings),
    )


def _check_architecture(name: str, checkpoint: Checkpoint, base: str, reference: Checkpoint) -> None:
    own, wanted = checkpoint.architecture, reference.architecture
    if own != wanted:
        raise CheckpointError(f"{name}: it is a {own} and {base} a {wanted}; merge models of one architecture")
    if checkpoint.tied != reference.tied:
        tied, untied = (name, base) if checkpoint.tied else (base, name)
        raise CheckpointError(
            f"{name}: the head of {tied} is tied to its embeddings and that of {untied} is not; "
            f"save {tied} with tie_word_embeddings=False and a copy of the embeddings as its head"
        )


def _check_shapes(name: str, checkpoint: Checkpoint, base: str, reference: Checkpoint) -> None:
    if checkpoint.layout.num_layers != reference.layout.num_layers:
        raise CheckpointError(
            f"{name}: it has {checkpoint.layout.num_layers} layers and {base} {reference.layout.num_layers}; "
            "name models of the same depth"
        )
    different = set(checkpoint.names) ^ set(reference.names)
    if different:
        tensor = min(different)
        holder, other = (name, base) if tensor in checkpoint.names else (base, name)
        raise CheckpointError(f"{name}: {tensor} is in {holder} and not in {other}; merge models of one architecture")
    for tensor in reference.names:
        own, wanted = checkpoint.shape(tensor), reference.shape(tensor)
        if own != wanted:
            raise CheckpointError(
                f"{name}: {tensor} has shape {list(own)} and in {base} {list(wanted)}"
                + _shape_advice(reference, tensor, own, wanted)
            )


def _shape_advice(reference: Checkpoint, tensor: str, own: tuple[int, ...], wanted: tuple[int, ...]) -> str:
    by_token = tensor in reference.layout.embeddings or tensor == reference.layout.head
    if by_token and own[1:] == wanted[1:]:
        return ": the vocabularies differ in size; resize one with model.resize_token_embeddings() and save it"
    return "; merge models of one size"


def _check_tokenizers(name: str, checkpoint: Checkpoint, base: str, reference: Checkpoint) -> None:
    """Compare vocabularies where both models come with one; a model without uses the base's."""
    if not (checkpoint.tokenizer_files and reference.tokenizer_files):
        return
    own, wanted = checkpoint.tokenizer().get_vocab(), reference.tokenizer().get_vocab()
    if own != wanted:
        token = min(token for token in own.keys() | wanted.keys() if own.get(token) != wanted.get(token))
        raise CheckpointError(
            f"{name}: its tokenizer gives {token!r} the id {own.get(token)} and that of {base} "
            f"{wanted.get(token)}; "
            "merge models that share a tokenizer, or align one with mergekit-tokensurgeon"
        )


def _behaviour(name: str, checkpoint: Checkpoint, base: str, reference: Checkpoint) -> Iterator[str]:
    for key in BEHAVIOUR:
        own: Any = getattr(checkpoint.config, key, None)
        wanted: Any = getattr(reference.config, key, None)
        if own != wanted:
            yield f"{name}: {key} is {own} and in {base} {wanted}; merges run with the base's"


def _check_finite(name: str, checkpoint: Checkpoint) -> None:
    for tensor in checkpoint.names:
        for part in checkpoint.tensor(tensor).reshape(-1).split(STRETCH):
            # a sum is finite only if all terms are, and costs no mask; large weights may overflow it
            if not bool(torch.isfinite(part.sum(dtype=torch.float64))):
                bad = int((~torch.isfinite(part)).sum())
                if bad:
                    raise CheckpointError(
                        f"{name}: {tensor} holds NaN or infinite values ({bad} found); use another checkpoint"
                    )
