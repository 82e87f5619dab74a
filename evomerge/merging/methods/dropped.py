"""Task vectors thinned at random: DARE and DELLA.

DARE: Yu et al. 2024, arXiv:2311.03099. Keeps each entry with probability d, times 1/d.
DELLA: Deep et al. 2024, arXiv:2406.11617. The probability grows with the entry's rank r_i (1 … n by magnitude, within
its row): q_i = (d − ε) + 2ε (r_i − 1)/(n − 1); what is kept is multiplied by 1/q_i.
Both then add up (`dare_linear`, `della_linear`) or elect signs (`dare_ties`, `della`).

The order of operations is mergekit 0.1.5's. Deviations:

* `rescale` multiplies by 1/d and 1/q_i as in the papers. mergekit multiplies by the ratio of the L1 norms before and
  after, which on a short tensor at density 0.1 was measured between 4 and 287 instead of 10;
* masks are a function of (seed, weights, tensor name), not of the order in which tensors are merged, so that
  candidates of one search differ by their coefficients only and a recipe rebuilds the very same weights anywhere;
* where d ± ε leaves [0, 1], ε is made smaller; `evomerge merge` refuses such recipes, as mergekit does.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias

import torch
from torch import Tensor

from evomerge.merging.methods.blocks import Block
from evomerge.merging.methods.election import elect_and_merge, stepwise_election
from evomerge.merging.methods.formulas import Election, Kept, TensorContext, WeightedSum
from evomerge.merging.methods.linear import add_and_merge, added, stepwise_sum
from evomerge.merging.methods.parameters import (
    INT8_MASK,
    Lambda,
    Normalize,
    NormalizeByDefault,
    PerModel,
    Real,
    RescaleByDefault,
    kept_fraction,
    required_weight,
)
from evomerge.merging.methods.ranking import ascending_places
from evomerge.merging.methods.registry import SourceTensor, WholeTensor, merge_method

MASKS = (
    "evomerge draws each from the seed, the model and the tensor's name and rescales {by}; "
    "mergekit draws them from one generator and rescales by the sum of magnitudes"
)
ThinnedWeight: TypeAlias = Annotated[PerModel, required_weight(-0.5, 1.5, "Factor of the model's thinned task vector.")]
Epsilon: TypeAlias = Annotated[
    PerModel, Real(0.0, 0.3, 0.15, "Half the spread of the keep probabilities.", default=0.15, common=True)
]

LEVELS = 1 << 16  # of a draw
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
SMALLEST_PROBABILITY = 1 / LEVELS  # to divide by


@dataclass(frozen=True)
class Draws:
    """One uniform draw per entry, int16[n] over the whole range: 2 bytes, densities to 1.5e-5."""

    draw: Tensor

    def cut(self, span: slice) -> Draws:
        """Return the draws of some of the entries."""
        return Draws(self.draw[span])


def draws(source: SourceTensor) -> Draws:
    """Draw the uniform numbers that decide, at any density, which entries are dropped.

    Masks are nested: an entry that one density keeps, every larger density keeps.
    """
    digest = hashlib.sha256(f"{source.seed}\0{source.name}\0".encode())
    digest.update(source.values.cpu().contiguous().view(torch.uint8).numpy().data)
    generator = torch.Generator().manual_seed(int.from_bytes(digest.digest()[:8], "little", signed=True))
    draw = torch.randint(-LEVELS // 2, LEVELS // 2, source.values.shape, dtype=torch.int16, generator=generator)
    return Draws(draw.to(source.values.device))


@dataclass(frozen=True)
class RankedDraws:
    """Draws, and each entry's place by magnitude within its row, float32[n]: 0 the smallest, 1 the largest."""

    draw: Tensor
    place: Tensor

    def cut(self, span: slice) -> RankedDraws:
        """Return those of some of the entries."""
        return RankedDraws(self.draw[span], self.place[span])


def ranked_draws(source: SourceTensor) -> RankedDraws:
    """Draw as DARE does, and rank the task vector's entries within their rows."""
    return RankedDraws(draws(source).draw, places(source))


def places(source: SourceTensor) -> Tensor:
    """Return (r − 1)/(n − 1) of each entry, float32; ½ in rows of one."""
    length = source.info.row
    if length == 1:
        return torch.full_like(source.values, 0.5, dtype=torch.float32)
    sizes = source.delta().abs_().view(-1, length)
    return ascending_places(sizes, torch.linspace(0, 1, length, device=sizes.device)).view(-1)


