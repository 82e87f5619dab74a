"""Parameter competition balancing (Du et al. 2024, arXiv:2410.02396), the pairwise variant.

Per tensor, with c_t = |τ_t| clamped to its percentiles [q, 1 − q], N(·) the min-max normalisation over the tensor's
entries and N̂_t = sign(τ_t) N(c_t):

    intra-balancing   exp(T N(c_t)²)
    inter-balancing   Σ_s tanh(N̂_t N̂_s)
    β_t = intra ⊙ inter;  s_t = N(max(β_t, its (1−r)-quantile))
    θ = θ_0 + λ Σ w_t c̃_t s_t / Σ s_t,  c̃_t = sign(τ_t) c_t

The authors' code has three forms of the inter-balancing; this is the one of their evolutionary search, whose scores
do not change with the scale of the task vectors, and so is q = 0.01 (their code for language models: 0.0001).
Deviations: normalised and clamped per tensor, not over the whole model; 0/0 is 0. As in their code, the upper
percentile of a tensor shorter than 1/q leaves out its largest entry.

β is prepared for that percentile; another one computes it again, and another `ratio` costs a pass over it for the
quantiles.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from evomerge.merging.methods.blocks import Block
from evomerge.merging.methods.last_value_cache import LastValueCache
from evomerge.merging.methods.parameters import Factor, Lambda, MethodError, Real
from evomerge.merging.methods.registry import SourceGroup, WholeTensorState, merge_method

PERCENTILE = 0.01  # q
SMALLEST = 1e-30  # to divide by


@dataclass(frozen=True)
class Scores:
    """Scores β_t, float32[n] per model, and the percentiles that the task vectors were clamped to."""

    scores: list[Tensor]
    bounds: list[tuple[float, float]]


class Competition(WholeTensorState):
    """The scores for the last percentile, and their last quantiles."""

    def __init__(self, group: SourceGroup) -> None:
        self._group = group
        self._scores: LastValueCache[Scores] = LastValueCache()
        self._ranges: LastValueCache[list[tuple[float, float]]] = LastValueCache()
        self.at(PERCENTILE)

    def at(self, percentile: float) -> Scores:
        """Return the scores of task vectors clamped to a percentile and its complement."""
        return self._scores.get(percentile, lambda: _compete(self._group.deltas(), percentile))

    def ranges(self, percentile: float, ratio: float) -> list[tuple[float, float]]:
        """Return, per model, the (1−r)-quantile of its scores and their largest."""
        return self._ranges.get(
            (percentile, ratio), lambda: [_range(score, ratio) for score in self.at(percentile).scores]
        )


@merge_method("pcb", differentiable=("weight", "lambda"), prepare_all=Competition, prepared_bytes=4)
def pcb(
    block: Block,
    *,
    weight: Factor,
    ratio: Annotated[float, Real(0.02, 1.0, 0.1, "Fraction of entries that score.", default=0.1)],
    percentile: Annotated[float, Real(doc="Task vectors are clamped to it and its complement.", default=PERCENTILE)],
    lambda_: Lambda,
) -> None:
    """Average of task vectors by scores of strength within a model and agreement between them (arXiv:2410.02396)."""
    state: Competition = block.shared
    competition = state.at(percentile)
    base_E, deltas = block.deltas()
    out_E, total_E = block.out.zero_(), block.spare("total").zero_()
    scale_E, clamped_E = block.spare("scale"), block.spare("clamped")
    ranges = state.ranges(percentile, ratio)
    for delta_E, score, bounds, (low, high), w in zip(
        deltas, competition.scores, competition.bounds, ranges, weight, strict=True
    ):
        torch.clamp(score[block.start :][: block.entries], min=low, out=scale_E)
        scale_E.sub_(low).div_(max(high - low, SMALLEST))
        total_E.add_(scale_E)
        torch.clamp(torch.abs(delta_E, out=clamped_E), *bounds, out=clamped_E)
        out_E.addcmul_(clamped_E.mul_(delta_E.sign_()), scale_E, value=w)
    out_E.div_(total_E.clamp_(min=SMALLEST)).mul_(lambda_).add_(base_E)


def _compete(deltas: tuple[Tensor, ...], percentile: float) -> Scores:
    if not 0 <= percentile < 0.5:
        raise MethodError(f"pcb: percentile is {percentile:g}; write a number from 0 to below 0.5, such as 0.01")
    bounds = [_bounds(delta, percentile) for delta in deltas]
    signed = [_signed_shares(delta, *limits) for delta, limits in zip(deltas, bounds, strict=True)]
    return Scores([_score(own, signed) for own in signed], bounds)


def _bounds(delta: Tensor, percentile: float) -> tuple[float, float]:
    """Return the percentiles q and 1 − q of |τ|, by the authors' rule for which entries these are."""
    magnitude, size = delta.abs(), delta.numel()
    low = torch.kthvalue(magnitude, int(size * percentile) + 1).values
    high = torch.kthvalue(magnitude, max(int(size * (1 - percentile) - 1), 0) + 1).values
    return float(low), float(torch.maximum(low, high))


def _signed_shares(delta: Tensor, low: float, high: float) -> Tensor:
    """Return N̂: the clamped task vector, its magnitudes spread over [0, 1]."""
    share = delta.abs().clamp_(low, high).sub_(low).div_(max(high - low, SMALLEST))
    return share.mul_(delta.sign())


def _score(own: Tensor, signed: list[Tensor]) -> Tensor:
    inter = torch.zeros_like(own)
    for other in signed:
        inter.add_(torch.tanh(own * other))
    return own.square().mul_(len(signed)).exp_().mul_(inter)


def _range(score: Tensor, ratio: float) -> tuple[float, float]:
    size = score.numel()
    low = torch.kthvalue(score, min(int(size * (1 - ratio)), size - 1) + 1).values
    return float(low), float(score.max())
