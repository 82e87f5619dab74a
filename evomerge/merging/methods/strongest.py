"""The largest entry wins: MagMax, and EMR's unified task vector.

MagMax: Marczak et al. 2024, arXiv:2407.06322. Per entry, the task vector that is largest in magnitude.
EMR-Merging: Huang et al. 2024, arXiv:2405.17461. Per entry, the largest of those that have the elected sign. (Its masks
and rescalers per task need to know the task at inference; the unified vector alone is a merge.)

Deviations: weights multiply the task vectors first (1 in the papers). Of two entries of equal magnitude and opposite
sign MagMax takes the positive one (its code: the last model's), so that the order of models does not matter; a sum
of exactly 0 elects + (EMR's code: −).
"""

from __future__ import annotations

import torch

from evomerge.merging.methods.blocks import Block
from evomerge.merging.methods.election import elect
from evomerge.merging.methods.parameters import Factor, Lambda
from evomerge.merging.methods.registry import merge_method


@merge_method("magmax", differentiable=("lambda",))
def magmax(block: Block, *, weight: Factor, lambda_: Lambda) -> None:
    """Per entry, the task vector that is largest in magnitude (arXiv:2407.06322).

    τ = τ_t with t = argmax |τ_t|, per entry; θ = θ_0 + λ τ.
    """
    base_E, (first_E, *rest) = block.deltas()
    highest_E, lowest_E = block.out.copy_(first_E).mul_(weight[0]), block.spare("lowest")
    lowest_E.copy_(highest_E)
    for delta_E, w in zip(rest, weight[1:], strict=True):
        delta_E.mul_(w)
        torch.maximum(highest_E, delta_E, out=highest_E)
        torch.minimum(lowest_E, delta_E, out=lowest_E)
    # the highest where it is at least as far from 0 as the lowest; a product with 0 or 1 rounds nothing
    far_E = torch.add(highest_E, lowest_E, out=block.spare("far")).ge_(0)
    highest_E.mul_(far_E)
    highest_E.add_(lowest_E.mul_(far_E.sub_(1).neg_()))
    highest_E.mul_(lambda_).add_(base_E)


@merge_method("emr", differentiable=("lambda",))
def emr(block: Block, *, weight: Factor, lambda_: Lambda) -> None:
    """Per entry, the largest task vector that has the elected sign: EMR's unified vector (arXiv:2405.17461).

    γ = sign(Σ τ_t); τ = γ max_t |τ_t| over those with sign τ_t = γ, per entry; θ = θ_0 + λ τ.
    """
    base_E, deltas = block.deltas()
    for delta_E, w in zip(deltas, weight, strict=True):
        delta_E.mul_(w)
    sign_E = elect(block, deltas)
    out_E = block.out.copy_(deltas[0])
    for size_E in deltas[1:]:
        torch.maximum(out_E, size_E, out=out_E)
    out_E.mul_(sign_E).mul_(lambda_).add_(base_E)
