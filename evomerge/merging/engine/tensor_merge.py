"""The merge of one output tensor: its sources, how it is split into units of work, where the result goes."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor

from evomerge.merging.engine.activation_informed import PARAMETER, inform
from evomerge.merging.methods.blocks import Block, Scratch, TensorInfo
from evomerge.merging.methods.evaluate import evaluate
from evomerge.merging.methods.formulas import Formula, TensorContext
from evomerge.merging.methods.linear import STRETCH
from evomerge.merging.methods.noise import NoiseStream
from evomerge.merging.methods.registry import MergeMethod, Prepared, WholeTensor
from search_spaces.recipes.method_spec import Parameter
from search_spaces.recipes.recipe import RecipeError
from search_spaces.recipes.resolve import TensorPlan

WorkUnit: TypeAlias = Callable[[Scratch], None]
"""Merges some of a tensor's entries, with buffers that no other thread uses at the same time."""

UNIT = 1 << 20
"""Entries of one unit, where several threads may merge one tensor."""
LARGE_MATRIX = 1 << 22
"""Entries of a matrix up to which each thread decomposes one of its own; in float64 it takes 32 MB."""


def uses_all_threads(method: MergeMethod, info: TensorInfo) -> bool:
    """Whether the operations that merge such a tensor use all threads by themselves."""
    return method.decomposes(info) and math.prod(info.shape) > LARGE_MATRIX


