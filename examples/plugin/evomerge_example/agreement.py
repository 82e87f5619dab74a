"""A merge method: task vectors added where all of them have the same sign."""

from typing import Annotated

import torch

from evomerge.merging.methods.blocks import Block
from evomerge.merging.methods.parameters import PerModel, Real
from evomerge.merging.methods.registry import merge_method


@merge_method("agreement")
def agreement(
    block: Block,
    *,
    weight: Annotated[PerModel, Real(0.0, 1.5, start=1.0, doc="Factor of the model's task vector.", default=1.0)],
) -> None:
    """θ = θ_0 + Σ w_t τ_t, where the signs of all τ_t are equal; θ_0 elsewhere."""
    base_E, deltas = block.deltas()
    agree_E = torch.stack([delta_E.sign() for delta_E in deltas]).sum(0).abs() == len(deltas)
    total_E = torch.stack([w * delta_E for w, delta_E in zip(weight, deltas, strict=True)]).sum(0)
    torch.add(base_E, total_E * agree_E, out=block.out)
