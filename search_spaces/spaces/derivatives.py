"""From derivatives by the coefficients of tensors to derivatives by genes.

Weights, lambda, SLERP's t and factors change merged weights smoothly: a loss has derivatives by them. Densities, seeds,
masks and the choice of a method are held.

∂L/∂x_g = Σ over coefficients c of ∂L/∂c · ∂c/∂x_g. The second factor is a central difference of what the space
decodes to, so the rule holds for every space, ties and shared genes included. Most spaces are affine in their real
genes: the differences are kept for as long as they predict the coefficients of the genotypes that come.

Legend: G genes, C coefficients.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from search_spaces.recipes.fields import WRITERS
from search_spaces.recipes.layout import ModelLayout
from search_spaces.recipes.methods import method_spec
from search_spaces.recipes.resolve import TensorPlan, resolve
from search_spaces.spaces.space import Genotype, SearchSpace

LAYER_SCALE = "layer_scale"
"""Name of the coefficient that a path's factor of a layer gives to each of its tensors that write into the stream."""
UNSET = 1.0
"""Value of a factor that is not set: it leaves the tensor as it is."""
STEP = 1e-3
"""Half the distance between the two points of a difference, as a fraction of a gene's range."""
TOLERANCE = 1e-6
"""How far kept differences may be from the true coefficients."""


@dataclass(frozen=True)
class Coefficient:
    """One real number that goes into one tensor of a merge.

    Attributes
    ----------
    tensor
        Name of the output tensor.
    source
        Position of the source it belongs to among the plan's contributions; None: all sources share it.
    parameter
        Name of the merge method's parameter.
    piece
        Where weights change within a tensor: position of the piece; else None.
    """

    tensor: str
    source: int | None
    parameter: str
    piece: int | None = None


def coefficients_of(plan: TensorPlan) -> Iterator[Coefficient]:
    """Yield the coefficients of a tensor that its merged weights are differentiable in."""
    for piece in range(len(plan.pieces)):
        for source in range(len(plan.contributions)):
            yield Coefficient(plan.name, source, "weight", piece)
    if plan.pieces:
        return
    spec = method_spec(plan.method)
    for source in range(len(plan.contributions)):
        for parameter in spec.per_model:
            if parameter.name in spec.differentiable:
                yield Coefficient(plan.name, source, parameter.name)
    for parameter in spec.shared:
        searchable = parameter.name in spec.differentiable or parameter.after
        if searchable and parameter.name in plan.parameters:
            yield Coefficient(plan.name, None, parameter.name)
    if any(writer in plan.name for writer in WRITERS):
        yield Coefficient(plan.name, None, LAYER_SCALE)


def value_of(plan: TensorPlan, coefficient: Coefficient) -> float:
    """Return the value that a plan gives to one of its coefficients."""
    if coefficient.parameter == LAYER_SCALE:
        return plan.scale
    if coefficient.piece is not None:
        assert coefficient.source is not None, "pieces have weights only"
        return plan.pieces[coefficient.piece].weights[coefficient.source]
    holder = plan if coefficient.source is None else plan.contributions[coefficient.source]
    return float(holder.parameters.get(coefficient.parameter, UNSET))


def moved(plan: TensorPlan, coefficient: Coefficient, step: float) -> TensorPlan:
    """Return the plan with one coefficient moved by `step`."""
    name, value = coefficient.parameter, value_of(plan, coefficient) + step
    if name == LAYER_SCALE:
        return replace(plan, scale=value)
    if coefficient.source is None:
        return replace(plan, parameters={**plan.parameters, name: value})
    parts = list(plan.contributions)
    part = parts[coefficient.source]
    parts[coefficient.source] = replace(part, parameters={**part.parameters, name: value})
    return replace(plan, contributions=tuple(parts))


def values(plans: Iterable[TensorPlan]) -> dict[Coefficient, float]:
    """Return the value of each such coefficient of a merge."""
    return {coefficient: value_of(plan, coefficient) for plan in plans for coefficient in coefficients_of(plan)}


class ChainRule:
    """The Jacobian of a space's decoding, at one genotype after another.

    Parameters
    ----------
    space
        Turns genotypes into recipes.
    layout
        The layout of the sources.
    """

    def __init__(self, space: SearchSpace, layout: ModelLayout) -> None:
        self.space, self.layout = space, layout
        self._names: tuple[Coefficient, ...] = ()
        self._jacobian_CG: npt.NDArray[np.float64] = np.zeros((0, space.dimension))
        self._at: tuple[Genotype, npt.NDArray[np.float64]] | None = None

    def wanted(self, genotype: Genotype) -> frozenset[Coefficient]:
        """Return the coefficients that a gene moves at `genotype`, float64[G]; derivatives by others are not needed."""
        self._go_to(genotype)
        moving_C = (self._jacobian_CG != 0).any(axis=1)
        return frozenset(name for name, moves in zip(self._names, moving_C, strict=True) if moves)

    def derivatives(self, genotype: Genotype, by_coefficient: Mapping[Coefficient, float]) -> npt.NDArray[np.float64]:
        """Return ∂L/∂x, float64[G], at `genotype` (float64[G]); 0 for genes that no coefficient follows from.

        Parameters
        ----------
        genotype
            Inside the box.
        by_coefficient
            ∂L/∂c; coefficients that are absent count as 0.
        """
        self._go_to(genotype)
        slope_C = np.array([by_coefficient.get(name, 0.0) for name in self._names])
        gradient: npt.NDArray[np.float64] = slope_C @ self._jacobian_CG
        return gradient

    def searchable(self) -> npt.NDArray[np.bool_]:
        """Return which genes move a differentiable coefficient at the space's start, bool[G]."""
        self._measure(self.space.start, self._coefficients(self.space.start))
        found: npt.NDArray[np.bool_] = (self._jacobian_CG != 0).any(axis=0)
        return found

    def _go_to(self, genotype: Genotype) -> None:
        point = np.asarray(genotype, dtype=np.float64)
        now = self._coefficients(point)
        if not self._predicts(point, now):
            self._measure(point, now)

    def _coefficients(self, genotype: Genotype) -> dict[Coefficient, float]:
        return values(resolve(self.space.decode(genotype), self.layout))

    def _predicts(self, point: Genotype, now: Mapping[Coefficient, float]) -> bool:
        if self._at is None or tuple(now) != self._names:
            return False
        center, values_C = self._at
        same_choices = np.array_equal(point[self.space.discrete], center[self.space.discrete])
        predicted_C = values_C + self._jacobian_CG @ (point - center)
        return same_choices and np.allclose(predicted_C, list(now.values()), rtol=0, atol=TOLERANCE)

    def _measure(self, point: Genotype, now: Mapping[Coefficient, float]) -> None:
        space = self.space
        self._names = tuple(now)
        self._at = point.copy(), np.array(list(now.values()))
        self._jacobian_CG = np.zeros((len(now), space.dimension))
        for gene in np.flatnonzero(~space.discrete & space.active(point)):
            step = STEP * (space.high[gene] - space.low[gene])
            above, below = point.copy(), point.copy()
            above[gene] = min(point[gene] + step, space.high[gene])
            below[gene] = max(point[gene] - step, space.low[gene])
            high, low = self._coefficients(above), self._coefficients(below)
            self._jacobian_CG[:, gene] = [
                (high.get(name, value) - low.get(name, value)) / (above[gene] - below[gene])
                for name, value in now.items()
            ]
