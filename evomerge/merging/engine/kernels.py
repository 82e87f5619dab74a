"""Formulas at memory speed: those that compiled code can compute, and its arguments (see `compiled`).

Needs the extra `fast`; for CPUs, and models whose weights are all bfloat16 or all float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from evomerge.merging.engine.compiled import Agreed, Bounds, Competing, Elect, Farthest, How, Sum, Thinning, fill
from evomerge.merging.methods.blocks import Scratch
from evomerge.merging.methods.dropped import LEVELS, SMALLEST_PROBABILITY, RankedDraws, keep_spread
from evomerge.merging.methods.formulas import Election, Formula, Kept, TensorContext, WeightedSum
from evomerge.merging.methods.linear import added
from evomerge.merging.methods.parameters import PerModel
from evomerge.merging.methods.pcb import SMALLEST as SMALLEST_SCORE
from evomerge.merging.methods.pcb import Competition
from evomerge.merging.methods.sce import SMALLEST as SMALLEST_SHARES
from evomerge.merging.methods.sce import Selection

MAX_TERMS = 8
"""Sources at most: loops over more are not unrolled."""
LOWEST = np.iinfo(np.int32).min

f32, i32 = np.float32, np.int32
States: TypeAlias = tuple[Any, ...] | None
"""Arrays that decide which entries are kept, or tuples of them."""


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
            or not 0 < len(models) <= len(sources) <= MAX_TERMS
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


def own_kernel(
    sources: TensorArrays, method: str, context: TensorContext, arguments: Mapping[str, Any], out_dtype: torch.dtype
) -> Callable[..., None] | None:
    """Return the same for a method that gives no formula; None if there is no kernel for it, or for the dtypes."""
    numbers = OWN.get(method)
    if numbers is None or not sources.supported or out_dtype not in (torch.bfloat16, torch.float32):
        return None
    how, states = numbers(context, rounds=True if out_dtype == torch.bfloat16 else None, **arguments)
    return partial(_run, target=sources.target, base=sources.base, models=sources.models, states=states, how=how)


def _numbers(formula: Formula, *, rounds: bool) -> tuple[Sum | Elect, States]:
    """Return the formula's numbers, and the states that decide which entries are kept; None if all are."""
    weights, scale, rounded = _f32(formula.weights), f32(formula.scale), True if rounds else None
    kept, states = _bounds(formula.kept)
    if isinstance(formula, Election):
        return Elect(weights, True if formula.normalize else None, scale, kept, rounded), states
    divisor = None if formula.divisor == 1 else f32(formula.divisor)
    return Sum(weights, True if formula.fused else None, divisor, scale, kept, rounded), states


def _bounds(kept: Sequence[Kept | None]) -> tuple[Bounds | None, States]:
    some = [part for part in kept if part is not None]
    if not some:
        return None, None
    parts = [part or Kept(some[0].state, np.iinfo(np.int32).max) for part in kept]
    first = tuple(i32(LOWEST if part.first is None else part.first) for part in parts)
    factor = _f32(part.factor for part in parts)
    bounds = Bounds(
        None if set(first) == {LOWEST} else first,
        tuple(i32(part.end) for part in parts),
        None if set(factor) == {1} else factor,
    )
    return bounds, tuple(_array(part.state) for part in parts)


# --- methods that give no formula: their numbers, in the order of their operations ---


def _della(
    context: TensorContext, *, elects: bool, rounds: bool | None, weight: PerModel, **how: Any
) -> tuple[Sum | Elect, States]:
    spreads = [keep_spread(d, e) if d < 1 else (0.0, 1.0) for d, e in zip(how["density"], how["epsilon"], strict=True)]
    thinning = Thinning(
        _f32(slope for slope, _ in spreads),
        _f32(offset for _, offset in spreads),
        True if how["rescale"] else None,
        f32(SMALLEST_PROBABILITY),
        f32(LEVELS),
    )
    drawn: Sequence[RankedDraws] = context.prepared
    states = tuple(_array(each.draw) for each in drawn), tuple(_array(each.place) for each in drawn)
    sum_ = added(weight=weight, normalize=how["normalize"], lambda_=how["lambda_"])
    formula = Election(weight, how["normalize"], how["lambda_"]) if elects else sum_
    numbers, _ = _numbers(formula, rounds=rounds is not None)
    return numbers._replace(kept=thinning), states


