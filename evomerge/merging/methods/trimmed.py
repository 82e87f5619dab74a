"""Task vectors trimmed by magnitude: TIES and Model Breadcrumbs.

TIES: Yadav et al. 2023, arXiv:2306.01708. Keeps the ⌊d·n⌋ largest entries of |θ_t − θ_0|, at least one.
Breadcrumbs: Davari and Belilovsky 2023, arXiv:2312.06795. Cuts off the ⌊γ·n⌋ largest as well, as outliers, and keeps
the ⌊d·n⌋ next. Both then add up (`breadcrumbs`) or elect signs (`ties`, `breadcrumbs_ties`).

The order of operations is mergekit 0.1.5's. Deviation: `whole_model` trims over the whole model, as the TIES authors do
and mergekit cannot: the ⌊d·n⌋ largest entries of all the model's tensors are kept, to within 1/4096 of the threshold's
size.

Entries of equal magnitude, which half precision has many of, are kept or cut as in mergekit, whose sort is
followed (see `ranking`).
Where d·n + γ·n > n, fewer outliers are cut, so that d decides how many are kept, on tensors of any size; at d = 1
all are. (mergekit before 0.1.5 kept nothing of tensors with γ·n < 1.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias

import torch
from torch import Tensor

from evomerge.merging.methods.election import stepwise_election
from evomerge.merging.methods.formulas import Election, Kept, TensorContext, WeightedSum
from evomerge.merging.methods.last_value_cache import LastValueCache
from evomerge.merging.methods.linear import added, stepwise_sum
from evomerge.merging.methods.parameters import (
    INT8_MASK,
    Flag,
    Lambda,
    Normalize,
    NormalizeByDefault,
    PerModel,
    Real,
    Rescale,
    kept_fraction,
    required_weight,
)
from evomerge.merging.methods.ranking import between, descending_ranks, largest, reversed_ascending_ranks
from evomerge.merging.methods.registry import SourceModel, SourceTensor, WholeTensor, merge_method

TrimmedWeight: TypeAlias = Annotated[PerModel, required_weight(-0.5, 1.5, "Factor of the model's trimmed task vector.")]
CrumbDensity: TypeAlias = Annotated[PerModel, kept_fraction("Fraction of entries kept, below the outliers.")]
Gamma: TypeAlias = Annotated[PerModel, Real(0.0, 0.05, 0.01, "Fraction cut off at the top.", default=0.01, common=True)]

STRETCH = 1 << 22  # entries counted together
MANTISSA_BITS_DROPPED = 11
BINS = 1 << (31 - MANTISSA_BITS_DROPPED)
SMALLEST_NORM = 1e-7  # below it, mergekit's rescaling is left out


class Magnitudes:
    """What trimming needs to know of a whole task vector beyond the ranks; keeps the last answers."""

    def __init__(self, rank: Tensor, source: SourceTensor) -> None:
        self.rank = rank
        self.source = source
        self._ratio: LastValueCache[float] = LastValueCache()
        self._kept: LastValueCache[int] = LastValueCache()

    def ratio(self, first: int, end: int) -> float:
        """Return Σ|δ| / Σ|δ kept| over the whole tensor when ranks first … end−1 are, 1 when either vanishes."""
        return self._ratio.get((first, end), lambda: self._measure(first, end))

    def kept_of_model(self, density: float) -> int:
        """Return how many entries of this tensor are among the largest ⌊density·n⌋ of the whole model."""
        return self._kept.get(density, lambda: self._count(density))

    def _count(self, density: float) -> int:
        at_least: Tensor = self.source.model.once("magnitudes", lambda: _counts_from_the_top(self.source.model))
        kept = number_kept(density, int(at_least[-1]))
        if kept == 0:
            return 0
        threshold = BINS - 1 - int(torch.searchsorted(at_least, kept))
        return int((_bins(self.source.delta()) >= threshold).sum())

    def _measure(self, first: int, end: int) -> float:
        magnitude = self.source.delta().abs_()
        before = magnitude.sum()
        after = magnitude.masked_fill_((self.rank < first) | (self.rank >= end), 0).sum()
        vanishes = before < SMALLEST_NORM or after < SMALLEST_NORM
        return 1.0 if vanishes else float(before / after)


@dataclass(frozen=True)
class Ranks:
    """Rank of each entry by magnitude of its delta, int32[n], 0 for the largest."""

    rank: Tensor
    magnitudes: Magnitudes

    def cut(self, span: slice) -> Ranks:
        """Return the ranks of some of the entries."""
        return Ranks(self.rank[span], self.magnitudes)


def ranks(source: SourceTensor) -> Ranks:
    """Rank a task vector's entries by magnitude, ties as in `ties`."""
    return _ranked(source, descending_ranks)


