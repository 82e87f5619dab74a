"""LED-Merging: entries that matter to a task, before and after its training, and to no other (arXiv:2502.16770).

With s the sensitivity |θ ⊙ ∂L/∂θ| (SNIP) on task t's text, model t *elects* the entries that are among the `density`
most sensitive of a tensor both in the base and in the model. Those that another model elects, too, are dropped, and

    θ = θ_0 + λ Σ w_t m_t ⊙ τ_t.

Cost: one forward and backward pass per window, of every model on its text and of the base on every text; 2 bytes per
weight on disk for each. Prepared: 4 bytes per weight and model.

Deviations: sensitivities are means over windows of text; none of the paper's are left out. In the authors' public
code, random numbers stand for the sensitivities of one task; here never.

Legend: E entries of one block, n entries of a tensor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from evomerge.merging.methods.blocks import Block
from evomerge.merging.methods.parameters import Lambda, PerModel, Real, optional_weight
from evomerge.merging.methods.ranking import largest_first
from evomerge.merging.methods.registry import SourceTensor, merge_method


@dataclass(frozen=True)
class Election:
    """The larger of an entry's two ranks by sensitivity, in the base and in the model, int32[n]."""

    rank: Tensor

    def cut(self, span: slice) -> Election:
        """Return the part for some of the entries."""
        return Election(self.rank[span])


def election(source: SourceTensor) -> Election:
    """Return which entries of a source tensor are elected first."""
    ranks = [largest_first(source.statistics[name].reshape(-1).float()) for name in ("sensitivity", "base.sensitivity")]
    return Election(torch.maximum(*ranks))


@merge_method("led", statistics=("sensitivity", "base.sensitivity"), prepare=election, prepared_bytes=4)
def led(
    block: Block,
    *,
    weight: Annotated[PerModel, optional_weight()],
    density: Annotated[PerModel, Real(0.05, 1.0, 0.4, "Fraction of entries that matter to the model.", default=0.4)],
    lambda_: Lambda,
) -> None:
    """Sum of task vectors' entries that matter to one task, before and after its training (arXiv:2502.16770)."""
    base_E, deltas = block.deltas()
    elected = [state.rank < round(d * block.size) for state, d in zip(block.prepared, density, strict=True)]
    alone_E = torch.stack(elected).sum(0) == 1
    out_E = block.out.zero_()
    for delta_E, own_E, w in zip(deltas, elected, weight, strict=True):
        out_E.add_(delta_E.mul_(own_E & alone_E), alpha=w)
    out_E.mul_(lambda_).add_(base_E)