def _sce(context: TensorContext, *, rounds: bool | None, select_topk: float) -> tuple[Elect, States]:
    selection: Selection = context.shared
    size = selection.size(select_topk)
    shares = _f32(selection.weights(size))
    count = len(shares)
    bounds, states = _bounds([] if size is None else [Kept(selection.chosen(size).view(torch.uint8), 2, 1)] * count)
    how = Elect((f32(1),) * count, None, f32(1), bounds, rounds, shares=shares, smallest=f32(SMALLEST_SHARES))
    return how, states


def _magmax(_: TensorContext, *, rounds: bool | None, weight: PerModel, lambda_: float) -> tuple[Farthest, States]:
    return Farthest(_f32(weight), f32(lambda_), rounds), None


def _emr(_: TensorContext, *, rounds: bool | None, weight: PerModel, lambda_: float) -> tuple[Elect, States]:
    return Elect(_f32(weight), None, f32(lambda_), None, rounds, largest=True), None


def _consensus(
    _: TensorContext, *, rounds: bool | None, weight: PerModel, mask_threshold: float, min_tasks: float, lambda_: float
) -> tuple[Agreed, States]:
    least = f32(min(round(min_tasks), len(weight)))
    return Agreed(_f32(weight), f32(mask_threshold), least, f32(lambda_), rounds), None


def _pcb(
    context: TensorContext,
    *,
    rounds: bool | None,
    weight: PerModel,
    ratio: float,
    percentile: float,
    lambda_: float,
) -> tuple[Competing, States]:
    state: Competition = context.shared
    competition, ranges = state.at(percentile), state.ranges(percentile, ratio)
    how = Competing(
        _f32(weight),
        _f32(low for low, _ in competition.bounds),
        _f32(high for _, high in competition.bounds),
        _f32(low for low, _ in ranges),
        _f32(max(high - low, SMALLEST_SCORE) for low, high in ranges),
        f32(SMALLEST_SCORE),
        f32(lambda_),
        rounds,
    )
    return how, tuple(map(_array, competition.scores))


OWN: dict[str, Callable[..., tuple[How, States]]] = {
    "della": partial(_della, elects=True),
    "della_linear": partial(_della, elects=False),
    "sce": _sce,
    "magmax": _magmax,
    "emr": _emr,
    "consensus": _consensus,
    "pcb": _pcb,
}
"""What makes a method's numbers for compiled code from its arguments."""


def _run(
    _: Scratch,
    *,
    target: np.ndarray[Any, Any],
    models: tuple[np.ndarray[Any, Any], ...],
    base: np.ndarray[Any, Any] | None,
    states: States,
    how: How,
    span: slice,
) -> None:
    fill(
        target[span],
        None if base is None else base[span],
        tuple(values[span] for values in models),
        _cut(states, span),
        how,
    )


def _cut(states: States, span: slice) -> States:
    """Return the part of all arrays for some of the entries."""
    if states is None:
        return None
    return tuple(_cut(each, span) if isinstance(each, tuple) else each[span] for each in states)


def _f32(values: Iterable[float]) -> tuple[np.float32, ...]:
    return tuple(map(f32, values))


def _array(values: Tensor) -> np.ndarray[Any, Any]:
    """Return the tensor's memory: bfloat16 as uint16."""
    if values.dtype == torch.bfloat16:
        return values.detach().view(torch.int16).numpy().view(np.uint16)
    array: np.ndarray[Any, Any] = values.detach().numpy()
    return array
