"""Derivatives of a merge by its coefficients, block by block, with masks held.

With G the gradient of a loss by the merged tensor θ, ∂L/∂x = ⟨G, ∂θ/∂x⟩ for a coefficient x. The derivatives by all
coefficients of a tensor come from one pass over its sources:

* A `WeightedSum` θ = θ_0 + Σ c_t v_t with c_t = s w_t / d: the products ⟨G, v_t⟩ serve all coefficients, and ∂c_t/∂x is
  a central difference of T numbers, exact where the method is linear.
* An `Election` θ = θ_0 + λ Σ_A w_t δ_t / D, with A the models that have the elected sign and D = Σ_A w_t (1 without
  `normalize`): ∂θ/∂w_t = λ (δ_t / D − Σ_A w δ / D²) for t in A, 0 for others. When the sum that elects, S = Σ w_t δ_t,
  passes 0, an entry jumps from θ_- to θ_+. One jump has no derivative, but a loss sees the mean of very many: each
  entry with |S| < h |δ_t| adds G (θ_+ − θ_-) sign(δ_t) / 2h, as the central difference over ±h does.
  A model of weight 0 counts as one with a small weight above 0.
* A method with arithmetic of its own: central differences over ±h of what it computes.

Legend: T terms, E entries of one block, C coefficients, K rows or columns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from evomerge.merging.methods.blocks import Block
from evomerge.merging.methods.evaluate import task_vectors, terms
from evomerge.merging.methods.formulas import Election, Formula, WeightedSum

STEP = 0.04
"""h, half the distance of the two points of a difference of merged weights: coefficients are of the order of 1."""
STEP_OF_NUMBERS = 4e-3
"""The same for differences of the numbers in a formula, which have no noise."""

Arguments: TypeAlias = Mapping[str, Any]
"""Arguments of a method by name."""


@dataclass(frozen=True)
class Difference:
    """The arguments of a method with one coefficient moved down and up, and the distance of the two."""

    below: Arguments
    above: Arguments
    distance: float


SlopesOfBlock: TypeAlias = Callable[[Block, Tensor], Tensor]
"""Takes a block and the gradient float32[E] by its entries; returns its part of the derivatives, float64[C]."""


def formula_slopes(
    formula: Callable[[Arguments], Formula], at: Arguments, differences: Sequence[Difference]
) -> SlopesOfBlock:
    """Return the derivatives of a method that gives a formula.

    Parameters
    ----------
    formula
        The method's.
    at
        The arguments where the derivatives are wanted.
    differences
        For each coefficient, C of them.
    """
    center = formula(at)
    changes_C = [
        (_numbers(formula(moved.above)) - _numbers(formula(moved.below))) / moved.distance for moved in differences
    ]
    if isinstance(center, WeightedSum):
        return lambda block, gradient_E: _of_sum(block, gradient_E, center, changes_C)
    numbers_CN = torch.stack(changes_C)
    return lambda block, gradient_E: numbers_CN @ _of_election(block, gradient_E, center)


def own_slopes(fill: Callable[..., object], at: Arguments, differences: Sequence[Difference]) -> SlopesOfBlock:
    """Return the derivatives of a method that fills blocks itself; parameters as for `formula_slopes`."""

    def slopes(block: Block, gradient_E: Tensor) -> Tensor:
        found = []
        for moved in differences:
            fill(block, **moved.above)
            above_E = block.spare("above").copy_(block.out)
            fill(block, **moved.below)
            found.append(_product(gradient_E, above_E.sub_(block.out)) / moved.distance)
        return torch.tensor(found, dtype=torch.float64)

    return slopes


def _numbers(formula: Formula) -> Tensor:
    """Return what multiplies the terms: c, float64[T] or [T, K], of a sum; the weights and λ, [T + 1], of an election.

    An election's masks, and the entries that either keeps, depend on none of the coefficients that have derivatives.
    """
    if isinstance(formula, Election):
        return torch.tensor([*formula.weights, formula.scale], dtype=torch.float64)
    if formula.per == "tensor":
        weights = torch.tensor([float(weight) for weight in formula.weights], dtype=torch.float64)
    else:
        weights = torch.stack([weight.double() for weight in formula.weights])
    return weights * formula.scale / formula.divisor


def _of_sum(block: Block, gradient_E: Tensor, formula: WeightedSum, changes_C: Sequence[Tensor]) -> Tensor:
    values = terms(block, formula)
    if formula.per == "tensor":
        products_T = torch.tensor([_product(gradient_E, values_E) for values_E in values], dtype=torch.float64)
        return torch.stack([*changes_C]) @ products_T
    spread = block.by_row if formula.per == "row" else block.by_column
    products = [values_E.mul_(gradient_E) for values_E in values]
    return torch.tensor(
        [
            sum(_product(spread(own_K.to(block.out)), each_E) for own_K, each_E in zip(change, products, strict=True))
            for change in changes_C
        ],
        dtype=torch.float64,
    )


def _of_election(block: Block, gradient_E: Tensor, formula: Election) -> Tensor:
    """Return ∂L by each weight and by λ, float64[T + 1]."""
    _, deltas = task_vectors(block, formula.kept)
    if not deltas:
        return torch.zeros(1, dtype=torch.float64)  # the base alone
    plus, minus = (_Side(deltas, formula, sign) for sign in (1.0, -1.0))
    total_E = plus.sum_E + minus.sum_E
    elects_plus_E = total_E >= 0
    held = [side.slopes(gradient_E * chosen_E) for side, chosen_E in ((plus, elects_plus_E), (minus, ~elects_plus_E))]
    jump_E = (plus.mean_E - minus.mean_E).mul_(gradient_E)
    total_E.abs_()
    found = torch.tensor(held, dtype=torch.float64).sum(0)
    found[:-1] *= formula.scale
    for index, delta_E in enumerate(deltas):
        near_E = total_E < STEP * delta_E.abs()
        found[index] += formula.scale * _product(jump_E * near_E, delta_E.sign()) / (2 * STEP)
    return found


class _Side:
    """What an entry merges to, before λ, if one sign is elected: the models that have it, their sum and their mean."""

    def __init__(self, deltas: Sequence[Tensor], formula: Election, sign: float) -> None:
        self.sum_E, self.divisor_E = torch.zeros_like(deltas[0]), torch.zeros_like(deltas[0])
        self.parts = []
        for delta_E, weight in zip(deltas, formula.weights, strict=True):
            has_it_E = (delta_E > 0) if (weight >= 0) == (sign > 0) else (delta_E < 0)
            self.sum_E.add_(delta_E * has_it_E, alpha=weight)
            self.divisor_E.add_(has_it_E, alpha=weight)
            self.parts.append((delta_E, has_it_E))
        if not formula.normalize:
            self.divisor_E.fill_(1.0)
        self.divisor_E[self.divisor_E == 0] = 1.0
        self.mean_E = self.sum_E / self.divisor_E
        self._normalize = formula.normalize

    def slopes(self, gradient_E: Tensor) -> list[float]:
        """Return the products of a gradient with ∂mean/∂w_t for each model, and with the mean."""
        share_E = gradient_E / self.divisor_E
        found = []
        for delta_E, has_it_E in self.parts:
            change_E = delta_E - self.mean_E if self._normalize else delta_E
            found.append(_product(share_E * has_it_E, change_E))
        return [*found, _product(gradient_E, self.mean_E)]


def _product(a_E: Tensor, b_E: Tensor) -> float:
    return float(torch.dot(a_E, b_E))
