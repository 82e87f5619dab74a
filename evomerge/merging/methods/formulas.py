"""The formulas of merge methods: with known coefficients, most methods are one of two per tensor.

A method may return its formula and leave the arithmetic to the engine, which then makes a single pass over the
sources: with `evomerge.merging.engine.kernels`, compiled, for large models, or else with
`evomerge.merging.methods.evaluate`, in torch. Both round alike.

Legend: T terms, n entries of the tensor, K rows or columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from torch import Tensor

from evomerge.merging.methods.blocks import TensorInfo


@dataclass(frozen=True)
class TensorContext:
    """All that a method needs to know of an output tensor to return its formula: everything but its entries.

    Attributes
    ----------
    info
        Shape and role.
    size
        Its number of entries, n.
    has_base
        Whether the merge has a base, for methods that can do without.
    prepared
        What the method prepared for each model.
    shared
        What it prepared for all models together; None if it prepares nothing of that kind.
    """

    info: TensorInfo
    size: int
    has_base: bool
    prepared: Sequence[Any]
    shared: Any


@dataclass(frozen=True)
class Kept:
    """The entries of a task vector that are kept: those with ``first <= state < end``, multiplied by `factor`.

    Attributes
    ----------
    state
        TensorContext numbers [n]: ranks, random draws, masks.
    first
        None: there is no lower bound.
    """

    state: Tensor
    end: int
    first: int | None = None
    factor: float = 1.0

    def cut(self, span: slice) -> Kept:
        """Return the part for some of the entries."""
        return Kept(self.state[span], self.end, self.first, self.factor)


@dataclass(frozen=True)
class WeightedSum:
    """θ = s (Σ w_t v_t) / d, with θ_0 added when the terms are task vectors.

    Attributes
    ----------
    weights
        T numbers; with `per` ``row`` or ``column`` T vectors [K].
    terms
        What the v_t are: the models, the base and then the models, or the task vectors θ_t − θ_0.
    divisor, scale
        d and s; with `per` ``row`` or ``column`` d is a vector [K] or 1.
    fused
        Whether a product is added without being rounded before (a fused multiply-add).
    per
        What each weight belongs to.
    kept
        Empty, or the kept entries of each task vector; None for all of them.
    """

    weights: Sequence[Any]
    terms: Literal["models", "base and models", "task vectors"] = "task vectors"
    divisor: Any = 1.0
    scale: float = 1.0
    fused: bool = False
    per: Literal["tensor", "row", "column"] = "tensor"
    kept: Sequence[Kept | None] = ()


@dataclass(frozen=True)
class Election:
    """TIES' last step (see `evomerge.merging.methods.election`) on weighted task vectors.

    Attributes
    ----------
    weights
        T numbers.
    normalize
        Whether an entry's sum is divided by the weights of the models that have the elected sign.
    scale
        Multiplies the sum: λ.
    kept
        Empty, or the kept entries of each task vector; None for all of them.
    """

    weights: Sequence[float]
    normalize: bool
    scale: float = 1.0
    kept: Sequence[Kept | None] = ()


Formula: TypeAlias = WeightedSum | Election
