"""Sens-Merging: task vectors by each layer's sensitivity and the reach of a model's knowledge (arXiv:2502.12420).

With a_t(l) = Σ |θ ⊙ ∂L/∂θ| over layer l of model t on its text, divided by the norm of all layers', and ρ_t = Σ_j
mean ‖z_t − z_j‖ of the logits z of models t and j on the text of j, divided by Σ ρ,

    θ = θ_0 + λ Σ T σ_t(l) w_t τ_t,    σ_t(l) = softmax_t(a_t(l) ρ_t / temperature).

The embeddings, and the final norm with the head, count as layers of their own. T makes the mean weight 1; the paper's
softmax alone makes it 1 / T, as λ may. Only third-party code of the paper is public.

Deviations: sensitivities are means over windows; logits are compared on the first 2,048 tokens of each text.

Cost: one forward and backward pass per window and model, and a forward pass of every model over part of every text.
Kept: one number per tensor, one per model.
"""

from __future__ import annotations

import math
from typing import Annotated

from evomerge.merging.methods.formulas import TensorContext, WeightedSum
from evomerge.merging.methods.parameters import Lambda, MethodError, PerModel, Real, optional_weight
from evomerge.merging.methods.registry import SourceGroup, WholeTensorState, merge_method

SMALLEST = 1e-30  # to divide by


class Sensitivity(WholeTensorState):
    """a_t(l) ρ_t of each model, for the tensor's layer."""

    def __init__(self, group: SourceGroup) -> None:
        own = [float(found["layer_sensitivity"].float().mean()) for found in group.statistics]
        reach = [float(found["disagreement"].float().mean()) for found in group.statistics]
        self.products = [a * r / max(sum(reach), SMALLEST) for a, r in zip(own, reach, strict=True)]


@merge_method("sens", statistics=("layer_sensitivity", "disagreement"), prepare_all=Sensitivity)
def sens(
    tensor: TensorContext,
    *,
    weight: Annotated[PerModel, optional_weight()],
    temperature: Annotated[float, Real(0.02, 2.0, 0.2, "Difference that counts as a factor e.", default=0.2)],
    lambda_: Lambda,
) -> WeightedSum:
    """Task vectors weighed by their layers' sensitivity and by how far their logits differ (arXiv:2502.12420)."""
    if temperature <= 0:
        raise MethodError("sens: the temperature divides sensitivities; write a number above 0 such as 0.2")
    products = tensor.shared.products
    factors = [math.exp((own - max(products)) / temperature) for own in products]
    scale = len(factors) / sum(factors)
    return WeightedSum([w * factor * scale for w, factor in zip(weight, factors, strict=True)], scale=lambda_)
