"""Formulas compiled by numba: one pass over the sources at memory speed, without scratch; results equal torch's.

Needs the extra `fast`; for CPUs, and models whose weights are all bfloat16 or all float32. Compiled at the first use
for each number of models (a second or less), then read from numba's cache. The kernels release Python's lock.

bfloat16 is handled as its bits, uint16: the upper half of a float32. Sums and products are rounded one by one, as in
`evomerge.merging.methods.evaluate`. Coefficients come as tuples, so that loops over models unroll and those over
entries become vector instructions.

Legend: T terms, E entries of the stretch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numba import njit, types
from numba.extending import overload
from torch import Tensor

from evomerge.merging.blocks import Scratch
from evomerge.merging.methods.formulas import Election, Formula, Kept, WeightedSum

MAX_TERMS = 8
"""More would not be unrolled."""
LOWEST = np.iinfo(np.int32).min

f32, u32, i32 = np.float32, np.uint32, np.int32


@dataclass(frozen=True)
class Sources:
    """A tensor's sources and its target as numpy sees them; equal places in memory."""

    target: np.ndarray[Any, Any]
    base: np.ndarray[Any, Any] | None
    models: tuple[np.ndarray[Any, Any], ...]
    supported: bool

    @classmethod
    def of(cls, target: Tensor, base: Tensor | None, models: Sequence[Tensor]) -> Sources:
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


def kernel(sources: Sources, formula: Formula, out_dtype: torch.dtype) -> Callable[..., None] | None:
    """Return a function of scratch (not used) and ``span`` that fills that stretch of the target.

    None if the kernels cannot compute it: other dtypes, weights per row or column, more than `MAX_TERMS` sources.
    """
    if not sources.supported or out_dtype not in (torch.bfloat16, torch.float32):
        return None
    if isinstance(formula, WeightedSum) and formula.per != "tensor":
        return None
    return partial(_run, sources=sources, formula=formula, masks=_Masks.of(formula), rounds=out_dtype == torch.bfloat16)


@dataclass(frozen=True)
class _Masks:
    """What is kept, by term; `states` is None when everything is."""

    states: tuple[np.ndarray[Any, Any], ...] | None
    first: tuple[np.int32, ...]
    end: tuple[np.int32, ...]
    factor: tuple[np.float32, ...]

    @classmethod
    def of(cls, formula: Formula) -> _Masks:
        some = [kept for kept in formula.kept if kept is not None]
        if not some:
            return cls(None, (), (), ())
        everything = Kept(some[0].state, np.iinfo(np.int32).max)
        kept = [part or everything for part in formula.kept]
        return cls(
            tuple(_array(part.state) for part in kept),
            tuple(i32(LOWEST if part.first is None else part.first) for part in kept),
            tuple(i32(part.end) for part in kept),
            tuple(f32(part.factor) for part in kept),
        )

    def cut(self, span: slice) -> tuple[Any, ...]:
        states = None if self.states is None else tuple(state[span] for state in self.states)
        return states, self.first, self.end, self.factor


def _run(_: Scratch, *, sources: Sources, formula: Formula, masks: _Masks, rounds: bool, span: slice) -> None:
    out, models = sources.target[span], tuple(values[span] for values in sources.models)
    base = None if sources.base is None else sources.base[span]
    weights = tuple(map(f32, formula.weights))
    scale = f32(formula.scale)
    if isinstance(formula, Election):
        _elect(out, base, models, *masks.cut(span), weights, formula.normalize, scale, rounds)
    elif formula.terms == "task vectors":
        _add(out, base, models, *masks.cut(span), weights, f32(formula.divisor), scale, rounds)
    else:
        terms = models if formula.terms == "models" else (base, *models)
        _sum(out, terms, weights, f32(formula.divisor), scale, rounds)


def _array(values: Tensor) -> np.ndarray[Any, Any]:
    """Return the tensor's memory: bfloat16 as uint16."""
    if values.dtype == torch.bfloat16:
        return values.detach().view(torch.int16).numpy().view(np.uint16)
    array: np.ndarray[Any, Any] = values.detach().numpy()
    return array


