"""Where a worker keeps its models: on which of its devices, in pinned host memory, or memory-mapped from their files.

Only a GPU has a choice. A CPU computes directly from the mapped pages: a copy would only take more memory, so sources
stay mapped there, whatever the search file says.

A model that is larger than a GPU is split between several: each holds layers that follow each other, with the sources'
tensors of these layers, and merges them. Embeddings, final norm and output layer are on the first, so that tokens go
in and logits come out there; hidden states go from device to device, moved by hooks on the parts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from search_spaces.recipes.layout import ModelLayout

Placement: TypeAlias = Literal["device", "pinned", "mmap"]
SourcePlacement: TypeAlias = Literal["auto", "device", "pinned", "mmap"]
"""What a search file may ask for."""
ComputeDtype: TypeAlias = Literal["auto", "float32", "bfloat16", "float16"]
"""Dtype of the resident parameters."""

PINNED_SHARE = 0.5
"""Fraction of free host memory that may be pinned; pinned pages are unavailable to other processes."""


class DeviceError(ValueError):
    """A torch device that cannot be used; one line that says what to write instead."""


class MemoryNeed(Protocol):
    """The memory that a worker's sources and models need, in bytes; a `Footprint` is one."""

    @property
    def source_bytes(self) -> int:
        """The sources: what pinned host memory has to hold."""

    @property
    def peak_bytes(self) -> int:
        """Sources, prepared state and 1.3 models: what the device has to hold."""


class PlacementError(ValueError):
    """Sources that do not fit where the search file places them; one line that says what to write instead."""


@dataclass(frozen=True)
class Share:
    """The fraction of a device's memory and of the free host memory that one worker may use; 1: all of it."""

    device: float = 1.0
    host: float = 1.0


@dataclass(frozen=True)
class FreeMemory:
    """Bytes that one worker may use; `device` is None where torch does not report it."""

    device: int | None
    host: int


@dataclass(frozen=True)
class Choice:
    """Where the sources are placed, and the numbers that decided it.

    Attributes
    ----------
    placement
        The place.
    asked
        What the search file asks for.
    device
        The worker's device.
    source_bytes
        The sources: what pinned host memory has to hold.
    peak_bytes
        Sources, prepared state and 1.3 models: what the device has to hold.
    free
        The free memory.
    """

    placement: Placement
    asked: SourcePlacement
    device: str
    source_bytes: int
    peak_bytes: int
    free: FreeMemory


def choose(
    asked: SourcePlacement, device: torch.device, need: MemoryNeed, free: FreeMemory, *, name: str | None = None
) -> Choice:
    """Return where sources are placed: as asked, or with ``auto`` in the first place that has room.

    Parameters
    ----------
    asked
        What the search file asks for.
    device
        Gives the type of the device.
    need, free
        What is needed and what there is.
    name
        The device's name in messages; None: its own.

    Raises
    ------
    PlacementError
        If the asked place has too little free memory.
    """
    placement = asked
    if device.type == "cpu" or (asked == "pinned" and device.type != "cuda"):
        placement = "mmap"
    elif asked == "auto":
        placement = _first_with_room(need, free)
    elif asked == "device" and free.device is not None and need.peak_bytes > free.device:
        raise PlacementError(
            f"workers.placement: device needs {_gb(need.peak_bytes)} on {name or device}, and {_gb(free.device)} are "
            "free; write pinned, mmap or auto"
        )
    elif asked == "pinned" and need.source_bytes > free.host:
        raise PlacementError(
            f"workers.placement: pinned needs {_gb(need.source_bytes)} of host memory, and {_gb(free.host)} are "
            "free; write mmap or auto"
        )
    assert placement != "auto"
    return Choice(placement, asked, name or str(device), need.source_bytes, need.peak_bytes, free)


