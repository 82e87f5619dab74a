"""OTA-Merging and its Fast Fisher Grafting (Mahdavi et al. 2025): task vectors weighed by their curvature.

With v_t the curvature of model t, per entry

    θ = θ_0 + λ Σ w_t p_t ⊙ m_t ⊙ τ_t / Σ w_t p_t,    p_t = max(v_t, floor)^power,

where m_t keeps the `density` of a tensor's entries with the largest v_t τ_t² (grafting). `power` 0 is the mean of the
task vectors, 0.5 the authors' choice.

Deviations: v_t is the optimiser's second moment at the end of training in the paper; it is rarely published, so the
mean squared gradient on the model's text stands for it (`fisher`: √n F / ‖F‖, which makes models of other scales
comparable). The authors may graft over the whole model; here per tensor.

Cost: one forward and backward pass per window and model, as for `fisher`, whose measurements it shares. Prepared: 6
bytes per weight and model.

Legend: E entries of one block, n entries of a tensor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from evomerge.merging.methods.blocks import Block
from evomerge.merging.methods.parameters import Lambda, MethodError, PerModel, Real, check_shares, kept_fraction
from evomerge.merging.methods.ranking import largest_first
from evomerge.merging.methods.registry import SourceTensor, merge_method


@dataclass(frozen=True)
class Curvature:
    """v_t, bfloat16[n], and the rank of v_t τ_t², int32[n], 0 for the largest."""

    values: Tensor
    rank: Tensor

    def cut(self, span: slice) -> Curvature:
        """Return the part for some of the entries."""
        return Curvature(self.values[span], self.rank[span])


def curvature(source: SourceTensor) -> Curvature:
    """Return the curvature of a source tensor, and the order in which its entries are kept."""
    values = source.statistics["fisher"].reshape(-1)
    return Curvature(values, largest_first(source.delta().square_().mul_(values)))


@merge_method("ota", statistics=("fisher",), prepare=curvature, prepared_bytes=6)
def ota(
    block: Block,
    *,
    weight: Annotated[PerModel, Real(0.05, 1.0, 1.0, "Share of the model, beside its curvature.", default=1.0)],
    density: Annotated[PerModel, kept_fraction("Fraction of entries that the model changes, by curvature.")],
    power: Annotated[float, Real(0.0, 1.0, 0.5, "Exponent of the curvature.", default=0.5)],
    floor: Annotated[float, Real(doc="Smallest curvature, as a fraction of its root mean square.", default=1e-3)],
    lambda_: Lambda,
) -> None:
    """Task vectors weighed by a power of their curvature, the least important entries left out (OTA, FFG)."""
    check_shares(weight, "ota")
    if floor <= 0:
        raise MethodError("ota: a floor of 0 leaves weights without any curvature; write one such as 0.001")
    base_E, deltas = block.deltas()
    total_E, share_E = block.spare("total").zero_(), block.spare("share")
    out_E = block.out.zero_()
    for delta_E, state, w, d in zip(deltas, block.prepared, weight, density, strict=True):
        share_E.copy_(state.values).clamp_(min=floor).pow_(power).mul_(w)
        total_E.add_(share_E)
        kept_E = state.rank < round(d * block.size)
        out_E.add_(delta_E.mul_(share_E).mul_(kept_E))
    out_E.div_(total_E).mul_(lambda_).add_(base_E)
