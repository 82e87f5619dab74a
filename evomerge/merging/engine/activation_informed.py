"""Activation-informed merging (AIM): the base's busy channels change less, whatever the merge method.

AIM: Nobari et al. 2025, arXiv:2502.02421. With a_j the mean absolute activation of input channel j of a module in the
base model on a calibration text, and θ the result of any merge method on the base θ_0,

    θ_j ← θ_0j + (θ_j - θ_0j) (1 - (1 - ω) a_j / max a),  ω in [0, 1].

ω = 1 leaves θ as it is; at ω = 0 the channel that is busiest keeps the base's weights. It is applied to linear maps by
column and to norms by entry; embeddings (and a head tied to them) and biases stay as they are merged.

Letters: E entries of one block, N input channels.
"""

from __future__ import annotations

from torch import Tensor

from evomerge.merging.methods.blocks import Block
from evomerge.merging.methods.parameters import ACTIVATION_INFORMED

PARAMETER = ACTIVATION_INFORMED.name
"""The recipe's parameter that turns it on: ω."""


def inform(block: Block, share_N: Tensor, omega: float) -> None:
    """Move the merged ``block.out`` towards the base, by each channel's share of the largest activation."""
    base_E = block.base()
    kept_E = block.by_column(1.0 - (1.0 - omega) * share_N)
    block.out.sub_(base_E).mul_(kept_E).add_(base_E)


def shares(activation_N: Tensor) -> Tensor:
    """Return each channel's mean absolute activation over the largest; zeros where nothing is active."""
    largest = activation_N.max()
    return activation_N / largest if largest > 0 else activation_N
