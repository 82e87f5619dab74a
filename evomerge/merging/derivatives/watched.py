"""Derivatives of a loss by the coefficients of a merge.

For a coefficient c of a tensor θ(c), ∂L/∂c = ⟨∂L/∂θ, ∂θ/∂c⟩. The first factor comes from the backward pass of the
resident model. The second follows from what the engine has prepared (`evomerge.merging.engine.tensor_slopes`), for all
coefficients of a tensor in one pass over its sources.

As soon as a tensor's gradient is there it is multiplied and dropped: beside the model there is one tensor's gradient
at a time.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from evomerge.merging.engine.engine import MergeEngine
from search_spaces.recipes.recipe import Recipe
from search_spaces.recipes.resolve import TensorPlan
from search_spaces.spaces.derivatives import Coefficient, coefficients_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class NotFiniteError(ValueError):
    """A gradient that holds NaN or infinity; the message names the tensor."""


@dataclass(eq=False)
class WatchedModel:
    """The model of a recipe, and the derivatives of what is propagated backward through it.

    Attributes
    ----------
    module
        The resident model, in evaluation mode; its parameters that depend on wanted coefficients have gradients.
    derivatives
        ∂L/∂c by coefficient, summed over all backward passes and `pull_to_base`.
    """

    module: PreTrainedModel
    engine: MergeEngine
    recipe: Recipe
    derivatives: dict[Coefficient, float] = field(default_factory=dict)
    _watched: dict[str, tuple[TensorPlan, tuple[Coefficient, ...]]] = field(default_factory=dict)

    def watch(self, plan: TensorPlan, wanted: tuple[Coefficient, ...]) -> None:
        """Take derivatives by these coefficients of a tensor."""
        self._watched[plan.name] = plan, wanted

    def multiply(self, name: str, gradient: Tensor) -> None:
        """Add a tensor's gradient times how the tensor changes with its coefficients.

        Raises
        ------
        NotFiniteError
            If the gradient holds NaN or infinity.
        """
        plan, wanted = self._watched[name]
        slopes = self.engine.slopes(self.recipe, plan, wanted, gradient.contiguous())
        if not all(map(math.isfinite, slopes)):
            raise NotFiniteError(f"the gradient of {name} is not finite")
        for coefficient, slope in zip(wanted, slopes, strict=True):
            self.derivatives[coefficient] = self.derivatives.get(coefficient, 0.0) + slope

    def pull_to_base(self, strength: float, unit: float) -> float:
        """Add the derivatives of `strength` ‖θ − θ_0‖² / `unit`, and return its value; unwatched tensors are left out.

        Parameters
        ----------
        strength
            Factor of the penalty.
        unit
            A squared distance from the base that the penalty is measured in.
        """
        total, parameters = 0.0, dict(self.module.named_parameters())
        for name, (plan, _) in self._watched.items():
            change = parameters[name].detach().float() - self._base_of(plan).float()
            total += float(change.square().sum(dtype=torch.float64))
            self.multiply(name, change.mul_(2 * strength / unit))
        return strength * total / unit

    def _base_of(self, plan: TensorPlan) -> Tensor:
        tensor = (plan.base or plan.contributions[0]).tensor
        return self.engine.checkpoint(self.engine.base).tensor(tensor).to(self.engine.device)


@contextmanager
def watched(
    engine: MergeEngine, recipe: Recipe, wanted: Collection[Coefficient] | None = None
) -> Iterator[WatchedModel]:
    """Build the recipe's model with gradients; each backward pass adds to its derivatives.

    Parameters
    ----------
    engine, recipe
        What is built.
    wanted
        The coefficients that derivatives are taken by; None: all.

    Raises
    ------
    RecipeError, CheckpointError
        As `MergeEngine.apply`.
    NotFiniteError
        By a backward pass, if a gradient holds NaN or infinity.
    """
    module = engine.apply(recipe)
    written_out, plans = engine.plans(recipe)
    model = WatchedModel(module, engine, written_out)
    parameters = dict(module.named_parameters())
    handles = []
    try:
        for plan in plans:
            own = tuple(each for each in coefficients_of(plan) if wanted is None or each in wanted)
            if own and plan.name in parameters:
                model.watch(plan, own)
                parameter = parameters[plan.name].requires_grad_(True)
                handles.append(parameter.register_post_accumulate_grad_hook(partial(_take, model, plan.name)))
        yield model
    finally:
        for handle in handles:
            handle.remove()
        for parameter in parameters.values():
            parameter.requires_grad_(False)
            parameter.grad = None


def _take(model: WatchedModel, name: str, parameter: Tensor) -> None:
    """Multiply a parameter's gradient and drop it, once a backward pass has completed it."""
    gradient = parameter.grad
    assert gradient is not None
    parameter.grad = None
    model.multiply(name, gradient)
