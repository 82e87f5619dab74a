"""Consensus merging with TALL masks (Wang et al. 2024, arXiv:2405.07813).

An entry matters to a task when its own part of it outweighs the others': m_t = 1[|τ_t| > λ_mask |τ_MTL − τ_t|] with
τ_MTL = Σ τ_t. Entries that matter to fewer than k tasks are dropped: θ = θ_0 + λ (1[Σ m_t ≥ k] ⊙ τ_MTL).

Deviations: weights multiply the task vectors first (1 in the paper); one λ_mask for all tasks, where the paper tunes
one for each; k counts at most as many tasks as there are, so that a single model is kept.
"""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from evomerge.merging.methods.blocks import Block
from evomerge.merging.methods.linear import total_of
from evomerge.merging.methods.parameters import Factor, Lambda, Real
from evomerge.merging.methods.registry import merge_method


@merge_method("consensus", differentiable=("lambda",))
def consensus(
    block: Block,
    *,
    weight: Factor,
    mask_threshold: Annotated[float, Real(0.2, 0.6, 0.4, "Size against the others' to matter.", default=0.4)],
    min_tasks: Annotated[
        float, Real(doc="Number of models, a whole number, that an entry must matter to.", default=2.0)
    ],
    lambda_: Lambda,
) -> None:
    """Sum of the task vectors where it matters to enough of them, by TALL masks (arXiv:2405.07813)."""
    base_E, deltas = block.deltas()
    for delta_E, w in zip(deltas, weight, strict=True):
        delta_E.mul_(w)
    out_E = total_of(deltas, block.out)
    count_E = block.spare("count").zero_()
    for delta_E in deltas:
        count_E.add_(matters(delta_E, out_E, mask_threshold, scratch=block.spare("others")))
    out_E.mul_(count_E.ge_(min(round(min_tasks), len(deltas))))
    out_E.mul_(lambda_).add_(base_E)


def matters(delta_E: Tensor, total_E: Tensor, threshold: float, *, scratch: Tensor) -> Tensor:
    """Return m_t as 0 and 1; overwrites the delta by it."""
    others_E = torch.sub(total_E, delta_E, out=scratch).abs_().mul_(threshold)
    return torch.gt(delta_E.abs_(), others_E, out=delta_E)