# --- in the models' dtype, rounded to it after every step but the thinning ---


def stepwise_dare_linear(tensor: WholeTensor, *, density: PerModel, rescale: bool, **how: Any) -> Tensor:
    """Return `dare_linear`."""
    return stepwise_sum(tensor, _stepwise_dare(tensor, density, rescale), **how)


def stepwise_dare_ties(tensor: WholeTensor, *, density: PerModel, rescale: bool, **how: Any) -> Tensor:
    """Return `dare_ties`."""
    return stepwise_election(tensor, _stepwise_dare(tensor, density, rescale), **how)


def stepwise_della_linear(
    tensor: WholeTensor, *, density: PerModel, epsilon: PerModel, rescale: bool, **how: Any
) -> Tensor:
    """Return `della_linear`."""
    return stepwise_sum(tensor, _stepwise_della(tensor, density, epsilon, rescale), **how)


def stepwise_della(tensor: WholeTensor, *, density: PerModel, epsilon: PerModel, rescale: bool, **how: Any) -> Tensor:
    """Return `della`."""
    return stepwise_election(tensor, _stepwise_della(tensor, density, epsilon, rescale), **how)


def _stepwise_dare(tensor: WholeTensor, density: PerModel, rescale: bool) -> list[Tensor]:
    deltas = tensor.deltas()
    for index, (drawn, d) in enumerate(zip(tensor.prepared, density, strict=True)):
        levels = levels_kept(d)
        if levels < LEVELS:
            deltas[index].mul_(_below(drawn.draw.view(deltas[index].shape), levels - LEVELS // 2, deltas[index].dtype))
            if rescale and levels:
                deltas[index].mul_(LEVELS / levels)
    return deltas


def _below(draw: Tensor, level: int, dtype: torch.dtype) -> Tensor:
    """Return 1 where a draw is below the level, and 0 elsewhere: as bits, since torch converts truth values slowly."""
    one = torch.ones(1, dtype=dtype).view(_BITS[dtype.itemsize])
    below = torch.lt(draw, level, out=torch.empty_like(draw, dtype=one.dtype))
    return below.mul_(int(one)).view(dtype)


def _stepwise_della(tensor: WholeTensor, density: PerModel, epsilon: PerModel, rescale: bool) -> list[Tensor]:
    deltas = tensor.deltas()
    for index, (drawn, d, e) in enumerate(zip(tensor.prepared, density, epsilon, strict=True)):
        if d < 1:
            q = keep_probability(drawn.place, d, e).view(deltas[index].shape)
            thinned = deltas[index] / q.clamp(min=SMALLEST_PROBABILITY) if rescale else deltas[index]
            kept = drawn.draw.view(q.shape) < q.mul(LEVELS).sub_(LEVELS // 2)
            deltas[index] = (thinned * kept).to(deltas[index].dtype)
    return deltas


# --- in float32 ---


@merge_method(
    "dare_linear",
    min_models=0,
    differentiable=("weight", "lambda"),
    stochastic=True,
    stepwise=stepwise_dare_linear,
    stepwise_by_entry=True,
    deviation=MASKS.format(by="by 1/density"),
    without_effect=(INT8_MASK,),
    prepare=draws,
    prepared_bytes=2,
)
def dare_linear(
    tensor: TensorContext,
    *,
    weight: ThinnedWeight,
    density: Annotated[PerModel, kept_fraction("Probability that an entry is kept.")],
    normalize: Normalize,
    lambda_: Lambda,
    rescale: RescaleByDefault,
) -> WeightedSum:
    """Drop entries of task vectors at random, rescale, add (arXiv:2311.03099).

    Keeps each entry of the task vectors with probability `density`.
    """
    return added(weight=weight, normalize=normalize, lambda_=lambda_, kept=_dare(tensor, density, rescale))


@merge_method(
    "dare_ties",
    min_models=0,
    differentiable=("weight", "lambda"),
    stochastic=True,
    stepwise=stepwise_dare_ties,
    stepwise_by_entry=True,
    deviation=MASKS.format(by="by 1/density"),
    without_effect=(INT8_MASK,),
    prepare=draws,
    prepared_bytes=2,
)
def dare_ties(
    tensor: TensorContext,
    *,
    weight: ThinnedWeight,
    density: Annotated[PerModel, kept_fraction("Probability that an entry is kept.")],
    normalize: Normalize,
    lambda_: Lambda,
    rescale: RescaleByDefault,
) -> Election:
    """Drop entries of task vectors at random, rescale, then elect signs as in ties (arXiv:2311.03099).

    Keeps each entry of the task vectors with probability `density`.
    """
    return Election(weight, normalize, lambda_, _dare(tensor, density, rescale))


@merge_method(
    "della_linear",
    min_models=0,
    differentiable=("weight", "lambda"),
    stochastic=True,
    stepwise=stepwise_della_linear,
    stepwise_by_entry=True,
    deviation=MASKS.format(by="each entry by the inverse of its own probability"),
    without_effect=(INT8_MASK,),
    prepare=ranked_draws,
    prepared_bytes=6,
)
def della_linear(
    block: Block,
    *,
    weight: ThinnedWeight,
    density: Annotated[PerModel, kept_fraction("Mean probability that an entry is kept.")],
    epsilon: Epsilon,
    normalize: Normalize,
    lambda_: Lambda,
    rescale: RescaleByDefault,
) -> None:
    """Drop entries of task vectors at random, small ones more often, rescale each, add (arXiv:2406.11617)."""
    base_E, deltas = _della(block, density, epsilon, rescale)
    add_and_merge(block, base_E, deltas, weight=weight, normalize=normalize, lambda_=lambda_)


@merge_method(
    "della",
    min_models=0,
    differentiable=("weight", "lambda"),
    stochastic=True,
    stepwise=stepwise_della,
    stepwise_by_entry=True,
    deviation=MASKS.format(by="each entry by the inverse of its own probability"),
    without_effect=(INT8_MASK,),
    prepare=ranked_draws,
    prepared_bytes=6,
)
def della(
    block: Block,
    *,
    weight: Annotated[PerModel, required_weight(0.0, 1.5, "Factor of the model's thinned task vector.")],
    density: Annotated[PerModel, kept_fraction("Mean probability that an entry is kept.")],
    epsilon: Epsilon,
    normalize: NormalizeByDefault,
    lambda_: Lambda,
    rescale: RescaleByDefault,
) -> None:
    """Drop entries of task vectors at random, small ones more often, rescale each, then elect signs as in ties
    (arXiv:2406.11617).
    """
    base_E, deltas = _della(block, density, epsilon, rescale)
    elect_and_merge(block, base_E, deltas, weight=weight, normalize=normalize, lambda_=lambda_)


def _dare(tensor: TensorContext, density: PerModel, rescale: bool) -> list[Kept | None]:
    kept: list[Kept | None] = []
    for drawn, d in zip(tensor.prepared, density, strict=True):
        levels = levels_kept(d)
        factor = LEVELS / levels if rescale and levels else 1.0  # 1/density, for exactly the probability used
        kept.append(Kept(drawn.draw, levels - LEVELS // 2, factor=factor) if levels < LEVELS else None)
    return kept


def levels_kept(density: float) -> int:
    """Return how many of the levels of a draw keep an entry."""
    return round(min(max(density, 0.0), 1.0) * LEVELS)


def _della(block: Block, density: PerModel, epsilon: PerModel, rescale: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
    base_E, deltas = block.deltas()
    for delta_E, drawn, d, e in zip(deltas, block.prepared, density, epsilon, strict=True):
        if d < 1:
            q_E = keep_probability(drawn.place, d, e, out=block.spare("probability"))
            if rescale:
                delta_E.div_(torch.clamp(q_E, min=SMALLEST_PROBABILITY, out=block.spare("mask")))
            levels_E = q_E.mul_(LEVELS).sub_(LEVELS // 2)
            delta_E.mul_(torch.lt(drawn.draw, levels_E, out=block.spare("mask")))
    return base_E, deltas


def keep_probability(place_E: Tensor, density: float, epsilon: float, out: Tensor | None = None) -> Tensor:
    """Return q_i = (d − ε) + 2ε (r_i − 1)/(n − 1), with ε as large as fits."""
    slope, offset = keep_spread(density, epsilon)
    return torch.mul(place_E, slope, out=out).add_(offset)


def keep_spread(density: float, epsilon: float) -> tuple[float, float]:
    """Return 2ε and d − ε, with ε as large as fits."""
    density = min(max(density, 0.0), 1.0)
    epsilon = min(max(epsilon, 0.0), density, 1 - density)
    return 2 * epsilon, density - epsilon
