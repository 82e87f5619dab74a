"""RCP-Merging: a domain's task vector where it does not harm reasoning (arXiv:2508.03140).

The first model reasons (θ_r), and each further one knows a domain (θ_d). For samples k of the domain's text,

    v_k = sign(−(g_k ⊙ θ_d + μ F_r ⊙ (θ_r − θ_d)²)),    F_r = mean (g ⊙ θ_r)² on the reasoning model's text,
    θ = θ_r + λ Σ_d w_d 1[Σ_k v_k > 0] ⊙ (θ_d − θ_0).

With c = μ F_r ⊙ (θ_r − θ_d)², the vote is won where more than half of the g_k ⊙ θ_d are below −c: where the upper
median of g_k ⊙ θ_d is. So that median is all that is measured, and μ stays free.

Deviation: the paper has one domain; several are added. g is the gradient of the mean loss per token of a window, of
the first 15 windows of the domain's text.

Cost: 15 forward and backward passes per domain, eight times (the gradients of an eighth of the weights at a time, in
the memory of one float32 model); one pass over the reasoning model's text. Prepared: 4 bytes per weight and domain.

Legend: E entries of one block, n entries of a tensor.
"""

from __future__ import annotations

from typing import Annotated

from torch import Tensor

from evomerge.merging.methods.blocks import Block
from evomerge.merging.methods.parameters import Lambda, PerModel, Real, optional_weight
from evomerge.merging.methods.registry import SourceGroup, merge_method


class Votes:
    """F_r and each domain's upper median, bfloat16[n]."""

    def __init__(self, importance: Tensor, medians: tuple[Tensor, ...]) -> None:
        self.importance = importance
        self.medians = medians

    def cut(self, span: slice) -> Votes:
        """Return the part for some of the entries."""
        return Votes(self.importance[span], tuple(median[span] for median in self.medians))


def votes(group: SourceGroup) -> Votes:
    """Return what decides the votes for a tensor."""
    medians = tuple(found["further.push"].reshape(-1) for found in group.statistics[1:])
    return Votes(group.statistics[0]["first.importance"].reshape(-1), medians)


@merge_method(
    "rcp",
    min_models=2,
    statistics=("first.importance", "further.push"),
    prepare_all=votes,
    prepared_bytes=2,
    shared_bytes=2,
)
def rcp(
    block: Block,
    *,
    weight: Annotated[PerModel, optional_weight("Factor of the domain's task vector; of the first model, its own.")],
    preservation: Annotated[float, Real(0.0, 10.0, 1.0, "Weight of what reasoning needs (μ).", default=1.0)],
    lambda_: Lambda,
) -> None:
    """A reasoning model, and domains' task vectors where more samples want than oppose them (arXiv:2508.03140)."""
    base_E, (reasoning_E, *domains) = block.deltas()
    importance_E = block.shared.importance.float()
    out_E = block.out.copy_(reasoning_E).mul_(weight[0])
    for delta_E, median_E, w in zip(domains, block.shared.medians, weight[1:], strict=True):
        harm_E = (reasoning_E - delta_E).square_().mul_(importance_E).mul_(preservation)
        out_E.add_(delta_E.mul_(median_E.float() < harm_E.neg_()), alpha=w * lambda_)
    out_E.add_(base_E)