def crumb_ranks(source: SourceTensor) -> Ranks:
    """Rank a task vector's entries by magnitude, ties as in `breadcrumbs`."""
    return _ranked(source, reversed_ascending_ranks)


def _ranked(source: SourceTensor, order: Callable[[Tensor], Tensor]) -> Ranks:
    rank = order(source.delta().abs_())
    return Ranks(rank, Magnitudes(rank, source))


def stepwise_ties(
    tensor: WholeTensor,
    *,
    weight: PerModel,
    density: PerModel,
    normalize: bool,
    lambda_: float,
    rescale: bool,
) -> Tensor:
    """Return `ties`, rounded to the models' dtype after every step."""
    deltas = tensor.deltas()
    for index, d in enumerate(density):
        if d < 1:
            size = deltas[index].numel()
            deltas[index] = _trimmed(deltas[index], largest(_sizes(deltas[index]), number_kept(d, size)), rescale)
    return stepwise_election(tensor, deltas, weight=weight, normalize=normalize, lambda_=lambda_)


def stepwise_breadcrumbs(
    tensor: WholeTensor, *, density: PerModel, gamma: PerModel, rescale: bool, **how: Any
) -> Tensor:
    """Return `breadcrumbs`, rounded to the models' dtype after every step."""
    return stepwise_sum(tensor, _stepwise_crumbs(tensor, density, gamma, rescale), **how)


def stepwise_breadcrumbs_ties(
    tensor: WholeTensor, *, density: PerModel, gamma: PerModel, rescale: bool, **how: Any
) -> Tensor:
    """Return `breadcrumbs_ties`, rounded to the models' dtype after every step."""
    return stepwise_election(tensor, _stepwise_crumbs(tensor, density, gamma, rescale), **how)


def _stepwise_crumbs(tensor: WholeTensor, density: PerModel, gamma: PerModel, rescale: bool) -> list[Tensor]:
    deltas = tensor.deltas()
    for index, (d, g) in enumerate(zip(density, gamma, strict=True)):
        if d < 1:
            first, end = crumbs(d, g, deltas[index].numel())
            deltas[index] = _trimmed(deltas[index], between(_sizes(deltas[index]), first, end), rescale)
    return deltas


def _sizes(delta: Tensor) -> Tensor:
    """Return the entries' magnitudes as mergekit sorts them: of half precision, on a CPU, as float32."""
    sizes = delta.abs().reshape(-1)
    return sizes.float() if sizes.device.type == "cpu" else sizes


def _trimmed(delta: Tensor, kept: Tensor, rescale: bool) -> Tensor:
    """Return the entries that are kept, the others as 0; overwrites the task vector."""
    if not rescale:
        return delta.mul_(kept.view(delta.shape))
    before = delta.abs().sum()
    after = delta.mul_(kept.view(delta.shape)).abs().sum()
    vanishes = bool(before < SMALLEST_NORM or after < SMALLEST_NORM)
    return delta if vanishes else delta.mul_(before / after)


@merge_method(
    "ties",
    min_models=0,
    differentiable=("weight", "lambda"),
    stepwise=stepwise_ties,
    without_effect=(INT8_MASK,),
    prepare=ranks,
    prepared_bytes=4,
)
def ties(
    tensor: TensorContext,
    *,
    # with `normalize` the kept weights are a divisor: signs that cancel would make it vanish
    weight: Annotated[PerModel, required_weight(0.0, 1.5, "Factor of the model's trimmed task vector.")],
    density: Annotated[PerModel, kept_fraction("Fraction of entries kept, the largest by magnitude.")],
    normalize: NormalizeByDefault,
    lambda_: Lambda,
    rescale: Rescale,
    whole_model: Annotated[bool, Flag(False, "Trim over the whole model, not tensor by tensor.", extension=True)],
) -> Election:
    """Trim task vectors, elect a sign per entry, merge those that agree (arXiv:2306.01708).

    Keeps the ⌊density·n⌋ largest entries (at least one) of each task vector.
    """
    kept: list[Kept | None] = []
    for ranked, d in zip(tensor.prepared, density, strict=True):
        count = ranked.magnitudes.kept_of_model(d) if whole_model and d < 1 else number_kept(d, tensor.size)
        kept.append(_between(ranked, 0, count, tensor.size, rescale=rescale and count > 0))
    return Election(weight, normalize, lambda_, kept)


