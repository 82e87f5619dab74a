"""TIES with a slack variable (Tao et al. 2024, arXiv:2407.03994, there TIES-SV).

TIES loses large entries of a model that are outvoted: the paper sees a fine-tuned model's important parameters vanish
as the other one, trained on more text, wins more votes. Here such entries keep a part. With τ̂_t the trimmed task
vectors and A the models that have the elected sign, per entry,

    θ = θ_0 + λ (Σ_A w_t τ̂_t + Σ_{t ∉ A} slack_t w_t τ̂_t [t's entry is important]) / D

with D = Σ_A w_t when `normalize`, else 1, as in `ties`. An entry is important when it is among the ⌊important·n⌋
largest of its model's tensor. Slack 0 is `ties`. Ours, since we know the paper's step only in words: the slack is a
factor per model (the paper's is for one model, the fine-tuned one: set the others' to 0), and what is important is a
fraction of the tensor's entries.

The ranks of `ties` are prepared and shared with it.
"""

from __future__ import annotations

from typing import Annotated

import torch

from evomerge.merging.methods.blocks import Block
from evomerge.merging.methods.parameters import (
    Lambda,
    NormalizeByDefault,
    PerModel,
    Real,
    kept_fraction,
    optional_weight,
)
from evomerge.merging.methods.registry import merge_method
from evomerge.merging.methods.trimmed import number_kept, ranks


@merge_method("ties_slack", prepare=ranks, prepared_bytes=4)
def ties_slack(
    block: Block,
    *,
    weight: Annotated[PerModel, optional_weight("Factor of the model's trimmed task vector.")],
    density: Annotated[PerModel, kept_fraction("Fraction of entries kept by trimming.")],
    slack: Annotated[PerModel, Real(0.0, 1.0, 0.5, "Part kept of important entries that are outvoted.", default=0.5)],
    important: Annotated[float, Real(0.0, 0.5, 0.1, "Fraction of a tensor's entries that is important.", default=0.1)],
    normalize: NormalizeByDefault,
    lambda_: Lambda,
) -> None:
    """TIES whose outvoted entries keep a part if they are among the model's largest (arXiv:2407.03994)."""
    base_E, deltas = block.deltas()
    total_E, mask_E = block.spare("total").zero_(), block.spare("mask")
    for delta_E, ranked, w, d in zip(deltas, block.prepared, weight, density, strict=True):
        delta_E.mul_(torch.lt(ranked.rank, number_kept(d, block.size), out=mask_E)).mul_(w)
        total_E.add_(delta_E)
    sign_E = total_E.ge_(0).mul_(2).sub_(1)
    out_E, divisor_E, lost_E = block.out.zero_(), block.spare("divisor").zero_(), block.spare("lost")
    for delta_E, ranked, w, part in zip(deltas, block.prepared, weight, slack, strict=True):
        delta_E.mul_(sign_E)  # above 0 where the model has the elected sign
        divisor_E.add_(torch.gt(delta_E, 0, out=mask_E), alpha=w)
        torch.clamp(delta_E, max=0, out=lost_E)
        out_E.add_(delta_E.clamp_(min=0))
        lost_E.mul_(torch.lt(ranked.rank, number_kept(important, block.size), out=mask_E))
        out_E.add_(lost_E, alpha=part)
    if normalize:
        out_E.div_(divisor_E.add_(torch.eq(divisor_E, 0, out=mask_E)))
    out_E.mul_(sign_E).mul_(lambda_).add_(base_E)
