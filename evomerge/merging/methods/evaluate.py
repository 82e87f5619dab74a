"""Formulas in torch, block by block, on any device: the reference for the compiled kernels, which equal it.

Every product and every sum is rounded on its own, unless the formula is `fused`, so that both agree to the last bit;
the order is mergekit 0.1.5's at ``dtype: float32``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, ge, lt

from evomerge.merging.methods.blocks import Block
from evomerge.merging.methods.election import elect_and_merge
from evomerge.merging.methods.formulas import Formula, Kept, WeightedSum
from evomerge.merging.methods.linear import scale_by


def evaluate(block: Block, *, formula: Formula) -> None:
    """Fill the block with the formula's result."""
    if not isinstance(formula, WeightedSum):
        base_E, deltas = task_vectors(block, formula.kept)
        elect_and_merge(
            block,
            base_E,
            deltas,
            weight=formula.weights,
            normalize=formula.normalize,
            lambda_=formula.scale,
        )
        return
    if formula.terms == "task vectors":
        base_E, values = task_vectors(block, formula.kept)
        _add(block, values, formula)
        block.out.add_(base_E)
    else:
        _add(block, terms(block, formula), formula)


def terms(block: Block, formula: WeightedSum) -> tuple[Tensor, ...]:
    """Return the values v_t of a sum, float32[E] each in scratch, free to be overwritten."""
    if formula.terms == "task vectors":
        return task_vectors(block, formula.kept)[1]
    return block.models() if formula.terms == "models" else (block.base(), *block.models())


def task_vectors(block: Block, kept: Sequence[Kept | None]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return the base and the task vectors, dropped entries as 0."""
    base_E, deltas = block.deltas()
    span = slice(block.start, block.start + block.entries)
    for delta_E, part in zip(deltas, kept or [None] * len(deltas), strict=True):
        if part is not None:
            _drop(block, delta_E, part.cut(span))
    return base_E, deltas


def _drop(block: Block, delta_E: Tensor, kept: Kept) -> None:
    delta_E.mul_(lt(kept.state, kept.end, out=block.spare("mask")))
    if kept.first is not None:
        delta_E.mul_(ge(kept.state, kept.first, out=block.spare("mask")))
    if kept.factor != 1:
        delta_E.mul_(kept.factor)


def _add(block: Block, values: tuple[Tensor, ...], formula: WeightedSum) -> None:
    """Leave s (Σ w_t v_t) / d in the block; overwrites the terms."""
    spread = {"row": block.by_row, "column": block.by_column}.get(formula.per)
    if formula.fused:
        weight_T1 = torch.tensor(formula.weights, dtype=torch.float32, device=block.out.device).view(-1, 1)
        block.out.zero_()
        for values_E, weight_1 in zip(values, weight_T1, strict=True):
            block.out.addcmul_(values_E, weight_1)
        scale_by(block.out, formula.divisor, formula.scale)
        return
    for index, (values_E, weight) in enumerate(zip(values, formula.weights, strict=True)):
        values_E.mul_(weight if spread is None else spread(weight.to(block.out)))
        if index == 0:
            block.out.copy_(values_E)
        else:
            block.out.add_(values_E)
    divisor = formula.divisor
    if spread is not None and isinstance(divisor, Tensor):
        block.out.div_(spread(divisor.to(block.out)))
        divisor = 1.0
    scale_by(block.out, divisor, formula.scale)
