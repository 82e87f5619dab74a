"""One output tensor of a merge: where its sources lie, how it is cut into blocks, where the result goes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from evomerge.merging.blocks import Block, Form, Scratch
from evomerge.merging.informed import inform
from evomerge.merging.methods.registry import MergeMethod, Prepared
from evomerge.merging.noise import NoiseStream
from search_spaces.recipe import RecipeError
from search_spaces.resolve import TensorPlan


class Job:
    """Fills one parameter of the resident model, block by block.

    Parameters
    ----------
    method
        The merge method.
    target
        The parameter, flat, in any floating dtype.
    base, models
        Source tensors, flat, in the dtype they are stored in; `base` is None without a base.
    form
        Shape and role of the tensor.
    prepared
        The method's prepared state for each model.
    shared
        Its prepared state for all of them together, or None.
    activation
        The share of the largest activation that each column's input has, float32[N], for recipes with `aim`; None
        where those leave the tensor as it is merged.
    scratch
        Shared buffers.
    """

    def __init__(
        self,
        method: MergeMethod,
        target: Tensor,
        *,
        base: Tensor | None,
        models: Sequence[Tensor],
        form: Form,
        prepared: Sequence[Prepared],
        shared: Prepared | None = None,
        activation: Tensor | None = None,
        scratch: Scratch,
    ) -> None:
        self.method = method
        self._target = target
        self._base = base
        self._models = models
        self._form = form
        self._prepared = prepared
        self._shared = shared
        self._activation = activation
        self._scratch = scratch
        self._step = target.numel() if method.scope == "matrix" and form.is_matrix else scratch.block
        self._whole: Block | None = None
        if target.numel() <= scratch.block:
            self._whole = self._cut(slice(0, target.numel()))
        self._parameters = [
            (parameter.name, method.arguments[parameter.name], parameter.per_model)
            for parameter in method.spec.parameters
            if not (parameter.inert or parameter.after)
        ]

    def run(self, plan: TensorPlan, out_dtype: torch.dtype) -> None:
        """Merge with the coefficients of `plan`, rounding once to `out_dtype`."""
        if plan.pieces:
            self._run_pieces(plan, out_dtype)
            return
        arguments = {
            argument: (
                [model.parameters.get(name) for model in plan.contributions] if per_model else plan.parameters[name]
            )
            for name, argument, per_model in self._parameters
        }
        apply = self.method.apply
        omega = plan.parameters.get("aim")
        for block, target in self._blocks():
            apply(block, **arguments)
            if omega is not None and self._activation is not None:
                inform(block, self._activation, omega)
            self._store(block.out, target, out_dtype, plan.scale)

    def _run_pieces(self, plan: TensorPlan, out_dtype: torch.dtype) -> None:
        """Merge a tensor whose weights change within it; the noise of an entry does not depend on how it is cut."""
        size = self._target.numel()
        if plan.pieces[-1].end != size:
            raise RecipeError(
                f"evomerge.mixture.tensors.{plan.name}: it ends at {plan.pieces[-1].end} and the tensor at {size}; "
                "name the models that the table was made for"
            )
        noise = NoiseStream(plan.name, plan.pieces)
        start = 0
        for piece in plan.pieces:
            for first in range(start, piece.end, self._scratch.block):
                span = slice(first, min(first + self._scratch.block, piece.end))
                block = self._cut(span)
                self.method.apply(block, weight=piece.weights, normalize=False)
                noise.add_to(block.out, piece)
                self._store(block.out, self._target[span], out_dtype, plan.scale)
            start = piece.end

    def _blocks(self) -> Iterator[tuple[Block, Tensor]]:
        if self._whole is not None:
            yield self._whole, self._target
            return
        size = self._target.numel()
        for start in range(0, size, self._step):
            span = slice(start, min(start + self._step, size))
            yield self._cut(span), self._target[span]

    def _cut(self, span: slice) -> Block:
        entries = span.stop - span.start
        return Block(
            out=self._scratch.vector("out", entries),
            base=None if self._base is None else self._base[span],
            models=[values[span] for values in self._models],
            prepared=[state.cut(span) for state in self._prepared],
            shared=None if self._shared is None else self._shared.cut(span),
            start=span.start,
            size=self._target.numel(),
            form=self._form,
            scratch=self._scratch,
        )

    def _store(self, merged: Tensor, target: Tensor, out_dtype: torch.dtype, scale: float) -> None:
        """Round float32 results to `out_dtype` and leave them in the parameter, in its own dtype.

        A scale multiplies them as rounded, as if the merge had been saved before its layers were put in an order.
        """
        if scale != 1.0:
            merged.copy_(merged.to(out_dtype)).mul_(scale)
        if out_dtype not in (target.dtype, torch.float32, torch.float64):
            merged = self._scratch.vector("rounded", merged.numel(), out_dtype).copy_(merged)
        target.copy_(merged)
