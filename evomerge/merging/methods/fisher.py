"""Fisher-weighted averaging: Matena & Raffel 2022, arXiv:2111.09832.

Each weight counts by how much a text's likelihood depends on it: with F_t the diagonal of model t's empirical Fisher
information, the mean squared gradient of the text's log-likelihood
(`evomerge.merging.calibration`), per entry

    θ = Σ w_t f_t θ_t / Σ w_t f_t,    f_t = max(√n F_t / ‖F_t‖, floor),

over all n entries of the model. The norm keeps a model with large gradients from outweighing the others (the authors'
choice); the factor √n cancels, and lets the floor mean the same for models of all sizes: a fraction of the root mean
square, below which all weights of a model count alike.

Each model has its own text, as in the paper, or one text serves all. Deviations: gradients are those of windows of
text, not of labelled examples; the authors floor the target model only, at 1e-6 of the norm.

Cost: one forward and backward pass per window and model, in the memory of about three float32 models; 2 bytes per
weight and model on disk, mapped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from evomerge.merging.methods.blocks import Block
from evomerge.merging.methods.parameters import MethodError, PerModel, Real, check_shares
from evomerge.merging.methods.registry import SourceTensor, merge_method


@dataclass(frozen=True)
class Information:
    """√n F / ‖F‖ of a model's entries, bfloat16[n], where the cache keeps it."""

    values: Tensor

    def cut(self, span: slice) -> Information:
        """Return the part for some of the entries."""
        return Information(self.values[span])


def information(source: SourceTensor) -> Information:
    """Return the statistic of a source tensor."""
    return Information(source.statistics["fisher"].reshape(-1))


@merge_method(
    "fisher", differentiable=("weight",), base="none", statistics=("fisher",), prepare=information, prepared_bytes=2
)
def fisher(
    block: Block,
    *,
    weight: Annotated[PerModel, Real(0.05, 1.0, 0.5, "Share of the model, beside its information.", default=1.0)],
    floor: Annotated[float, Real(doc="Smallest information, as a fraction of its root mean square.", default=1e-3)],
) -> None:
    """Average of the models, each weight by its Fisher information on the calibration text (arXiv:2111.09832)."""
    check_shares(weight, "fisher")
    if floor <= 0:
        raise MethodError("fisher: a floor of 0 leaves weights without any information; write one such as 0.001")
    total_E, share_E = block.spare("total").zero_(), block.spare("share")
    out_E = block.out.zero_()
    for values_E, state, w in zip(block.models(), block.prepared, weight, strict=True):
        share_E.copy_(state.values).clamp_(min=floor).mul_(w)
        total_E.add_(share_E)
        out_E.add_(values_E.mul_(share_E))
    torch.div(out_E, total_E, out=out_E)