# --- compiled; `overload` picks by dtype ---


def _wide(value: Any) -> Any:
    """Return a stored entry as float32."""


def _stored(out: Any, value: Any, rounds: Any) -> Any:
    """Return a float32 as the target stores it, rounded to bfloat16 if `rounds`, or if that is its dtype."""


@overload(_wide, inline="always")
def _wide_of(value: Any) -> Any:
    if value == types.uint16:

        def wide(value: Any) -> Any:
            return u32(u32(value) << u32(16)).view(f32)

    else:

        def wide(value: Any) -> Any:
            return value

    return wide


@njit(inline="always")
def _rounded_bits(value: Any) -> Any:
    """Return the upper half of a float32, rounded to the nearest, ties to even; NaN stays NaN."""
    bits = f32(value).view(u32)
    nearest = u32((bits + u32(0x7FFF) + ((bits >> u32(16)) & u32(1))) >> u32(16))
    return u32(0x7FC0) if np.isnan(value) else nearest


@overload(_stored, inline="always")
def _stored_in(out: Any, value: Any, rounds: Any) -> Any:
    if out.dtype == types.uint16:

        def stored(out: Any, value: Any, rounds: Any) -> Any:
            return np.uint16(_rounded_bits(value))

    else:

        def stored(out: Any, value: Any, rounds: Any) -> Any:
            return u32(u32(_rounded_bits(value)) << u32(16)).view(f32) if rounds else value

    return stored


def _compiled(function: Callable[..., None]) -> Callable[..., None]:
    """Compile at the first call, keeping the result on disk where there is a place for it."""
    for cache in (True, False):
        try:
            compiled: Callable[..., None] = njit(nogil=True, error_model="numpy", cache=cache)(function)
            return compiled
        except RuntimeError:  # no folder to write to
            continue
    return function


@_compiled
def _sum(out: Any, terms: Any, weights: Any, divisor: Any, scale: Any, rounds: Any) -> None:
    for e in range(out.size):
        total = f32(-0.0)  # which added to anything leaves it as it is
        for t in range(len(terms)):
            total += _wide(terms[t][e]) * weights[t]
        out[e] = _stored(out, total / divisor * scale, rounds)


@_compiled
def _add(
    out: Any,
    base: Any,
    models: Any,
    states: Any,
    first: Any,
    end: Any,
    factor: Any,
    weights: Any,
    divisor: Any,
    scale: Any,
    rounds: Any,
) -> None:
    for e in range(out.size):
        start = _wide(base[e])
        total = f32(-0.0)
        for t in range(len(models)):
            delta = _wide(models[t][e]) - start
            if states is not None:
                state = states[t][e]
                delta = (delta if state >= first[t] and state < end[t] else f32(0)) * factor[t]
            total += delta * weights[t]
        out[e] = _stored(out, total / divisor * scale + start, rounds)


@_compiled
def _elect(
    out: Any,
    base: Any,
    models: Any,
    states: Any,
    first: Any,
    end: Any,
    factor: Any,
    weights: Any,
    normalize: Any,
    scale: Any,
    rounds: Any,
) -> None:
    for e in range(out.size):
        start = _wide(base[e])
        total = f32(-0.0)
        for t in range(len(models)):
            delta = _wide(models[t][e]) - start
            if states is not None:
                state = states[t][e]
                delta = (delta if state >= first[t] and state < end[t] else f32(0)) * factor[t]
            total += delta * weights[t]
        sign = f32(1) if total >= f32(0) else f32(-1)
        size, weight = f32(-0.0), f32(0)
        for t in range(len(models)):  # the same once more: cheaper than keeping it
            delta = _wide(models[t][e]) - start
            if states is not None:
                state = states[t][e]
                delta = (delta if state >= first[t] and state < end[t] else f32(0)) * factor[t]
            agreeing = max(delta * weights[t] * sign, f32(0))
            size += agreeing
            weight += weights[t] if agreeing > f32(0) else f32(0)
        if normalize:
            size /= weight if weight != f32(0) else f32(1)
        out[e] = _stored(out, size * sign * scale + start, rounds)
