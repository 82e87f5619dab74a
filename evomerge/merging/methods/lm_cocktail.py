"""LM-Cocktail: an average of models by how well each predicts a text (Xiao et al. 2023, arXiv:2311.13534).

With l_t the mean loss per token of model t on the text of the wanted task,

    θ = α θ_1 + (1 − α) Σ ρ_t θ_t,    ρ_t = w_t exp(−l_t / temperature) / Σ w exp(−l / temperature),

where θ_1 is the recipe's first model, which the paper fine-tunes for the task, and α its `target` share. All models
should have one text: losses on different texts say nothing of each other.

Deviations: the temperature is 5 in the authors' code, whose losses are sums over an example; here they are means over
tokens, so it is lower. `weight` is 1 in the paper.

Cost: one forward pass per model over the text; one number per model is kept.
"""

from __future__ import annotations

import math
from typing import Annotated

from torch import Tensor

from evomerge.merging.methods.formulas import TensorContext, WeightedSum
from evomerge.merging.methods.parameters import MethodError, PerModel, Real, check_shares
from evomerge.merging.methods.registry import SourceTensor, WholeTensorState, merge_method


class Loss(WholeTensorState):
    """A model's mean loss per token on its text."""

    def __init__(self, loss: Tensor) -> None:
        self.loss = float(loss.float().mean())


def loss(source: SourceTensor) -> Loss:
    """Return the loss of the tensor's model."""
    return Loss(source.statistics["loss"])


@merge_method("lm_cocktail", base="none", statistics=("loss",), prepare=loss)
def lm_cocktail(
    tensor: TensorContext,
    *,
    weight: Annotated[PerModel, Real(0.05, 1.0, 1.0, "Factor of the model's share.", default=1.0)],
    target: Annotated[float, Real(0.0, 1.0, 0.0, "Share that the first model has in any case.", default=0.0)],
    temperature: Annotated[float, Real(0.05, 5.0, 1.0, "Loss per token that counts as a factor e.", default=1.0)],
) -> WeightedSum:
    """Average of the models, each by how well it predicts the text (arXiv:2311.13534)."""
    check_shares(weight, "lm_cocktail")
    if temperature <= 0:
        raise MethodError("lm_cocktail: the temperature divides losses; write a number above 0 such as 1")
    losses = [state.loss for state in tensor.prepared]
    factors = [w * math.exp((min(losses) - own) / temperature) for w, own in zip(weight, losses, strict=True)]
    shares = [(1 - target) * factor / sum(factors) for factor in factors]
    shares[0] += target
    return WeightedSum(shares, terms="models")