class TensorMerge:
    """Fills one parameter of the resident model, block by block.

    Parameters
    ----------
    method
        The merge method.
    target
        The parameter, flat, in any floating dtype.
    base, models
        Source tensors, flat, in the dtype they are stored in; `base` is None without a base.
    info
        Shape and role of the tensor.
    prepared
        The method's prepared state for each model.
    shared
        Its prepared state for all of them together, or None.
    activation
        The share of the largest activation that each column's input has, float32[N], for recipes with
        `activation_informed`; None where those leave the tensor as it is merged.
    """

    def __init__(
        self,
        method: MergeMethod,
        target: Tensor,
        *,
        base: Tensor | None,
        models: Sequence[Tensor],
        info: TensorInfo,
        prepared: Sequence[Prepared],
        shared: Prepared | None = None,
        activation: Tensor | None = None,
    ) -> None:
        self.method = method
        self.context = TensorContext(info, target.numel(), base is not None, prepared, shared)
        self._target = target
        self._base = base
        self._models = models
        self.activation = activation
        self._cached: dict[Scratch, Block] = {}
        self._arrays: Any = None
        self._parameters = [parameter for parameter in method.spec.parameters if _is_argument(parameter)]

    @property
    def size(self) -> int:
        """Entries of the tensor."""
        return self.context.size

    @property
    def is_whole_matrix(self) -> bool:
        """Whether the tensor is merged as a single block, by a decomposition."""
        return self.method.decomposes(self.context.info)

    @property
    def uses_all_threads(self) -> bool:
        """Whether the operations use all threads by themselves."""
        return uses_all_threads(self.method, self.context.info)

    def units(self, plan: TensorPlan, out_dtype: torch.dtype, *, compiled: bool = False) -> Iterator[WorkUnit]:
        """Yield the work of merging with the coefficients of `plan`, rounding once to `out_dtype`, in any order.

        Parameters
        ----------
        plan
            Gives the coefficients.
        out_dtype
            The dtype that results are rounded to.
        compiled
            Whether to use the compiled kernels where they can do it.
        """
        if plan.pieces:
            yield partial(self._mix, plan=plan, out_dtype=out_dtype)
            return
        arguments, omega = self.arguments(plan), plan.parameters.get(PARAMETER)
        after = None
        if omega is not None and self.activation is not None:
            after = partial(inform, share_N=self.activation, omega=omega)
        merge = partial(self._merge, out_dtype=out_dtype, after=after, scale=plan.scale)
        by_kernel = compiled and after is None and plan.scale == 1.0
        if self.method.gives_formula:
            formula = self.formula(arguments)
            kernel = self._kernel(formula, out_dtype) if by_kernel else None
            merge_span = kernel or partial(merge, fill=partial(evaluate, formula=formula))
        else:
            own = self._own_kernel(arguments, out_dtype) if by_kernel else None
            if own is None:
                # values cached between a tensor's blocks are not safe to share between threads
                yield partial(merge, fill=partial(self.method.apply, **arguments), span=slice(0, self.context.size))
                return
            merge_span = own
        size = self.context.size
        step = UNIT if self._target.device.type == "cpu" else size
        for start in range(0, size, step):
            yield partial(merge_span, span=slice(start, min(start + step, size)))

    def filler(self, plan: TensorPlan) -> Callable[[Block], object]:
        """Return what fills a block by the method with the coefficients of `plan`, and does nothing after that."""
        arguments = self.arguments(plan)
        if not self.method.gives_formula:
            return partial(self.method.apply, **arguments)
        return partial(evaluate, formula=self.formula(arguments))

    def formula(self, arguments: Mapping[str, Any]) -> Formula:
        """Return the formula of a method that gives one."""
        formula = self.method.apply(self.context, **arguments)
        assert formula is not None
        return formula

    def arguments(self, plan: TensorPlan) -> dict[str, Any]:
        """Return the coefficients of `plan` as the method's arguments."""
        return _arguments(self.method, self._parameters, plan)

    def _merge(
        self,
        scratch: Scratch,
        *,
        fill: Callable[[Block], object],
        after: Callable[[Block], None] | None,
        out_dtype: torch.dtype,
        span: slice,
        scale: float,
    ) -> None:
        scratch = scratch.on(self._target.device)
        for block, target in self._blocks(scratch, span):
            fill(block)
            if after is not None:
                after(block)
            _store(block.out, target, out_dtype, scratch, scale)

    def _mix(self, scratch: Scratch, *, plan: TensorPlan, out_dtype: torch.dtype) -> None:
        """Merge a tensor whose weights change within it; an entry's noise does not depend on the blocks."""
        size = self._target.numel()
        if plan.pieces[-1].end != size:
            raise RecipeError(
                f"evomerge.mixture.tensors.{plan.name}: it ends at {plan.pieces[-1].end} and the tensor at {size}; "
                "name the models that the table was made for"
            )
        scratch = scratch.on(self._target.device)
        noise = NoiseStream(plan.name, plan.pieces)
        start = 0
        for piece in plan.pieces:
            formula = self.method.apply(self.context, weight=piece.weights, normalize=False)
            assert formula is not None
            for first in range(start, piece.end, scratch.block):
                span = slice(first, min(first + scratch.block, piece.end))
                block = self.cut(span, scratch)
                evaluate(block, formula=formula)
                noise.add_to(block.out, piece)
                _store(block.out, self._target[span], out_dtype, scratch, plan.scale)
            start = piece.end

    def _kernel(self, formula: Formula, out_dtype: torch.dtype) -> Callable[..., None] | None:
        """Return a function that computes the formula for a span of entries; None if the kernels cannot."""
        from evomerge.merging.engine import kernels

        return kernels.kernel(self._shared_arrays(), formula, out_dtype)

    def _own_kernel(self, arguments: Mapping[str, Any], out_dtype: torch.dtype) -> Callable[..., None] | None:
        """Return the same for a method that fills blocks itself."""
        from evomerge.merging.engine import kernels

        return kernels.own_kernel(self._shared_arrays(), self.method.spec.name, self.context, arguments, out_dtype)

    def _shared_arrays(self) -> Any:
        if self._arrays is None:
            from evomerge.merging.engine import kernels

            self._arrays = kernels.TensorArrays.of(self._target, self._base, self._models)
        return self._arrays

    def _blocks(self, scratch: Scratch, span: slice) -> Iterator[tuple[Block, Tensor]]:
        step = self.context.size if self.is_whole_matrix else scratch.block
        if span.stop - span.start == self.context.size <= step:
            block = self._cached.get(scratch)
            if block is None:
                block = self._cached[scratch] = self.cut(span, scratch)
            yield block, self._target
            return
        for start in range(span.start, span.stop, step):
            part = slice(start, min(start + step, span.stop))
            yield self.cut(part, scratch), self._target[part]

    def cut(self, span: slice, scratch: Scratch) -> Block:
        """Return the block of these entries, with buffers from `scratch`."""
        context = self.context
        return Block(
            out=scratch.vector("out", span.stop - span.start),
            base=None if self._base is None else self._base[span],
            models=[values[span] for values in self._models],
            prepared=[state.cut(span) for state in context.prepared],
            shared=None if context.shared is None else context.shared.cut(span),
            start=span.start,
            size=context.size,
            info=context.info,
            scratch=scratch,
        )


class WholeMerge(ABC):
    """Fills one parameter as a whole, in operations that use all threads by themselves."""

    _target: Tensor

    @property
    def size(self) -> int:
        """Entries of the tensor."""
        return self._target.numel()

    is_whole_matrix = uses_all_threads = True

    def units(self, plan: TensorPlan, out_dtype: torch.dtype, *, compiled: bool = False) -> Iterator[WorkUnit]:
        """Yield the work of merging with the coefficients of `plan`, the result rounded to `out_dtype`."""
        yield lambda _: self._run(plan, out_dtype)

    @abstractmethod
    def _run(self, plan: TensorPlan, out_dtype: torch.dtype) -> None: ...