@merge_method(
    "breadcrumbs",
    min_models=0,
    differentiable=("weight", "lambda"),
    stepwise=stepwise_breadcrumbs,
    without_effect=(INT8_MASK,),
    prepare=crumb_ranks,
    prepared_bytes=4,
)
def breadcrumbs(
    tensor: TensorContext,
    *,
    weight: TrimmedWeight,
    density: CrumbDensity,
    gamma: Gamma,
    normalize: Normalize,
    lambda_: Lambda,
    rescale: Rescale,
) -> WeightedSum:
    """Trim task vectors at the bottom and at the top, add (arXiv:2312.06795).

    Cuts off the ⌊γ·n⌋ largest entries of each task vector and keeps the ⌊density·n⌋ next.
    """
    kept = _crumbs(tensor, density, gamma, rescale)
    return added(weight=weight, normalize=normalize, lambda_=lambda_, kept=kept)


@merge_method(
    "breadcrumbs_ties",
    min_models=0,
    differentiable=("weight", "lambda"),
    stepwise=stepwise_breadcrumbs_ties,
    without_effect=(INT8_MASK,),
    prepare=crumb_ranks,
    prepared_bytes=4,
)
def breadcrumbs_ties(
    tensor: TensorContext,
    *,
    weight: TrimmedWeight,
    density: CrumbDensity,
    gamma: Gamma,
    normalize: Normalize,
    lambda_: Lambda,
    rescale: Rescale,
) -> Election:
    """Trim task vectors at the bottom and at the top, then elect signs as in ties (arXiv:2312.06795).

    Trims as `breadcrumbs` does.
    """
    return Election(weight, normalize, lambda_, _crumbs(tensor, density, gamma, rescale))


def _crumbs(tensor: TensorContext, density: PerModel, gamma: PerModel, rescale: bool) -> list[Kept | None]:
    return [
        _between(ranked, *crumbs(d, g, tensor.size), tensor.size, rescale=rescale)
        for ranked, d, g in zip(tensor.prepared, density, gamma, strict=True)
    ]


def _between(ranked: Ranks, first: int, end: int, size: int, *, rescale: bool) -> Kept | None:
    """Return the entries of ranks first … end−1, None for all of them."""
    if end - first >= size:
        return None
    factor = ranked.magnitudes.ratio(first, end) if rescale else 1.0
    return Kept(ranked.rank, end, first or None, factor)


def crumbs(density: float, gamma: float, size: int) -> tuple[int, int]:
    """Return the first rank kept and the one after the last."""
    kept = min(max(int(density * size), 0), size)
    first = min(int(gamma * size), size - kept)
    return first, first + kept


def _counts_from_the_top(model: SourceModel) -> Tensor:
    """Count the entries of all the model's task vectors in the bins of largest magnitude, int64[BINS], cumulated."""
    counts = torch.zeros(BINS, dtype=torch.int64)
    for values, base in model.pairs():
        assert base is not None, "ties requires a base"
        for part, base_part in zip(values.split(STRETCH), base.split(STRETCH), strict=True):
            counts += torch.bincount(_bins(part.float() - base_part.float()), minlength=BINS).cpu()
    return counts.flip(0).cumsum(0)


def _bins(delta: Tensor) -> Tensor:
    """Return each entry's bin: the exponent and 12 bits of the mantissa of its magnitude, which grow with it."""
    return delta.abs().view(torch.int32) >> MANTISSA_BITS_DROPPED


def number_kept(density: float, size: int) -> int:
    """Return ⌊density·size⌋, at least one unless the density is 0."""
    if density >= 1:
        return size
    return max(1, int(density * size)) if density > 0 else 0
