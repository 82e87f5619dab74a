"""The bytes that the operations of a merge read and write, counted as they are called: it needs no GPU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

WITHOUT_DATA = ("view", "slice", "split", "detach", "empty", "alias", "expand", "unsqueeze", "select")
"""Operations that make a tensor without reading or writing its entries."""


class Traffic(TorchDispatchMode):
    """Counts while it is entered.

    Every operation is a kernel of its own, which reads its inputs and writes its results; what a cache saves is not
    taken off.

    Attributes
    ----------
    bytes
        Read and written so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        """Call an operation and count it."""
        found = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if not name.startswith(WITHOUT_DATA):
            read = args[1:] if name in ("copy_", "zero_", "fill_") else args  # these only write the first
            self.bytes += sum(tensor.nbytes for tensor in (*_tensors(read), *_tensors(found)))
        return found


def _tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, list | tuple):
        for each in values:
            yield from _tensors(each)
