"""The tensors of all sources, each in the place that was chosen for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from evomerge.merging.engine.placement import Placement, Split, placer
from evomerge.merging.methods.blocks import TensorInfo
from evomerge.merging.methods.registry import SourceModel
from evomerge.merging.sources.errors import CheckpointError
from evomerge.merging.sources.source import Source
from search_spaces.recipes.layout import ModelLayout
from search_spaces.recipes.resolve import Contribution, TensorPlan


def sources_of(plan: TensorPlan) -> tuple[Contribution, ...]:
    """Return all source tensors of a plan, the base first."""
    return plan.contributions if plan.base is None else (plan.base, *plan.contributions)


class PlacedSources:
    """Opened sources, and their tensors: on the device, in pinned host memory, or memory-mapped.

    Parameters
    ----------
    checkpoints
        Opened sources, by the reference that recipes use.
    base
        The reference of the source whose layout is used; all have the same.
    device
        Where merging happens.

    Attributes
    ----------
    split
        Where merging happens instead, by the name of the merged tensor, once several devices share a model.
    """

    def __init__(self, checkpoints: Mapping[str, Source], base: str, device: torch.device) -> None:
        self.checkpoints = dict(checkpoints)
        self.base = base
        self.device = device
        self.split: Split | None = None
        self.placement: Placement = "mmap"
        self._tensors: dict[tuple[str, str], Tensor] = {}
        self._models: dict[tuple[str, str | None], SourceModel] = {}
        layout = self.checkpoint(base).layout
        self._by_token = {*layout.embeddings, layout.head}

    @property
    def layout(self) -> ModelLayout:
        """The base's layout."""
        return self.checkpoints[self.base].layout

    def checkpoint(self, reference: str) -> Source:
        """Return an opened source.

        Raises
        ------
        CheckpointError
            If no source has that reference.
        """
        try:
            return self.checkpoints[reference]
        except KeyError:
            raise CheckpointError(
                f"{reference}: the recipe names a model that is not opened; use one of {', '.join(self.checkpoints)}"
            ) from None

    def device_of(self, name: str) -> torch.device:
        """Return where a tensor of this name is merged."""
        return self.device if self.split is None else self.split.device_of(name)

    def place(self, placement: Placement) -> None:
        """Place source tensors there from now on; each is moved when it is first read."""
        self.placement = placement
        self._tensors.clear()

    def tensor(self, reference: str, name: str) -> Tensor:
        """Return a source tensor, flat, in the dtype it is stored in, where sources are placed."""
        key = (reference, name)
        values = self._tensors.get(key)
        if values is None:
            to_its_place = placer(self.placement, self.device_of(name))
            values = self._tensors[key] = to_its_place(self.checkpoint(reference).tensor(name).reshape(-1))
        return values

    def release(self, plan: TensorPlan) -> None:
        """Forget the source tensors of a plan that is merged once, and give back the memory that reading them took."""
        for part in sources_of(plan):
            self._tensors.pop((part.model, part.tensor), None)
            self.checkpoint(part.model).release(part.tensor)

    def on_device(self, part: Contribution, plan: TensorPlan) -> Tensor:
        """Return a source tensor of the plan, flat, where the plan's tensor is merged."""
        return self.tensor(part.model, part.tensor).to(self.device_of(plan.name))

    def base_on_device(self, plan: TensorPlan) -> Tensor | None:
        """Return the plan's base tensor, flat, where the plan's tensor is merged; None without a base."""
        return None if plan.base is None else self.on_device(plan.base, plan)

    def shape(self, part: Contribution) -> tuple[int, ...]:
        """Return a source tensor's shape."""
        return self.checkpoint(part.model).shape(part.tensor)

    def dtype(self, part: Contribution) -> torch.dtype:
        """Return the dtype that a source tensor is stored in."""
        return self.tensor(part.model, part.tensor).dtype

    def is_buffer(self, plan: TensorPlan) -> bool:
        """Tell whether a plan's tensor is one that transformers keeps as a buffer (see `StoredBuffer`)."""
        part = sources_of(plan)[0]
        return part.tensor in self.checkpoint(part.model).outline.stored_buffers

    def nbytes(self, part: Contribution) -> int:
        """Return a source tensor's size in bytes, without moving it to its place."""
        values = self._tensors.get((part.model, part.tensor))
        return (self.checkpoint(part.model).tensor(part.tensor) if values is None else values).nbytes

    def info(self, plan: TensorPlan, shape: tuple[int, ...]) -> TensorInfo:
        """Return the shape and role of the tensor that the plan merges."""
        return TensorInfo(shape, by_token=plan.name in self._by_token)

    def model(self, plan: TensorPlan, part: Contribution) -> SourceModel:
        """Return the whole model of a source tensor, for methods that measure over all of it."""
        base = None if plan.base is None else plan.base.model
        model = self._models.get((part.model, base))
        if model is None:
            model = self._models[part.model, base] = SourceModel(lambda: self._pairs(part.model, base))
        return model

    def _pairs(self, reference: str, base: str | None) -> Iterator[tuple[Tensor, Tensor | None]]:
        for name in self.checkpoint(reference).names:
            other = None if base is None else self.tensor(base, name).to(self.device)
            yield self.tensor(reference, name).to(self.device), other
