"""Derivatives of a loss by the coefficients of one tensor, from the loss's gradient by the merged tensor.

Around the method's own derivatives (`evomerge.merging.methods.slopes`) stand what follows a merge: activation-informed
merging θ' = θ_0 + k ∘ (θ − θ_0) with k = 1 − (1 − ω) a, and the factor s of a path's layer, θ'' = s θ'. So

    ∂L/∂s = ⟨G, θ'⟩,    ∂L/∂ω = ⟨s G, a ∘ (θ − θ_0)⟩,    and the method's gradient is s k ∘ G.

Legend: E entries of one block, C coefficients, U units of work.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from evomerge.merging.engine.activation_informed import PARAMETER, inform
from evomerge.merging.engine.core_space import CoreTensorMerge
from evomerge.merging.engine.tensor_merge import UNIT, TensorMerge, WorkUnit
from evomerge.merging.methods.blocks import Block, Scratch
from evomerge.merging.methods.slopes import STEP, STEP_OF_NUMBERS, Difference, SlopesOfBlock, formula_slopes, own_slopes
from search_spaces.recipes.resolve import TensorPlan
from search_spaces.spaces.derivatives import LAYER_SCALE, Coefficient, moved

AnyMerge: TypeAlias = TensorMerge | CoreTensorMerge


class TensorSlopes:
    """The derivatives of a loss by coefficients of one tensor.

    Parameters
    ----------
    merge
        The merge that fills the tensor.
    plan
        Gives the coefficients where the derivatives are wanted.
    wanted
        Coefficients of this tensor, C of them.
    gradient
        The loss's, by the merged tensor: flat, in any floating dtype, on the engine's device.
    """

    def __init__(self, merge: AnyMerge, plan: TensorPlan, wanted: Sequence[Coefficient], gradient: Tensor) -> None:
        if isinstance(merge, CoreTensorMerge):
            merge, gradient = merge.in_core(gradient)
        self._merge, self._plan, self._gradient = merge, plan, gradient
        self._wanted = tuple(wanted)
        self._own = tuple(each for each in wanted if each.parameter not in (PARAMETER, LAYER_SCALE))
        self._of_method = self._own_slopes() if self._own and not plan.pieces else None
        omega = plan.parameters.get(PARAMETER)
        self._informed = None if omega is None or merge.activation is None else (merge.activation, float(omega))
        self._parts: list[Tensor] = []

    def units(self) -> Iterator[WorkUnit]:
        """Yield the work, in any order."""
        size = self._merge.context.size
        # values that a method caches between a tensor's blocks are not safe to share between threads
        step = UNIT if self._merge.method.gives_formula and self._gradient.device.type == "cpu" else size
        starts = range(0, size, step)
        self._parts = [torch.zeros(len(self._wanted), dtype=torch.float64) for _ in starts]
        for part, start in zip(self._parts, starts, strict=True):
            yield partial(self._add, into=part, span=slice(start, min(start + step, size)))

    def total(self) -> list[float]:
        """Return the derivatives in the order of the coefficients, once all work is done: added up in a fixed order."""
        total: list[float] = torch.stack(self._parts).sum(0).tolist()
        return total

    def _own_slopes(self) -> SlopesOfBlock:
        merge, plan = self._merge, self._plan
        step = STEP_OF_NUMBERS if merge.method.gives_formula else STEP
        differences = [
            Difference(merge.arguments(moved(plan, each, -step)), merge.arguments(moved(plan, each, step)), 2 * step)
            for each in self._own
        ]
        if merge.method.gives_formula:
            return formula_slopes(merge.formula, merge.arguments(plan), differences)
        return own_slopes(merge.method.apply, merge.arguments(plan), differences)

    def _add(self, scratch: Scratch, *, into: Tensor, span: slice) -> None:
        step = span.stop - span.start if self._merge.is_whole_matrix else scratch.block
        for start in range(span.start, span.stop, step):
            part = slice(start, min(start + step, span.stop))
            block, gradient = self._merge.cut(part, scratch), self._gradient[part]
            into += self._of_pieces(block, gradient) if self._plan.pieces else self._of_block(block, gradient)

    def _of_pieces(self, block: Block, gradient: Tensor) -> Tensor:
        """Return a block's part of the derivatives by the weights of a tensor's pieces, float64[C]."""
        gradient_E = block.spare("gradient").copy_(gradient).mul_(self._plan.scale)
        products = [values_E.mul_(gradient_E) for values_E in block.models()]
        found: dict[tuple[int | None, int | None], float] = {}
        start = 0
        for index, piece in enumerate(self._plan.pieces):
            span = slice(max(0, start - block.start), max(0, piece.end - block.start))
            for source, product_E in enumerate(products):
                found[index, source] = float(product_E[span].sum(dtype=torch.float64))
            start = piece.end
        return torch.tensor([found.get((each.piece, each.source), 0.0) for each in self._wanted], dtype=torch.float64)

    def _of_block(self, block: Block, gradient: Tensor) -> Tensor:
        """Return a block's part of the derivatives, float64[C]."""
        gradient_E = block.spare("gradient").copy_(gradient)
        found: dict[Coefficient, float] = {}
        names = {each.parameter: each for each in self._wanted if each not in self._own}
        if LAYER_SCALE in names:
            self._merge.filler(self._plan)(block)
            if self._informed is not None:
                inform(block, *self._informed)
            found[names[LAYER_SCALE]] = float(torch.dot(gradient_E, block.out))
        gradient_E.mul_(self._plan.scale)
        if self._informed is not None:
            share_N, omega = self._informed
            share_E = block.by_column(share_N)
            if PARAMETER in names:
                self._merge.filler(self._plan)(block)
                change_E = block.out.sub_(block.base()).mul_(share_E)
                found[names[PARAMETER]] = float(torch.dot(gradient_E, change_E))
            gradient_E.mul_(1.0 - (1.0 - omega) * share_E)
        if self._of_method is not None:
            found |= zip(self._own, self._of_method(block, gradient_E).tolist(), strict=True)
        return torch.tensor([found.get(each, 0.0) for each in self._wanted], dtype=torch.float64)
