"""Products with weights by the faster of the CPU's libraries.

PyTorch multiplies float32 matrices on a CPU by MKL, which uses AVX-512 on Intel's processors only. oneDNN, which
PyTorch contains too, uses it on others as well. On an AMD EPYC with one thread, oneDNN takes 0.6 of MKL's time for the
products of 16 rows with SmolLM2-135M's weights, and 0.54 for 640 rows. The results differ by rounding.

Weights stay where they are. Those that few rows are multiplied by again and again, as in the steps of a text, are
packed: copied in the order in which oneDNN reads them, until the end of the block, which takes as much memory as the
layers. The products of 16 rows then take 0.66 of the time, those of one 0.75 and of 64 0.87; packing takes as long as
six of them, and pays after twenty.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEW_ROWS = 64
"""Rows up to which a product counts as one of few rows."""
PACKED_AFTER = 16
"""Products of few rows after which weights are packed: there are likely as many to come."""


@contextmanager
def fast_products(model: Any) -> Iterator[None]:
    """Compute a model's linear layers by oneDNN where that is faster; it has no gradients, so only without them.

    Weights must not change in the block.
    """
    layers = _layers(model) if faster_by_onednn() and not torch.is_grad_enabled() else []
    for layer in layers:
        vars(layer)["forward"] = _Product(layer)
    try:
        yield
    finally:
        for layer in layers:
            del vars(layer)["forward"]


@lru_cache(maxsize=1)
def faster_by_onednn() -> bool:
    """Whether this processor has AVX-512 and MKL does not use it."""
    both: tuple[Any, ...] = torch.backends.mkl, torch.backends.mkldnn  # their functions have no types
    if not all(library.is_available() for library in both):
        return False
    found = torch.cpu.get_capabilities()
    return bool(found.get("avx512_f")) and "intel" not in str(found.get("cpu_name", "intel")).lower()


def packed_bytes(model: nn.Module) -> int:
    """Return the bytes of the packed weights of a float32 model on this processor: nothing where MKL is as fast."""
    linear = (layer for layer in model.modules() if type(layer) is nn.Linear) if faster_by_onednn() else ()
    return sum(4 * layer.weight.numel() for layer in linear)


class _Product:
    """What a layer computes, by oneDNN."""

    def __init__(self, layer: nn.Linear) -> None:
        self._layer = layer
        self._count = 0
        self._packed: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        layer = self._layer
        if x.dtype != layer.weight.dtype or x.device != layer.weight.device:
            return F.linear(x, layer.weight, layer.bias)  # converts under autocast, or says what is wrong
        if self._packed is None and x.numel() <= FEW_ROWS * layer.in_features:
            self._count += 1
            if self._count == PACKED_AFTER:
                self._packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight, FEW_ROWS)
        weight = layer.weight if self._packed is None else self._packed
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, layer.bias, "none", [], "")
        return product


def _layers(model: Any) -> list[nn.Linear]:
    """Return the layers that compute what `nn.Linear` does and whose weights oneDNN takes as they are."""
    return [
        layer
        for layer in model.modules()
        if type(layer) is nn.Linear
        and "forward" not in vars(layer)  # such as a hook that moves weights between devices
        and layer.weight.dtype == torch.float32
        and layer.weight.device.type == "cpu"
        and layer.weight.is_contiguous()
    ]
