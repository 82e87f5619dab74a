"""Two models, entry by entry: NearSwap and Arcee fusion.

NearSwap (alchemonaut): moves to the other model's entries where these are near, w = clip(t / |θ_1 − θ_0|, 0, 1) and
θ = w θ_1 + (1 − w) θ_0; so no entry moves by more than t.
Arcee fusion: the entries that matter most, θ = θ_0 + [s ≥ m + 1.5 (q_3 − q_1)] (θ_1 − θ_0), where an entry's score s
is |θ_1 − θ_0| times the Kullback-Leibler divergence of its row's softmax in the two models, and q_1, m, q_3 are the
scores' quartiles over the tensor. It has no coefficient: the mask is prepared.

Both as mergekit 0.1.5 has them. Deviation: the quartiles are those of all scores, where mergekit draws a million of
them at random in larger tensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from evomerge.merging.methods.blocks import Block
from evomerge.merging.methods.formulas import Kept, TensorContext, WeightedSum
from evomerge.merging.methods.parameters import Real
from evomerge.merging.methods.registry import SourceGroup, WholeTensor, merge_method

NEAREST = 1e-6  # distance to divide by
SMALLEST_SHARE = 1e-8  # of a row's softmax


def stepwise_nearswap(tensor: WholeTensor, *, t: float) -> Tensor:
    """Return `nearswap`, rounded to the models' dtype after every step."""
    base, (model,) = tensor.origin, tensor.models
    near = (t / (base - model).abs().clamp(min=NEAREST)).clamp(0, 1)
    return near * model + (1 - near) * base


@merge_method("nearswap", max_models=1, stepwise=stepwise_nearswap)
def nearswap(block: Block, *, t: Annotated[float, Real(0.0, 0.01, 0.001, "The furthest that an entry moves.")]) -> None:
    """Each entry moved from the base to the other model's, by t at most."""
    base_E, (model_E,) = block.base(), block.models()
    near_E = torch.sub(base_E, model_E, out=block.out).abs_().clamp_(min=NEAREST).reciprocal_().mul_(t).clamp_(0, 1)
    base_E.mul_(torch.sub(1, near_E, out=block.spare("far")))
    near_E.mul_(model_E).add_(base_E)


@dataclass(frozen=True)
class Salient:
    """Which entries matter, uint8[n]."""

    mask: Tensor

    def cut(self, span: slice) -> Salient:
        """Return the part for some of the entries."""
        return Salient(self.mask[span])


def salient(group: SourceGroup) -> Salient:
    """Find the entries whose scores are far above the others'."""
    assert group.base is not None, "arcee_fusion requires a base"
    base, model = (values.float().view(-1, group.info.row) for values in (group.base, group.models[0]))
    return Salient(_stands_out(model, base).flatten().to(torch.uint8))


def _stands_out(model: Tensor, base: Tensor) -> Tensor:
    """Return which entries' scores are far above the others', in arithmetic of the models' dtype."""
    score = (model - base).abs() * _divergence(model, base)
    ordered = score.reshape(-1).sort().values
    places = torch.tensor([0.25, 0.5, 0.75], device=score.device) * (ordered.numel() - 1)  # float32, as in mergekit
    low, middle, high = ordered[places.long()]
    return score >= middle + 1.5 * (high - low)


def stepwise_arcee_fusion(tensor: WholeTensor) -> Tensor:
    """Return `arcee_fusion`, rounded to the models' dtype after every step but the last, as in mergekit."""
    base, (model,) = tensor.origin, tensor.models
    return base + (model - base) * _stands_out(model, base).float()


@merge_method(
    "arcee_fusion",
    max_models=1,
    core_space="unsupported",
    stepwise=stepwise_arcee_fusion,
    deviation="its quartiles are exact, where mergekit draws a million entries of larger tensors at random",
    prepare_all=salient,
    shared_bytes=1,
)
def arcee_fusion(tensor: TensorContext) -> WeightedSum:
    """The base with those entries of one other model that stand out: by change, and by change of their row."""
    return WeightedSum([1.0], kept=[Kept(tensor.shared.mask, end=2, first=1)])


def _divergence(model: Tensor, base: Tensor) -> Tensor:
    """Return Σ p log(p / q) for each row, [rows, 1], p of the model and q of the base."""
    p, q = (torch.softmax(values, dim=-1).add_(SMALLEST_SHARE) for values in (model, base))
    return (p * (p / q).log_()).sum(dim=-1, keepdim=True)
