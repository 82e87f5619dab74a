"""Linear layers with weights of 8 or 4 bits, whose weights are replaced again and again without a new layer.

int8 rounds a layer's inputs, too: W ≈ s q with one scale per output and q in [-127, 127]; x ≈ t r with one scale per
token; x Wᵀ ≈ t s (r qᵀ), a product of integers (ZeroQuant, arXiv:2206.01861, section 4.1). int4 rounds weights alone,
in groups along the input, each with its smallest value m: W ≈ m + s q with q in [0, 15]. The weights are expanded again
for each product, so that they take a seventh of the memory of float32 and save no time.

Only torch's own operations are needed, so it works in every data type on every device that has them. Embeddings, the
output layer, norms, experts that share one parameter, and layers that are not plain `nn.Linear` stay as they are.

Shapes: M rows (outputs), N columns (inputs), B tokens, G groups, E = `GROUP` entries of a group.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from fitness.results import TaskError
from fitness.scoring.engine_config import Quantization

Taker: TypeAlias = Callable[[Tensor], None]
"""Takes a layer's weight [M, N] in any floating dtype and keeps it rounded."""

GROUP = 64
"""Weights of int4 with a common scale and smallest value: 4.5 bits for each weight in all.

Not 32: files of 4 bits (GGUF's Q4_0 and Q4_1) have groups of 32. Where a base comes from such a file, groups of 32 find
its own codes again, and a fine-tune's differences, smaller than a step, are rounded away altogether.
"""
LEVELS = 15
LARGEST = 127
MULTIPLE = 8
"""CUDA's product of integer matrices takes multiples of this as numbers of rows and columns of a weight, ..."""
FEWEST = 32
"""... and more than 16 tokens; fewer are filled up to this."""


