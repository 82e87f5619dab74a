"""Similarity: how close fine-tunes are to their base and to each other, measured in one pass over the weights.

Fine-tunes of one base are close to it: the cosine between their linear maps and the base's is near 1. Models that were
trained separately have a cosine near 0 and a difference longer than the weights themselves, and their average works as
neither of them. A checkpoint whose attention or MLP was rotated or permuted (to protect it against merging) has such
weights, although it computes the same function.

Letters: T experts, E entries read together.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from evomerge.merging.methods.blocks import one_thread
from evomerge.merging.sources.source import Source
from search_spaces.recipes.layout import ModelLayout

STRETCH = 1 << 20  # entries per model read together
NORM_STRETCH = 1 << 22  # entries read together for the norms of whole task vectors
RUNS, RUN = 16, 1024  # of a sample: stretches per tensor, evenly spread, and entries in each

# With equal norms, cos < 0.5 exactly when the difference from the base is longer than the base itself.
UNRELATED = 0.5

Module = Literal["attention", "mlp", "other"]


@dataclass(frozen=True)
class Similarity:
    """What one pass measured.

    Attributes
    ----------
    experts
        Names, T of them.
    entries, total
        Entries read per model, and entries in all.
    groups
        Names of the positions: ``embeddings``, a layer's number, ``final``.
    delta_norms
        Norm of the task vector per expert and group; one measured on a sample is scaled to the whole.
    base_norms
        Norm of the base per group, scaled likewise.
    weight_cosines
        Cosine of each expert's linear maps with the base's, by module.
    cosines, pearsons
        Between the experts' task vectors over the whole model, [T][T]; NaN where a task vector is zero.
    """

    experts: tuple[str, ...]
    entries: int
    total: int
    groups: tuple[str, ...]
    delta_norms: Mapping[str, tuple[float, ...]]
    base_norms: tuple[float, ...]
    weight_cosines: Mapping[str, Mapping[Module, float]]
    cosines: tuple[tuple[float, ...], ...]
    pearsons: tuple[tuple[float, ...], ...]

    def relative_norm(self, expert: str) -> float:
        """Return the norm of an expert's task vector over that of the base."""
        base = math.hypot(*self.base_norms)
        return math.hypot(*self.delta_norms[expert]) / base if base else math.inf

    def why_unrelated(self, expert: str) -> str | None:
        """Return why an expert does not share the base, as a clause; None when it shares it."""
        cosines = self.weight_cosines[expert]
        far = {module: value for module, value in cosines.items() if value < UNRELATED}
        if not far:
            return None
        shown = ", ".join(f"{module} {value:.2f}" for module, value in cosines.items())
        if far.keys() == cosines.keys():
            return f"its weights do not come from the base's (cosine: {shown})"
        parts = " and ".join(far)
        return f"its {parts} weights are rotated, permuted or rescaled against the base's (cosine: {shown})"


@dataclass
class _Sums:
    """Running sums in float64 over the entries of one group or module."""

    base: float = 0.0
    delta: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    own: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    product: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))


def measure_similarity(checkpoints: Mapping[str, Source], base: str, *, sample: bool = False) -> Similarity:
    """Measure the similarity of all experts with the base and with each other.

    Parameters
    ----------
    checkpoints
        Opened sources of one architecture and size, by the user's name.
    base
        The base's name.
    sample
        Read 16 stretches of 1,024 entries per tensor instead of whole tensors: about 5 million entries of a model with
        300 tensors, which takes a fraction of a second when the files are in the page cache.
    """
    with one_thread() if sample else nullcontext():
        return _measured(checkpoints, base, sample=sample)


def _measured(checkpoints: Mapping[str, Source], base: str, *, sample: bool) -> Similarity:
    origin = checkpoints[base]
    experts = tuple(name for name in checkpoints if name != base)
    sums = _Pass(len(experts))
    for place in _places(origin.layout):
        tensor, size = place.tensor, math.prod(origin.shape(place.tensor))
        base_E = _sampled(origin.tensor(tensor), sample)
        own_TE = [_sampled(checkpoints[name].tensor(tensor), sample) for name in experts]
        scale = size / base_E.numel() if size else 1.0
        is_map = len(origin.shape(tensor)) > 1
        for start in range(0, base_E.numel(), STRETCH):
            span = slice(start, start + STRETCH)
            sums.add(place, base_E[span], [own_E[span] for own_E in own_TE], scale, is_map=is_map)
        for checkpoint in checkpoints.values():  # the pages between the samples are in memory, too
            checkpoint.release(tensor)
    return sums.result(experts, origin.outline.num_parameters)


class _Place(NamedTuple):
    """A tensor, the group it counts in, and its module if it belongs to a layer."""

    tensor: str
    group: str
    module: Module | None