class StepwiseMerge(WholeMerge):
    """Fills one parameter in mergekit's steps, rounding to the recipe's `dtype` after every one.

    Each is taken on the whole tensor, or on a stretch of it that fits the processor's cache.

    Parameters
    ----------
    method
        One of mergekit's methods.
    target
        The parameter, flat, in any floating dtype.
    base, models
        Source tensors, flat, in the dtype they are stored in; `base` is None without a base.
    shape
        The tensor's.
    dtype
        What the sources are rounded to, and the dtype of the arithmetic.
    prepared
        The method's prepared state for each model, for methods that draw masks.
    """

    def __init__(
        self,
        method: MergeMethod,
        target: Tensor,
        *,
        base: Tensor | None,
        models: Sequence[Tensor],
        shape: tuple[int, ...],
        dtype: torch.dtype,
        prepared: Sequence[Prepared] = (),
    ) -> None:
        self.method = method
        self.dtype = dtype
        self._target, self._shape, self._prepared = target, shape, prepared
        self._base, self._models = base, models

    def _run(self, plan: TensorPlan, out_dtype: torch.dtype) -> None:
        stepwise = self.method.stepwise
        assert stepwise is not None, "asked of mergekit's methods only"
        parameters = [each for each in self.method.spec.parameters if _is_argument(each) and not each.extension]
        arguments = _arguments(self.method, parameters, plan)
        for span in self._spans():
            base = None if self._base is None else self._rounded(self._base, span)
            models = tuple(self._rounded(values, span) for values in self._models)
            tensor = WholeTensor(models, base, [state.cut(span) for state in self._prepared])
            merged = stepwise(tensor, **arguments).to(out_dtype)
            if plan.scale != 1.0:
                merged = (merged.float() * plan.scale).to(out_dtype)
            self._target[span].copy_(merged.reshape(-1))

    def _spans(self) -> Iterator[slice]:
        """Yield the parts that are merged one after another: the whole tensor, or stretches of it."""
        by_entry = self.method.stepwise_by_entry and self._target.device.type == "cpu"
        step = STRETCH if by_entry else max(self.size, 1)
        yield from (slice(start, min(start + step, self.size)) for start in range(0, self.size, step))

    def _rounded(self, values: Tensor, span: slice) -> Tensor:
        rounded = values[span].to(self._target.device, self.dtype)
        return rounded if self.method.stepwise_by_entry else rounded.view(self._shape)


def goes_step_by_step(
    method: MergeMethod, plan: TensorPlan, dtype: torch.dtype, stored: Iterable[torch.dtype], out_dtype: torch.dtype
) -> bool:
    """Tell whether a `StepwiseMerge` has to merge a tensor, so that its weights are mergekit's.

    All others are merged in float32 and rounded once: in that `dtype`, by methods or parameters that mergekit lacks,
    and where mergekit itself computes so.

    Parameters
    ----------
    method, plan
        The merge.
    dtype
        The recipe's, or else the sources'.
    stored
        The dtypes of the source tensors.
    out_dtype
        The dtype of the result.
    """
    if method.stepwise is None or plan.pieces or _takes_ours(method, plan):
        return False
    if dtype == torch.float32:
        return method.stepwise_in_float32
    return not method.float32_in_mergekit or {dtype, out_dtype, *stored} not in ({torch.bfloat16}, {torch.float16})


def _takes_ours(method: MergeMethod, plan: TensorPlan) -> bool:
    """Tell whether a parameter that mergekit lacks has an effect."""
    scopes = (plan.parameters, *(part.parameters for part in plan.contributions))
    return any(
        scope.get(parameter.name, parameter.default) not in (parameter.default, None)
        for parameter in method.spec.parameters
        if parameter.extension
        for scope in scopes
    )


def _is_argument(parameter: Parameter) -> bool:
    return not (parameter.inert or parameter.after)


def _arguments(method: MergeMethod, parameters: Iterable[Parameter], plan: TensorPlan) -> dict[str, Any]:
    return {
        method.arguments[each.name]: (
            [model.parameters.get(each.name) for model in plan.contributions]
            if each.per_model
            else plan.parameters[each.name]
        )
        for each in parameters
    }


def _store(merged: Tensor, target: Tensor, out_dtype: torch.dtype, scratch: Scratch, scale: float) -> None:
    """Round float32 results to `out_dtype` and store them in the parameter, in its own dtype.

    A scale multiplies the rounded values, as if the merge had been saved before its layers were reordered.
    """
    if scale != 1.0:
        merged.copy_(merged.to(out_dtype)).mul_(scale)
    if out_dtype not in (target.dtype, torch.float32, torch.float64):
        merged = scratch.vector("rounded", merged.numel(), out_dtype).copy_(merged)
    target.copy_(merged)
