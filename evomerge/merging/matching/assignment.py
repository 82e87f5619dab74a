"""Weight matching: a model's units in the order that is nearest to another's (Git Re-Basin, arXiv:2209.04836).

The order maximises the inner product Σ ⟨A, π(B)⟩ over all weights of a reference A and a model B, which is the same as
minimising their distance. Algorithm 1: coordinate descent over the groups of units. With all other orders held, the
best order of one group is a linear assignment with the matrix Σ A_axis B_axisᵀ over the tensors that have the group as
an axis, whose other axes are in their orders. It ends when no group gains.

The heads of a layer are one group with three levels: for each pair of key-value heads the orders of values' channels
and of query heads are improved in turns, and the pairs' gains are then assigned. Such an order is kept if it gains.

Deviations: groups take turns in the model's order, the residual stream first, and not at random.

Cost: each sweep reads both models four times; products of F² D and (K G E)² D entries per layer; assignments of D
units, and per layer of F and, K² times, of E units, each of cubic time. Memory: see `memory`.

Letters: as in `units`; U units of one group, in the reference and in the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from evomerge.merging.matching.units import HeadOrder, Order, Role, Units, units_of
from evomerge.merging.sources.errors import CheckpointError
from evomerge.merging.sources.source import Source, all_finite

SWEEPS = 30
"""Sweeps at most; copies of one model need two or three."""
ROUNDING = 1e-6
"""A smaller gain, beside the value, is rounding."""
TURNS = 10
"""Turns at most between the channels of values and the query heads of a pair of heads."""


@dataclass(frozen=True)
class Match:
    """What was found.

    Attributes
    ----------
    order
        The model's units in the reference's order.
    before, after
        Cosine of all matrices with the reference's.
    sweeps
        How often all groups were improved.
    """

    order: Order
    before: float
    after: float
    sweeps: int


def memory(units: Units, largest: int) -> int:
    """Return the most bytes that matching holds: one assignment's matrices, and two tensors of so many entries."""
    most = max(units.stream, *units.hidden, units.heads * units.group * units.head)
    return 20 * most**2 + 16 * largest  # the matrix in float32, and twice in the solver's float64


def match(model: Source, reference: Source, swept: Callable[[int, float], None] = lambda *_: None) -> Match:
    """Return the order of a model's units that brings it nearest to a reference of the same form.

    Parameters
    ----------
    model, reference
        Their shapes are equal.
    swept
        Called after each sweep with its number, from 1, and the cosine so far.

    Raises
    ------
    CheckpointError
        If the units are not known, or a weight is not finite.
    """
    units = units_of(model)
    descent = _Descent(model, reference, units)
    order = Order.unchanged(units)
    before = after = descent.cosine(order)
    for sweep in range(1, SWEEPS + 1):
        gained = descent.improve_list(order, "stream", None)
        for layer in range(len(units.hidden)):
            gained |= descent.improve_list(order, "hidden", layer)
            gained |= descent.improve_heads(order, layer)
        after = descent.cosine(order) if gained else after
        swept(sweep, after)
        if not gained:
            break
    return Match(order, before, after, sweep)