class _Pass:
    """All sums of one pass over the weights of T experts."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.entries = 0
        self.gram_TT = torch.zeros(count, count, dtype=torch.float64)
        self.sums_T = torch.zeros(count, dtype=torch.float64)
        self.groups: dict[str, _Sums] = {}
        self.modules: dict[Module, _Sums] = {}

    def add(self, place: _Place, base_E: Tensor, own_TE: Sequence[Tensor], scale: float, *, is_map: bool) -> None:
        """Add E entries of each model, which count `scale` times."""
        self.entries += base_E.numel()
        base_part = base_E.float()
        own_part = torch.stack([base_part, *(own_E.float() for own_E in own_TE)])[1:]  # [0, E] without experts
        if is_map and place.module is not None:
            _add_weights(self.modules.setdefault(place.module, _zeros(self.count)), base_part, own_part, scale)
        delta_part = own_part - base_part
        part_TT = (delta_part @ delta_part.T).double() * scale
        self.gram_TT += part_TT
        self.sums_T += delta_part.sum(1, dtype=torch.float64) * scale
        sums = self.groups.setdefault(place.group, _zeros(self.count))
        sums.base += float(base_part.square().sum(dtype=torch.float64)) * scale
        sums.delta += part_TT.diagonal()

    def result(self, experts: tuple[str, ...], total: int) -> Similarity:
        """Return what the sums say about models of `total` entries."""
        groups, modules = self.groups.values(), self.modules.items()
        return Similarity(
            experts=experts,
            entries=self.entries,
            total=total,
            groups=tuple(self.groups),
            delta_norms={
                name: tuple(math.sqrt(float(sums.delta[index])) for sums in groups)
                for index, name in enumerate(experts)
            },
            base_norms=tuple(math.sqrt(sums.base) for sums in groups),
            weight_cosines={
                name: {module: _cosine(sums, index) for module, sums in modules} for index, name in enumerate(experts)
            },
            cosines=_normalised(self.gram_TT),
            pearsons=_normalised(self.gram_TT - torch.outer(self.sums_T, self.sums_T) / total),
        )


def _zeros(count: int) -> _Sums:
    return _Sums(0.0, *(torch.zeros(count, dtype=torch.float64) for _ in range(3)))


def _places(layout: ModelLayout) -> Iterator[_Place]:
    """Yield every tensor with its group, and with its module if it belongs to a layer."""
    yield from (_Place(name, "embeddings", None) for name in layout.embeddings)
    for layer, names in enumerate(layout.layers):
        for name in names:
            child = name.partition(".")[0]
            module: Module = "attention" if child == layout.attention else "mlp" if child == layout.mlp else "other"
            yield _Place(layout.layer_tensor(layer, name), str(layer), module)
    yield from (_Place(name, "final", None) for name in layout.final)


def _sampled(tensor: Tensor, sample: bool) -> Tensor:
    """Return the tensor flat, or evenly spread stretches of it."""
    flat_E = tensor.reshape(-1)
    if not sample or flat_E.numel() <= RUNS * RUN:
        return flat_E
    starts = [index * (flat_E.numel() - RUN) // (RUNS - 1) for index in range(RUNS)]
    return torch.cat([flat_E[start : start + RUN] for start in starts])


def _add_weights(sums: _Sums, base_E: Tensor, own_TE: Tensor, scale: float) -> None:
    sums.base += float(base_E.square().sum(dtype=torch.float64)) * scale
    sums.own += own_TE.square().sum(1, dtype=torch.float64) * scale
    sums.product += (own_TE @ base_E).double() * scale


def _cosine(sums: _Sums, index: int) -> float:
    norms = math.sqrt(sums.base * float(sums.own[index]))
    return float(sums.product[index]) / norms if norms else float(sums.base == float(sums.own[index]))


def _normalised(gram_TT: Tensor) -> tuple[tuple[float, ...], ...]:
    """Return the correlation matrix of a Gram matrix."""
    norms_T = gram_TT.diagonal().clamp(min=0).sqrt()
    return tuple(tuple(row) for row in (gram_TT / torch.outer(norms_T, norms_T)).tolist())


def squared_norms(checkpoints: Mapping[str, Source], base: str) -> dict[str, float]:
    """Return the squared norm of each model's task vector over the whole model, by name, without the base.

    Tied tensors count once. Reads every weight once, in float32 with a float64 sum.
    """
    reference = checkpoints[base]
    norms = dict.fromkeys((name for name in checkpoints if name != base), 0.0)
    for tensor in reference.names:
        base_E = reference.tensor(tensor).reshape(-1)
        for name in norms:
            own_E = checkpoints[name].tensor(tensor).reshape(-1)
            for own, origin in zip(own_E.split(NORM_STRETCH), base_E.split(NORM_STRETCH), strict=True):
                norms[name] += float(torch.sub(own.float(), origin.float()).double().square_().sum())
    return norms
