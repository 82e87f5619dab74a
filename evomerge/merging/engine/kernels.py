"""Formulas at memory speed: those that compiled code can compute, and its arguments (see `compiled`).

Needs the extra `fast`; for CPUs, and models whose weights are all bfloat16 or all float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evomerge.merging.engine.compiled import Elect, Sum, fill
from evomerge.merging.methods.blocks import Scratch
from evomerge.merging.methods.formulas import Election, Formula, Kept, WeightedSum

MAX_TERMS = 8
"""Sources at most: loops over more are not unrolled."""
LOWEST = np.iinfo(np.int32).min

f32, i32 = np.float32, np.int32


@dataclass(frozen=True)
class TensorArrays:
    """A tensor's sources and its target as numpy arrays on the same memory."""

    target: np.ndarray[Any, Any]
    base: np.ndarray[Any, Any] | None
    models: tuple[np.ndarray[Any, Any], ...]
    supported: bool

    @classmethod
    def of(cls, target: Tensor, base: Tensor | None, models: Sequence[Tensor]) -> TensorArrays:
        """Return the arrays that share the tensors' memory."""
        sources = [*models] if base is None else [base, *models]
        dtypes = {values.dtype for values in sources}
        if (
            len(dtypes) > 1
            or not {*dtypes, target.dtype} <= {torch.bfloat16, torch.float32}
            or not all(values.is_contiguous() for values in (target, *sources))
            or len(sources) > MAX_TERMS
        ):
            return cls(np.empty(0), None, (), supported=False)
        arrays = tuple(map(_array, models))
        return cls(_array(target), None if base is None else _array(base), arrays, supported=True)


def kernel(sources: TensorArrays, formula: Formula, out_dtype: torch.dtype) -> Callable[..., None] | None:
    """Return a function of scratch (not used) and ``span`` that fills that part of the target.

    None if the kernels cannot compute it: other dtypes, weights per row or column, more than `MAX_TERMS` sources.
    """
    if not sources.supported or out_dtype not in (torch.bfloat16, torch.float32):
        return None
    if isinstance(formula, WeightedSum) and formula.per != "tensor":
        return None
    how, states = _numbers(formula, rounds=out_dtype == torch.bfloat16)
    base, models = sources.base, sources.models
    if isinstance(formula, WeightedSum) and formula.terms != "task vectors":
        base, models = None, models if formula.terms == "models" or base is None else (base, *models)
    return partial(_run, target=sources.target, base=base, models=models, states=states, how=how)


def _numbers(formula: Formula, *, rounds: bool) -> tuple[Sum | Elect, tuple[np.ndarray[Any, Any], ...] | None]:
    """Return the formula's numbers, and the states that decide which entries are kept; None if all are."""
    weights, scale = tuple(map(f32, formula.weights)), f32(formula.scale)
    some = [kept for kept in formula.kept if kept is not None]
    kept = [part or Kept(some[0].state, np.iinfo(np.int32).max) for part in formula.kept] if some else []
    bounds = (
        tuple(i32(LOWEST if part.first is None else part.first) for part in kept),
        tuple(i32(part.end) for part in kept),
        tuple(f32(part.factor) for part in kept),
        True if rounds else None,
    )
    states = tuple(_array(part.state) for part in kept) if kept else None
    if isinstance(formula, Election):
        return Elect(weights, True if formula.normalize else None, scale, *bounds), states
    divisor = None if formula.divisor == 1 else f32(formula.divisor)
    return Sum(weights, True if formula.fused else None, divisor, scale, *bounds), states


def _run(
    _: Scratch,
    *,
    target: np.ndarray[Any, Any],
    models: tuple[np.ndarray[Any, Any], ...],
    base: np.ndarray[Any, Any] | None,
    states: tuple[np.ndarray[Any, Any], ...] | None,
    how: Sum | Elect,
    span: slice,
) -> None:
    fill(
        target[span],
        None if base is None else base[span],
        tuple(values[span] for values in models),
        None if states is None else tuple(state[span] for state in states),
        how,
    )


def _array(values: Tensor) -> np.ndarray[Any, Any]:
    """Return the tensor's memory: bfloat16 as uint16."""
    if values.dtype == torch.bfloat16:
        return values.detach().view(torch.int16).numpy().view(np.uint16)
    array: np.ndarray[Any, Any] = values.detach().numpy()
    return array
