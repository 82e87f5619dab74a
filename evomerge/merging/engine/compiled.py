"""Formulas compiled by numba: one pass over the sources, without scratch; results equal torch's.

Compiled at the first use for each number of models (a second or two), then read from numba's cache. Python's lock is
released while they run.

bfloat16 is handled as its bits, uint16: the upper half of a float32. Sums and products are rounded one by one, unless a
sum is fused, as in `evomerge.merging.methods.evaluate`. Coefficients come as tuples, so that loops over models unroll
and those over entries become vector instructions. `overload` picks code by dtype, and generates none for an argument of
None.

Legend: t a term, e an entry of the span.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from evomerge.merging.methods.kernels.compiling import compiled

TILE = 1024
"""Entries computed in the first-level cache before they are written to memory."""
LINE = 64
"""Bytes of a cache line."""

f32, u32 = np.float32, np.uint32


class Bounds(NamedTuple):
    """The entries that are kept, by term: those whose state is from `first` to below `end`, times `factor`."""

    first: tuple[np.int32, ...] | None
    end: tuple[np.int32, ...]
    factor: tuple[np.float32, ...] | None


class Thinning(NamedTuple):
    """DELLA's, by term: an entry is kept with probability offset + slope · place, and divided by it if it `rescales`.

    Its states are the draws of all terms, and their places.
    """

    slope: tuple[np.float32, ...]
    offset: tuple[np.float32, ...]
    rescales: bool | None
    smallest: np.float32
    levels: np.float32


class Sum(NamedTuple):
    """A `WeightedSum` for compiled code; None where there is nothing to do, so that no code is generated for it.

    Attributes
    ----------
    weights, divisor, scale
        As there, float32.
    fused
        True: products are not rounded before they are added; or None.
    kept
        The kept entries; None if all are.
    rounds
        True: round to bfloat16; or None.
    """

    weights: tuple[np.float32, ...]
    fused: bool | None
    divisor: np.float32 | None
    scale: np.float32
    kept: Bounds | Thinning | None
    rounds: bool | None


class Elect(NamedTuple):
    """The same for an `Election`, and for methods that elect in another way.

    Attributes
    ----------
    normalize
        True, or None.
    shares
        SCE's weights of the models, which multiply what is elected; or None.
    largest
        True: EMR's, the largest entry instead of the sum; or None.
    """

    weights: tuple[np.float32, ...]
    normalize: bool | None
    scale: np.float32
    kept: Bounds | Thinning | None
    rounds: bool | None
    shares: tuple[np.float32, ...] | None = None
    smallest: np.float32 | None = None
    largest: bool | None = None


class Farthest(NamedTuple):
    """MagMax for compiled code."""

    weights: tuple[np.float32, ...]
    scale: np.float32
    rounds: bool | None


class Agreed(NamedTuple):
    """Consensus merging: entries that matter, by `threshold`, to `least` models."""

    weights: tuple[np.float32, ...]
    threshold: np.float32
    least: np.float32
    scale: np.float32
    rounds: bool | None


class Competing(NamedTuple):
    """PCB: by term, the percentiles of magnitudes, and the range of scores. Its states are the scores."""

    weights: tuple[np.float32, ...]
    low: tuple[np.float32, ...]
    high: tuple[np.float32, ...]
    least: tuple[np.float32, ...]
    span: tuple[np.float32, ...]
    smallest: np.float32
    scale: np.float32
    rounds: bool | None


How: TypeAlias = Sum | Elect | Farthest | Agreed | Competing


def _wide(value: Any) -> Any:
    """Return a stored entry as float32."""


def _stored(out: Any, value: Any, rounds: Any) -> Any:
    """Return a float32 as the target stores it, rounded to bfloat16 unless `rounds` is None and its dtype another."""


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

    elif isinstance(rounds, types.NoneType):

        def stored(out: Any, value: Any, rounds: Any) -> Any:
            return value

    else:

        def stored(out: Any, value: Any, rounds: Any) -> Any:
            return u32(u32(_rounded_bits(value)) << u32(16)).view(f32)

    return stored


@intrinsic
def _borrowed(_: Any, array: Any) -> Any:
    """Return the array without a reference of its own.

    Each slice would count one, atomically, and that waits until every store past the cache has reached the memory.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        view = context.make_array(array)(context, builder, arguments[0])
        view.meminfo = cgutils.get_null_value(view.meminfo.type)
        return view._getvalue()

    return array(array), generate


def _cut(values: Any, begin: Any, end: Any) -> Any:
    """Return a span of an array, of each array of a tuple, or of None."""