class _Descent:
    """Improves one group of units after another."""

    def __init__(self, model: Source, reference: Source, units: Units) -> None:
        self._model, self._reference, self._units = model, reference, units

    def improve_list(self, order: Order, role: Role, layer: int | None) -> bool:
        """Improve the order of the stream, or of a layer's hidden units; return whether it gains."""
        gains_UU = self._products(role, layer, order)
        now = order.stream if layer is None else order.hidden[layer]
        found, value = _assigned(gains_UU)
        if not _is_more(value, float(gains_UU[torch.arange(len(now)), now].double().sum())):
            return False
        if layer is None:
            order.stream = found
        else:
            order.hidden[layer] = found
        return True

    def improve_heads(self, order: Order, layer: int) -> bool:
        """Improve the order of a layer's heads; return whether it gains."""
        heads, group, size = self._units.heads, self._units.group, self._units.head
        pairs = _Pairs(
            self._products("keys", layer, order).view(heads, size, heads, size).diagonal(dim1=1, dim2=3).sum(-1),
            self._products("queries", layer, order)
            .view(heads, group, size, heads, group, size)
            .diagonal(dim1=2, dim2=5)
            .sum(-1),
            self._products("values", layer, order).view(heads, size, heads, size),
            self._products("outputs", layer, order).view(heads, group, size, heads, group, size),
        )
        best = [[pairs.best(own, other) for other in range(heads)] for own in range(heads)]
        found, value = _assigned(torch.tensor([[pair.value for pair in row] for row in best], dtype=torch.float64))
        now = order.heads[layer]
        before = [pairs.value(own, int(now.heads[own]), now.queries[own], now.values[own]) for own in range(heads)]
        if not _is_more(value, sum(before)):
            return False
        chosen = [best[own][int(other)] for own, other in enumerate(found)]
        order.heads[layer] = HeadOrder(
            found, torch.stack([pair.queries for pair in chosen]), torch.stack([pair.values for pair in chosen])
        )
        return True

    def cosine(self, order: Order) -> float:
        """Return the cosine of the matrices with the reference's; norms are alike in all models."""
        product = own = other = 0.0
        for name, axes in self._units.axes.items():
            if len(axes) < 2:
                continue
            a = self._reference.tensor(name).float().reshape(-1)
            b = order.applied(self._model.tensor(name).float(), axes).reshape(-1)
            product += float(a.mul(b).sum(dtype=torch.float64))
            own += float(a.square().sum(dtype=torch.float64))
            other += float(b.square().sum(dtype=torch.float64))
        return product / math.sqrt(own * other) if own and other else 0.0

    def _products(self, role: Role, layer: int | None, order: Order) -> Tensor:
        """Return the inner products of a group's units, [U, U]: the reference's by the model's in its own order."""
        total: Tensor | None = None
        for name, at in self._units.having(role, layer):
            own = self._reference.tensor(name).float().movedim(at, 0)
            other = order.applied(self._model.tensor(name).float(), self._units.axes[name], but=at).movedim(at, 0)
            product = own.reshape(len(own), -1) @ other.reshape(len(other), -1).T
            if not all_finite(product):
                raise CheckpointError(
                    f"{self._model.reference}, {self._reference.reference}: {name} contains NaN or infinite values in "
                    "one of them; use another checkpoint"
                )
            total = product if total is None else total.add_(product)
        assert total is not None, "every group has tensors"
        return total


@dataclass(frozen=True)
class _Pair:
    """The best orders for one head of the reference and one of the model, [G] and [E], and their value."""

    value: float
    queries: Tensor
    values: Tensor


@dataclass(frozen=True)
class _Pairs:
    """Inner products of a layer's heads, the reference's before the model's.

    Attributes
    ----------
    keys, queries
        Of whole heads: [K, K], [K, G, K, G].
    values, outputs
        Channel by channel: [K, E, K, E], [K, G, E, K, G, E].
    """

    keys: Tensor
    queries: Tensor
    values: Tensor
    outputs: Tensor

    def best(self, own: int, other: int) -> _Pair:
        """Return the best orders within a pair of heads: channels of values first, from the values alone."""
        channels, _ = _assigned(self.values[own, :, other])
        queries, value = torch.arange(self.queries.shape[1]), -math.inf
        for _ in range(TURNS):
            pairs_GG = self.queries[own, :, other] + self._over_channels(own, other, channels)
            queries, _ = _assigned(pairs_GG)
            pairs_EE = self.values[own, :, other] + self._over_queries(own, other, queries)
            channels, _ = _assigned(pairs_EE)
            reached = self.value(own, other, queries, channels)
            if not _is_more(reached, value):
                break
            value = reached
        return _Pair(value, queries, channels)

    def value(self, own: int, other: int, queries: Tensor, channels: Tensor) -> float:
        """Return the inner product of a pair of heads in these orders."""
        groups, places = torch.arange(len(queries)), torch.arange(len(channels))
        total = self.keys[own, other].double() + self.queries[own, groups, other, queries].double().sum()
        total += self.values[own, places, other, channels].double().sum()
        return float(total + self._over_channels(own, other, channels)[groups, queries].double().sum())

    def _over_channels(self, own: int, other: int, channels: Tensor) -> Tensor:
        """Return the outputs' products of query heads, [G, G]."""
        return self.outputs[own, :, :, other][:, torch.arange(len(channels)), :, channels].sum(0)

    def _over_queries(self, own: int, other: int, queries: Tensor) -> Tensor:
        """Return the outputs' products of channels, [E, E]."""
        return self.outputs[own, :, :, other][torch.arange(len(queries)), :, queries].sum(0)


def _assigned(gains_UU: Tensor) -> tuple[Tensor, float]:
    """Return which column each row is given for the largest sum, and that sum."""
    rows, columns = linear_sum_assignment(gains_UU.numpy(), maximize=True)
    return torch.from_numpy(columns), float(gains_UU[rows, columns].double().sum())


def _is_more(value: float, other: float) -> bool:
    return value > other + ROUNDING * abs(other) if math.isfinite(other) else value > other
