"""Where a worker keeps its sources: on its device, in pinned host memory, or memory-mapped from their files.

Only a GPU has a choice. A CPU computes directly from the mapped pages: a copy would only take more memory, so sources
stay mapped there, whatever the search file says.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

if TYPE_CHECKING:
    import torch
    from torch import Tensor

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


def choose(asked: SourcePlacement, device: torch.device, need: MemoryNeed, free: FreeMemory) -> Choice:
    """Return where sources are placed: as asked, or with ``auto`` in the first place that has room.

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
            f"workers.placement: device needs {_gb(need.peak_bytes)} on {device}, and {_gb(free.device)} are "
            "free; write pinned, mmap or auto"
        )
    elif asked == "pinned" and need.source_bytes > free.host:
        raise PlacementError(
            f"workers.placement: pinned needs {_gb(need.source_bytes)} of host memory, and {_gb(free.host)} are "
            "free; write mmap or auto"
        )
    assert placement != "auto"
    return Choice(placement, asked, str(device), need.source_bytes, need.peak_bytes, free)


def free_memory(device: torch.device, share: Share) -> FreeMemory:
    """Return the free memory; on a shared device at most the worker's share of all of it, since others start later."""
    import psutil
    import torch

    on_device = None
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        on_device = min(free, int(share.device * total))
    return FreeMemory(on_device, int(share.host * psutil.virtual_memory().available))


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