@overload(_cut)
def _cut_of(values: Any, begin: Any, end: Any) -> Any:
    if isinstance(values, types.NoneType):

        def cut(values: Any, begin: Any, end: Any) -> Any:
            return None

    elif isinstance(values, types.Array):

        def cut(values: Any, begin: Any, end: Any) -> Any:
            return _borrowed(values)[begin:end]

    elif len(values) == 1:

        def cut(values: Any, begin: Any, end: Any) -> Any:
            return (_cut(values[0], begin, end),)

    else:

        def cut(values: Any, begin: Any, end: Any) -> Any:
            return (_cut(values[0], begin, end), *_cut(values[1:], begin, end))

    return cut


@intrinsic
def _stream(_: Any, out: Any, tile: Any, lines: Any) -> Any:
    """Copy so many cache lines of `tile` over `out`, which begins at one, past the cache.

    Stores that go through the cache read each line from memory before they overwrite it. The lock that a thread takes
    when it hands its work over makes these visible to others.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        line = ir.VectorType(ir.IntType(32), LINE // 4).as_pointer()
        target, source = (
            builder.bitcast(context.make_array(kind)(context, builder, array).data, line)
            for kind, array in zip(signature.args[:2], arguments[:2], strict=True)
        )
        past_cache = builder.module.add_metadata([ir.IntType(32)(1)])
        with cgutils.for_range(builder, arguments[2]) as loop:
            value = builder.load(builder.gep(source, [loop.index]))
            value.align = 2
            stored = builder.store(value, builder.gep(target, [loop.index]), align=LINE)
            stored.set_metadata("nontemporal", past_cache)
        return context.get_dummy_value()

    return types.void(out, tile, types.intp), generate


@njit(forceinline=True, error_model="numpy")
def _divided(value: Any, divisor: Any) -> Any:
    return value if divisor is None else value / divisor


@njit(forceinline=True, error_model="numpy")
def _normalized(size: Any, weight: Any, normalize: Any, smallest: Any) -> Any:
    if smallest is not None:
        return size / max(weight, smallest)
    return size if normalize is None else size / (weight if weight != f32(0) else f32(1))


@njit(forceinline=True, error_model="numpy")
def _share(t: Any, weights: Any, shares: Any) -> Any:
    return weights[t] if shares is None else shares[t]


@njit(forceinline=True, error_model="numpy")
def _with(size: Any, agreeing: Any, t: Any, shares: Any, largest: Any) -> Any:
    if largest is not None:
        return max(size, agreeing)
    return size + (agreeing if shares is None else agreeing * shares[t])


@njit(forceinline=True, error_model="numpy")
def _reaches(state: Any, t: Any, first: Any) -> Any:
    return True if first is None else state >= first[t]


@njit(forceinline=True, error_model="numpy")
def _times(delta: Any, t: Any, factor: Any) -> Any:
    return delta if factor is None else delta * factor[t]


@njit(forceinline=True, error_model="numpy")
def _rescaled(delta: Any, chance: Any, smallest: Any, rescales: Any) -> Any:
    return delta if rescales is None else delta / max(chance, smallest)


def _kept(delta: Any, t: Any, e: Any, states: Any, kept: Any) -> Any:
    """Return an entry of a task vector as it is kept: multiplied, or 0."""


@overload(_kept, inline="always")
def _kept_of(delta: Any, t: Any, e: Any, states: Any, kept: Any) -> Any:
    if isinstance(kept, types.NoneType):

        def keep(delta: Any, t: Any, e: Any, states: Any, kept: Any) -> Any:
            return delta

    elif kept.instance_class is Bounds:

        def keep(delta: Any, t: Any, e: Any, states: Any, kept: Any) -> Any:
            state = states[t][e]
            inside = _reaches(state, t, kept.first) and state < kept.end[t]
            return _times(delta if inside else f32(0), t, kept.factor)

    else:

        def keep(delta: Any, t: Any, e: Any, states: Any, kept: Any) -> Any:
            chance = states[1][t][e] * kept.slope[t] + kept.offset[t]
            level = chance * kept.levels - kept.levels * f32(0.5)
            rescaled = _rescaled(delta, chance, kept.smallest, kept.rescales)
            return rescaled if f32(states[0][t][e]) < level else f32(0)

    return keep


@njit(forceinline=True, error_model="numpy")
def _delta(t: Any, e: Any, start: Any, models: Any, states: Any, how: Any) -> Any:
    """Return an entry of a task vector, as it is kept."""
    return _kept(_wide(models[t][e]) - start, t, e, states, how.kept)


@intrinsic
def _fused(_: Any, factor: Any, other: Any, total: Any) -> Any:
    """Return total + factor · other, rounded once."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fma(*arguments)

    return types.float32(types.float32, types.float32, types.float32), generate


def _plus(total: Any, value: Any, weight: Any, fused: Any) -> Any:
    """Return total + value · weight."""


@overload(_plus, inline="always")
def _plus_of(total: Any, value: Any, weight: Any, fused: Any) -> Any:
    if isinstance(fused, types.NoneType):

        def plus(total: Any, value: Any, weight: Any, fused: Any) -> Any:
            return total + value * weight

    else:

        def plus(total: Any, value: Any, weight: Any, fused: Any) -> Any:
            return _fused(value, weight, total)

    return plus