@dataclass(frozen=True)
class Split:
    """Which device holds which part of a model.

    Attributes
    ----------
    devices
        All devices; one may occur twice.
    parts
        Name of each module that has parameters of its own, or is a layer, to the place of its device in `devices`.
    """

    devices: tuple[torch.device, ...]
    parts: Mapping[str, int]

    @classmethod
    def of(cls, layout: ModelLayout, sizes: Mapping[str, int], devices: Sequence[torch.device]) -> Split:
        """Split a model so that the devices hold about as much.

        Parameters
        ----------
        layout
            The model's.
        sizes
            Entries of each tensor, by name.
        devices
            The first holds the embeddings and what comes after the layers, too.
        """
        outside = (*layout.embeddings, *layout.final)
        parts = dict.fromkeys((name.rpartition(".")[0] for name in outside), 0)
        held, total = sum(sizes[name] for name in outside), sum(sizes.values())
        for layer, names in enumerate(layout.layers):
            size = sum(sizes[layout.layer_tensor(layer, name)] for name in names)
            parts[layout.layer_prefix.format(layer).rstrip(".")] = _share_at(held + size / 2, total, len(devices))
            held += size
        return cls(tuple(devices), parts)

    def device_of(self, name: str) -> torch.device:
        """Return the device of a parameter or module; the first, for what belongs to no part."""
        while name and name not in self.parts:
            name = name.rpartition(".")[0]
        return self.devices[self.parts.get(name, 0)]

    def shares(self, sizes: Mapping[str, int]) -> list[float]:
        """Return the fraction of a model's entries that each device holds."""
        held = [0] * len(self.devices)
        for name, size in sizes.items():
            while name and name not in self.parts:
                name = name.rpartition(".")[0]  # noqa: PLW2901
            held[self.parts.get(name, 0)] += size
        return [size / sum(held) for size in held]

    def attach(self, module: nn.Module) -> None:
        """Have each part move what it is called with to its device."""
        for name in self.parts:
            module.get_submodule(name).register_forward_pre_hook(_mover(self.device_of(name)), with_kwargs=True)
        head = getattr(module, "get_output_embeddings", lambda: None)()
        if head is not None:  # with tied weights it has no parameters of its own
            head.register_forward_pre_hook(_mover(self.devices[0]), with_kwargs=True)


def _share_at(position: float, total: int, count: int) -> int:
    return min(count - 1, math.floor(position / total * count))


def _mover(device: torch.device) -> Callable[..., Any]:
    """Return a hook that moves all tensors among a module's arguments; caches of keys and values stay."""
    import torch
    from torch.utils._pytree import tree_map

    def move(value: Any) -> Any:
        return value.to(device) if isinstance(value, torch.Tensor) else value

    return lambda _, args, kwargs: tree_map(move, (args, kwargs))


def free_memory(device: torch.device, share: Share) -> FreeMemory:
    """Return the free memory; on a shared device at most the worker's share of all of it, since others start later."""
    import psutil
    import torch

    on_device = None
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        on_device = min(free, int(share.device * total))
    return FreeMemory(on_device, int(share.host * psutil.virtual_memory().available))


def free_together(shares: Sequence[tuple[torch.device, float]], share: Share) -> FreeMemory:
    """Return what is free for one model on devices that share it: as much as the fullest has room for.

    Parameters
    ----------
    shares
        The devices, and the fraction of the model's weights on each.
    share
        What this worker may use of each device.
    """
    free = [free_memory(device, share) for device, _ in shares]
    room = [
        int(one.device / part) for one, (_, part) in zip(free, shares, strict=True) if one.device is not None and part
    ]
    return FreeMemory(min(room, default=None), free[0].host)


def placer(placement: Placement, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Return a function that moves a mapped tensor to its place."""
    if placement == "device":
        return lambda values: values.to(device)
    if placement == "pinned":
        return lambda values: values.pin_memory()
    return lambda values: values


def _first_with_room(need: MemoryNeed, free: FreeMemory) -> Placement:
    if free.device is None:
        return "mmap"
    if need.peak_bytes <= free.device:
        return "device"
    return "pinned" if need.source_bytes <= PINNED_SHARE * free.host else "mmap"


def _gb(count: float) -> str:
    return f"{count / 1e9:.1f} GB"


def torch_device(name: str) -> str:
    """Return the torch device that a setting names; `auto`: a GPU if there is one.

    Raises
    ------
    DeviceError
        If torch does not know the device, or the machine has none.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise DeviceError(f"device {name!r} cannot be used ({reason}); write cpu, or auto") from None
    return name
