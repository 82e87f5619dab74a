"""Spherical linear interpolation of two models, per flattened tensor (Shoemake 1985).

θ = sin((1−t)Ω)/sin Ω · θ_0 + sin(tΩ)/sin Ω · θ_1 with Ω the angle between the tensors, both keeping their
magnitudes; linear interpolation when they are nearly parallel or opposite (|cos Ω| > 0.9995). The angle does
not depend on t and is prepared once. Its sums run over spans of 2^20 entries, as in mergekit 0.1.5, so that the last
bits agree where both use one thread: with more, torch sums each span in parts, one per thread, and some angles differ
in the last place.

`whole_model`, which mergekit lacks, takes all tensors of a model together as one vector: one angle for all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated

import torch
from torch import Tensor

from evomerge.merging.methods.formulas import TensorContext, WeightedSum
from evomerge.merging.methods.parameters import Flag, Real
from evomerge.merging.methods.registry import SourceModel, SourceTensor, WholeTensor, WholeTensorState, merge_method

STRETCH = 1 << 20
PARALLEL = 0.9995
SMALLEST_NORM = 1e-8


@dataclass(frozen=True)
class Angle(WholeTensorState):
    """Angle Ω between base and model, a float32 scalar; None when they are nearly parallel."""

    omega: Tensor | None
    model: SourceModel | None = None
    """The model that the tensor belongs to, for the angle between whole models."""

    def of_model(self) -> Angle:
        """Return the angle between the whole models."""
        model = self.model
        assert model is not None, "angles of tensors know their model"
        whole: Angle = model.once("angle", lambda: _angle_of_model(model))
        return whole

    def coefficients(self, t: float) -> tuple[float, float]:
        """Return what base and model are multiplied by, rounded to float32 at each step."""
        shares = _shares(t, torch.float32)
        if self.omega is not None:
            shares = on_the_arc(shares, self.omega)
        to_base, to_model = shares.tolist()
        return to_base, to_model


def angle(source: SourceTensor) -> Angle:
    """Measure the angle between a source tensor and the base's."""
    assert source.base is not None, "slerp requires a base"
    return _angle(_cosine(source.base, source.values, torch.float32).cpu(), source.model)


def _cosine(base: Tensor, values: Tensor, wide: torch.dtype) -> Tensor:
    """Return the cosine of the angle between two flat tensors, in float32 or float64 (`wide`)."""
    pairs = list(zip(base.split(STRETCH), values.split(STRETCH), strict=True))
    buffers = base.new_empty(2, min(base.numel(), STRETCH), dtype=wide)  # fresh memory for each step costs more than it

    def widened() -> Iterator[tuple[Tensor, Tensor]]:
        for x, y in pairs:
            yield buffers[0, : len(x)].copy_(x), buffers[1, : len(y)].copy_(y)

    norms = [(_norm(x), _norm(y)) for x, y in widened()]
    base_norm, norm = (_norm(torch.stack(parts)) for parts in zip(*norms, strict=True))
    base_norm = torch.where(base_norm > SMALLEST_NORM, base_norm, 1)
    norm = torch.where(norm > SMALLEST_NORM, norm, 1)
    # normalised before multiplying, so that the product cannot overflow
    parts = [x.div_(base_norm).mul_(y.div_(norm)).unsqueeze(0).sum(dim=1) for x, y in widened()]
    return torch.stack(parts).sum(dim=0).clamp(-1, 1).squeeze(0)


def _angle(cosine: Tensor, model: SourceModel | None = None) -> Angle:
    if bool(cosine.abs() > PARALLEL):
        return Angle(None, model)
    return Angle(torch.acos(cosine), model)


def on_the_arc(shares: Tensor, omega: Tensor) -> Tensor:
    """Return sin(sΩ)/sin Ω, [..., 2], for the shares s = (1−t, t) and angles Ω [...] that are not 0 or π."""
    return torch.sin(omega[..., None] * shares) / torch.sin(omega)[..., None]


def _angle_of_model(model: SourceModel) -> Angle:
    """Measure the angle between all tensors of a model and of the base, each as one vector."""
    products = torch.zeros(3, dtype=torch.float64)  # ⟨x, y⟩, ⟨x, x⟩, ⟨y, y⟩
    for values, base in model.pairs():
        assert base is not None, "slerp requires a base"
        for x, y in zip(base.split(STRETCH), values.split(STRETCH), strict=True):
            pair = torch.stack([x.double(), y.double()])
            products += (pair @ pair.T).flatten()[[1, 0, 3]].cpu()
    norm = (products[1] * products[2]).sqrt()
    return _angle((products[0] / norm if norm > 0 else products[0]).clamp(-1, 1).float())


def stepwise_slerp(tensor: WholeTensor, *, t: float) -> Tensor:
    """Return `slerp` in float32 (float64 where the models are), rounded once."""
    base, (model,) = tensor.origin, tensor.models
    wide = torch.promote_types(base.dtype, torch.float32)
    pair = base.reshape(-1), model.reshape(-1)
    cosine = _cosine(*pair, wide).cpu()
    shares = _shares(t, wide)
    if not bool(cosine.abs() > PARALLEL):
        shares = on_the_arc(shares, torch.acos(cosine))
    to_base, to_model = shares.to(base.device)
    merged = torch.empty_like(pair[0])
    for out, x, y in zip(*(values.split(STRETCH) for values in (merged, *pair)), strict=True):
        out.copy_(to_base * x.to(wide) + to_model * y.to(wide))
    return merged.view(base.shape)


@merge_method(
    "slerp",
    differentiable=("t",),
    max_models=1,
    core_space="unsupported",
    stepwise=stepwise_slerp,
    float32_in_mergekit=True,
    prepare=angle,
)
def slerp(
    tensor: TensorContext,
    *,
    t: Annotated[float, Real(0.0, 1.0, 0.5, "0 is the base, 1 the other model.")],
    whole_model: Annotated[
        bool, Flag(False, "Take all tensors together as one vector, with one angle.", extension=True)
    ],
) -> WeightedSum:
    """Spherical interpolation between the base and one other model, per flattened tensor."""
    own: Angle = tensor.prepared[0]
    return WeightedSum((own.of_model() if whole_model else own).coefficients(t), "base and models")


@lru_cache(maxsize=256)
def _shares(t: float, dtype: torch.dtype) -> Tensor:
    """Return 1 − t and t, [2]; cached, since most tensors of a model have the same."""
    rounded = torch.tensor(t, dtype=dtype)
    return torch.stack([1 - rounded, rounded])


def _norm(values: Tensor) -> Tensor:
    return torch.linalg.vector_norm(values.unsqueeze(0), dim=1).squeeze(0)