def _sum(out: Any, base: Any, models: Any, states: Any, how: Any) -> None:
    for e in range(out.size):
        total = f32(-0.0)  # which added to anything leaves it as it is
        for t in range(len(models)):
            total = _plus(total, _wide(models[t][e]), how.weights[t], how.fused)
        out[e] = _stored(out, _divided(total, how.divisor) * how.scale, how.rounds)


def _add(out: Any, base: Any, models: Any, states: Any, how: Any) -> None:
    for e in range(out.size):
        start = _wide(base[e])
        total = f32(-0.0)
        for t in range(len(models)):
            total += _delta(t, e, start, models, states, how) * how.weights[t]
        out[e] = _stored(out, _divided(total, how.divisor) * how.scale + start, how.rounds)


def _elect(out: Any, base: Any, models: Any, states: Any, how: Any) -> None:
    for e in range(out.size):
        start = _wide(base[e])
        total = f32(-0.0)
        for t in range(len(models)):
            total += _delta(t, e, start, models, states, how) * how.weights[t]
        sign = f32(1) if total >= f32(0) else f32(-1)
        size, weight = f32(-0.0), f32(0)
        for t in range(len(models)):  # the same once more: cheaper than keeping it
            delta = _delta(t, e, start, models, states, how)
            agreeing = max(delta * how.weights[t] * sign, f32(0))
            size = _with(size, agreeing, t, how.shares, how.largest)
            weight += _share(t, how.weights, how.shares) if agreeing > f32(0) else f32(0)
        size = _normalized(size, weight, how.normalize, how.smallest)
        out[e] = _stored(out, size * sign * how.scale + start, how.rounds)


def _farthest(out: Any, base: Any, models: Any, states: Any, how: Any) -> None:
    for e in range(out.size):
        start = _wide(base[e])
        highest = lowest = (_wide(models[0][e]) - start) * how.weights[0]
        for t in range(1, len(models)):
            delta = (_wide(models[t][e]) - start) * how.weights[t]
            highest, lowest = max(highest, delta), min(lowest, delta)
        far = highest if highest + lowest >= f32(0) else lowest
        out[e] = _stored(out, far * how.scale + start, how.rounds)


def _agreed(out: Any, base: Any, models: Any, states: Any, how: Any) -> None:
    for e in range(out.size):
        start = _wide(base[e])
        total, count = f32(-0.0), f32(0)
        for t in range(len(models)):
            total += (_wide(models[t][e]) - start) * how.weights[t]
        for t in range(len(models)):
            delta = (_wide(models[t][e]) - start) * how.weights[t]
            count += f32(1) if abs(delta) > abs(total - delta) * how.threshold else f32(0)
        kept = total if count >= how.least else f32(0)
        out[e] = _stored(out, kept * how.scale + start, how.rounds)


def _competing(out: Any, base: Any, models: Any, states: Any, how: Any) -> None:
    for e in range(out.size):
        start = _wide(base[e])
        total, weight = f32(0), f32(0)
        for t in range(len(models)):
            delta = _wide(models[t][e]) - start
            score = (max(states[t][e], how.least[t]) - how.least[t]) / how.span[t]
            size = min(max(abs(delta), how.low[t]), how.high[t])
            sign = f32(1) if delta > f32(0) else f32(-1) if delta < f32(0) else f32(0)
            total = _fused(size * sign * how.weights[t], score, total)
            weight += score
        out[e] = _stored(out, total / max(weight, how.smallest) * how.scale + start, how.rounds)


def _stretch(out: Any, base: Any, models: Any, states: Any, how: Any) -> None:
    """Fill a span of the target."""


@overload(_stretch)
def _stretch_of(out: Any, base: Any, models: Any, states: Any, how: Any) -> Any:
    if how.instance_class is Sum:
        return _sum if isinstance(base, types.NoneType) else _add
    return {Elect: _elect, Farthest: _farthest, Agreed: _agreed, Competing: _competing}[how.instance_class]


@compiled
def fill(out: Any, base: Any, models: Any, states: Any, how: Any) -> None:
    """Fill the target, tile by tile; what does not begin or end with a cache line directly."""
    tile = np.empty(TILE, out.dtype)
    whole = out.size // TILE * TILE if out.ctypes.data % LINE == 0 else 0
    for begin in range(0, whole, TILE):
        end = begin + TILE
        _stretch(_cut(tile, 0, TILE), _cut(base, begin, end), _cut(models, begin, end), _cut(states, begin, end), how)
        _stream(_cut(out, begin, end), tile, TILE * out.itemsize // LINE)
    end = out.size
    _stretch(_cut(out, whole, end), _cut(base, whole, end), _cut(models, whole, end), _cut(states, whole, end), how)
