"""Derivatives of a loss by the coefficients of a merge.

For a coefficient c of a tensor θ(c), ∂L/∂c = ⟨∂L/∂θ, ∂θ/∂c⟩. The first factor comes from the backward pass of the
resident model. The second is the central difference (θ(c + h) − θ(c − h)) / 2h of the engine's own arithmetic in
float32: exact for every method that is linear in the coefficient (weights and lambda, with masks and choices held),
of order h² for the others (SLERP's t, normalised weights), and true to whatever a method's implementation does.

As soon as a tensor's gradient is there it is multiplied with these differences and dropped: beside the model there is
one tensor's gradient at a time, and two tensors of its size for the difference.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from evomerge.merging.engine.engine import MergeEngine
from evomerge.merging.engine.layer_stack import is_layer_stack
from search_spaces.recipes.errors import RecipeError
from search_spaces.recipes.recipe import Recipe
from search_spaces.recipes.resolve import TensorPlan
from search_spaces.spaces.derivatives import Coefficient, coefficients_of

STEP = 0.05
"""h; weights, lambda and t are of the order of 1. Float32 rounds differences to about 2e-6 of the merged weights."""


@contextmanager
def watched(engine: MergeEngine, recipe: Recipe) -> Iterator[tuple[PreTrainedModel, dict[Coefficient, float]]]:
    """Build the recipe's model with gradients; each backward pass adds to the table that comes with it.

    Yields
    ------
    module
        The resident model, in evaluation mode, its merged parameters with gradients.
    derivatives
        ∂L/∂c by coefficient, summed over all backward passes inside of the context.

    Raises
    ------
    RecipeError, CheckpointError
        As `MergeEngine.apply`; also for recipes whose layers are in another order, which have no tensors of their own.
    """
    if is_layer_stack(recipe):
        raise RecipeError("layers in another order have no derivatives by coefficients; use another strategy")
    module = engine.apply(recipe)
    written_out, plans = engine.plans(recipe)
    derivatives: dict[Coefficient, float] = {}
    parameters = dict(module.named_parameters())
    handles = []
    try:
        for plan in plans:
            wanted = tuple(coefficients_of(plan))
            if wanted and plan.name in parameters:
                parameter = parameters[plan.name].requires_grad_(True)
                hook = partial(_multiply, engine=engine, recipe=written_out, plan=plan, wanted=wanted, into=derivatives)
                handles.append(parameter.register_post_accumulate_grad_hook(hook))
        yield module, derivatives
    finally:
        for handle in handles:
            handle.remove()
        for parameter in parameters.values():
            parameter.requires_grad_(False)
            parameter.grad = None


def _multiply(
    parameter: Tensor,
    *,
    engine: MergeEngine,
    recipe: Recipe,
    plan: TensorPlan,
    wanted: tuple[Coefficient, ...],
    into: dict[Coefficient, float],
) -> None:
    """Add a tensor's gradient times its slopes to the table, and drop the gradient."""
    assert parameter.grad is not None
    gradient = parameter.grad.float()
    parameter.grad = None
    above, below = (torch.empty(gradient.shape, device=gradient.device) for _ in range(2))
    for coefficient in wanted:
        engine.merge_tensor(recipe, _moved(plan, coefficient, STEP), above)
        engine.merge_tensor(recipe, _moved(plan, coefficient, -STEP), below)
        slope = float(torch.dot(gradient.reshape(-1), above.sub_(below).view(-1))) / (2 * STEP)
        into[coefficient] = into.get(coefficient, 0.0) + slope


def _moved(plan: TensorPlan, coefficient: Coefficient, step: float) -> TensorPlan:
    """Return the plan with one coefficient moved by `step`."""
    name = coefficient.parameter
    if coefficient.source is None:
        return replace(plan, parameters={**plan.parameters, name: plan.parameters[name] + step})
    parts = list(plan.contributions)
    part = parts[coefficient.source]
    parts[coefficient.source] = replace(part, parameters={**part.parameters, name: part.parameters[name] + step})
    return replace(plan, contributions=tuple(parts))
