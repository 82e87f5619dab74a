"""Products with weights by the faster of the CPU's libraries.

PyTorch multiplies float32 matrices on a CPU by MKL, which uses AVX-512 on Intel's processors only. oneDNN, which
PyTorch contains too, uses it on others as well. On an AMD EPYC with one thread, oneDNN takes 0.6 of MKL's time for the
products of 16 rows with SmolLM2-135M's weights, and 0.54 for 640 rows. The results differ by rounding.

Weights stay where they are: nothing is packed or copied, so they may change in place, and no memory is needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@contextmanager
def fast_products(model: Any) -> Iterator[None]:
    """Compute a model's linear layers by oneDNN where that is faster; it has no gradients, so only without them."""
    layers = _layers(model) if faster_by_onednn() and not torch.is_grad_enabled() else []
    for layer in layers:
        vars(layer)["forward"] = partial(_product, layer)
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


def _product(layer: nn.Linear, x: Tensor) -> Tensor:
    if x.dtype != layer.weight.dtype or x.device != layer.weight.device:
        return F.linear(x, layer.weight, layer.bias)  # converts under autocast, or says what is wrong
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, layer.weight, layer.bias, "none", [], "")
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