class QuantizedLinear(nn.Module, ABC):
    """A linear layer whose weight is kept rounded; for inference.

    Parameters
    ----------
    layer
        Gives the sizes and the bias; its weight is not read.
    device
        Where the rounded weight is kept.
    """

    def __init__(self, layer: nn.Linear, device: torch.device) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.bias = layer.bias
        for name, shape, dtype in self._tensors():
            self.register_buffer(name, torch.zeros(shape, dtype=dtype, device=device), persistent=False)

    @abstractmethod
    def _tensors(self) -> Iterable[tuple[str, tuple[int, ...], torch.dtype]]:
        """Yield names, shapes and dtypes of what is kept."""

    @abstractmethod
    def take(self, weight_MN: Tensor) -> None:
        """Keep a weight, rounded; with NaN or infinity in it, outputs are not finite."""

    def extra_repr(self) -> str:
        """Return the sizes."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class Int8Linear(QuantizedLinear):
    """Weights and inputs of 8 bits."""

    codes: Tensor
    scale_M: Tensor

    def _tensors(self) -> Iterable[tuple[str, tuple[int, ...], torch.dtype]]:
        yield "codes", (_up(self.out_features, MULTIPLE), _up(self.in_features, MULTIPLE)), torch.int8
        yield "scale_M", (self.out_features,), torch.float32

    def take(self, weight_MN: Tensor) -> None:
        """Keep a weight, rounded."""
        codes_MN, scale_M1 = _rounded_rows(weight_MN)
        self.codes[: self.out_features, : self.in_features] = codes_MN
        self.scale_M.copy_(scale_M1[:, 0])

    def forward(self, x: Tensor) -> Tensor:
        """Return x Wᵀ + b in the dtype of x."""
        codes_BN, scale_B1 = _rounded_rows(x.reshape(-1, self.in_features))
        tokens = len(codes_BN)
        missing = max(0, FEWEST - tokens) if x.is_cuda else 0
        columns = self.codes.shape[1] - self.in_features
        if missing or columns:
            codes_BN = functional.pad(codes_BN, (0, columns, 0, missing))
        product_BM = torch._int_mm(codes_BN, self.codes.t())[:tokens, : self.out_features]
        found = (product_BM * scale_B1).mul_(self.scale_M).to(x.dtype)
        if self.bias is not None:
            found = found + self.bias
        return found.view(*x.shape[:-1], self.out_features)


class Int4Linear(QuantizedLinear):
    """Weights of 4 bits, two in a byte."""

    codes: Tensor
    scale: Tensor
    least: Tensor

    def _tensors(self) -> Iterable[tuple[str, tuple[int, ...], torch.dtype]]:
        rows, groups = self.out_features, -(-self.in_features // GROUP)
        yield "codes", (rows, groups, GROUP // 2), torch.uint8
        yield "scale", (rows, groups, 1), torch.bfloat16
        yield "least", (rows, groups, 1), torch.bfloat16

    def take(self, weight_MN: Tensor) -> None:
        """Keep a weight, rounded; the codes are those of the rounded scales."""
        missing = -self.in_features % GROUP
        padded = functional.pad(weight_MN.float(), (0, missing), mode="replicate") if missing else weight_MN.float()
        weight_MGE = padded.view(self.out_features, -1, GROUP)
        low, high = weight_MGE.amin(-1, keepdim=True), weight_MGE.amax(-1, keepdim=True)
        self.least.copy_(low)
        self.scale.copy_((high - self.least.float()) / LEVELS)
        scale = self.scale.float().clamp(min=torch.finfo(torch.float32).tiny)
        codes = ((weight_MGE - self.least.float()) / scale).round_().clamp_(0, LEVELS).to(torch.uint8)
        first, second = codes.chunk(2, dim=-1)
        self.codes.copy_(first | (second << 4))

    def weight(self, dtype: torch.dtype) -> Tensor:
        """Return the rounded weight [M, N]."""
        rows, groups, half = self.codes.shape
        found = torch.empty(rows, groups, 2, half, dtype=dtype, device=self.codes.device)
        found[:, :, 0], found[:, :, 1] = self.codes & LEVELS, self.codes >> 4
        flat = found.view(rows, groups, GROUP)
        flat.mul_(self.scale.to(dtype)).add_(self.least.to(dtype))
        return flat.view(rows, -1)[:, : self.in_features]

    def forward(self, x: Tensor) -> Tensor:
        """Return x Wᵀ + b in the dtype of x."""
        return functional.linear(x, self.weight(x.dtype), self.bias)


LAYERS: dict[Quantization, type[QuantizedLinear]] = {"int8": Int8Linear, "int4": Int4Linear}


def quantize(
    module: nn.Module, device_of: Callable[[str], torch.device], quantization: Quantization
) -> dict[str, Taker]:
    """Replace the linear layers of a model without weights by quantised ones that are not filled.

    Parameters
    ----------
    module
        A transformers causal language model, on any device.
    device_of
        Where rounded weights are kept, by the name of the weight.
    quantization
        What weights are rounded to.

    Returns
    -------
    dict
        By the name of each weight that the model no longer has, what takes such a weight.

    Raises
    ------
    TaskError
        If the model has no layer that can be quantised.
    """
    found: dict[str, Taker] = {}
    for name in quantizable(module):
        owner, _, leaf = name.rpartition(".")
        layer = module.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        quantized = LAYERS[quantization](layer, device_of(f"{name}.weight"))
        setattr(module.get_submodule(owner), leaf, quantized)
        found[f"{name}.weight"] = quantized.take
    if not found:
        raise TaskError(
            f"fitness.engine: {type(module).__name__} has no plain linear layers between embeddings and output, so "
            f"that quantization {quantization} would change nothing; remove quantization"
        )
    return found


def quantizable(module: nn.Module) -> list[str]:
    """Return the names of the layers that are quantised: linear, not the output layer, sharing their weights with none.

    Parameters
    ----------
    module
        A transformers causal language model, on any device.
    """
    head = getattr(module, "get_output_embeddings", lambda: None)()
    owners: dict[int, int] = {}
    for _, parameter in module.named_parameters(remove_duplicate=False):
        owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    return [
        name
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear)
        and type(layer).forward is nn.Linear.forward
        and layer is not head
        and owners[id(layer.weight)] == 1
    ]


class Sizes(NamedTuple):
    """Numbers of weights that are quantised in all and in the largest layer, and the bytes that they take."""

    weights: int
    largest: int
    stored: int


def quantized_sizes(module: nn.Module, quantization: Quantization) -> Sizes:
    """Return what quantising a model would take; nothing is changed."""
    layers = [module.get_submodule(name) for name in quantizable(module)]
    weights = [layer.in_features * layer.out_features for layer in layers if isinstance(layer, nn.Linear)]
    made = [LAYERS[quantization](layer, torch.device("meta")) for layer in layers if isinstance(layer, nn.Linear)]
    stored = sum(values.nbytes for layer in made for values in layer.buffers())
    return Sizes(sum(weights), max(weights, default=0), stored)


def is_quantized(module: Any) -> bool:
    """Tell whether a model has quantised layers."""
    return isinstance(module, nn.Module) and any(isinstance(layer, QuantizedLinear) for layer in module.modules())


def quantizer(
    quantization: Quantization, device: torch.device
) -> Callable[[nn.Module, Callable[[str], torch.device]], dict[str, Taker]]:
    """Return `quantize` for devices of one type, given one of them.

    Raises
    ------
    TaskError
        If the device lacks an operation that it needs.
    """
    layer = LAYERS[quantization](nn.Linear(GROUP, GROUP, bias=False, device="meta"), device)
    try:
        layer.take(torch.zeros(GROUP, GROUP, device=device))
        layer(torch.zeros(1, GROUP, device=device))
    except (RuntimeError, NotImplementedError) as error:
        other = "write int4, or " if quantization == "int8" else ""
        reason = str(error).splitlines()[0]
        raise TaskError(
            f"fitness.engine: quantization {quantization} does not work on {device} ({reason}); {other}remove "
            "quantization"
        ) from None
    return partial(quantize, quantization=quantization)


def _rounded_rows(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return codes int8[R, N] and scales float32[R, 1] of rows."""
    values = values.float()
    scale = values.abs().amax(-1, keepdim=True) / LARGEST
    return (values / scale.clamp(min=torch.finfo(torch.float32).tiny)).round_().to(torch.int8), scale


def _up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple
