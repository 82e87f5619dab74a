"""The `space` part of a search's config for mixtures, and how genes of a chunk become its weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator

from search_spaces.spaces.context import SpaceContext
from search_spaces.spaces.space import SearchSpace

Parametrisation = Literal["direct", "simplex", "softmax", "signed"]
Interpolation = Literal["slerp", "slerp_per_segment", "linear"]

_BOUNDS: dict[str, tuple[float, float]] = {
    "direct": (0.0, 1.5),  # spherical children of sources stay within for angles up to 120 degrees
    "simplex": (0.0, 1.0),
    "softmax": (-6.0, 6.0),
    "signed": (-1.5, 1.5),  # LoRAHub's
}
_GRID = 1e-12  # shares are written as multiples of this, which sum to one: far below float32's resolution


class WeightRange(BaseModel):
    """The interval that genes of weights lie in."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    low: float = Field(allow_inf_nan=False)
    """Smallest value."""
    high: float = Field(allow_inf_nan=False)
    """Largest value, above `low`."""

    @model_validator(mode="after")
    def _ordered(self) -> WeightRange:
        if not self.low < self.high:
            raise ValueError(f"low {self.low} is not below high {self.high}; write low < high")
        return self


class NoiseConfig(BaseModel):
    """Seeded noise as a mutation: none unless asked for."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    terms: int = Field(default=0, ge=0, le=16)
    """Noises that a recipe may hold; further ones replace the weakest. 0: mutation moves weights instead."""
    sigma: float = Field(default=0.01, gt=0, allow_inf_nan=False)
    """Standard deviation of a mutation, in the unit of the models' weights; M2N2's is 0.01, for training from scratch,
    GENOME's 0.001."""

    @property
    def largest(self) -> float:
        """Bound of a noise's deviation: what scaling by children may make of it."""
        return 2 * self.sigma


class MixtureConfig(BaseModel):
    """The `space` part of a search's config, for ``kind: mixture``."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: Literal["mixture"] = "mixture"
    """Which space this is."""
    chunks: int | Literal["tensors", "layers"] = 32
    """Parts of the parameter order with weights of their own: about so many of equal size, cut within tensors where
    they fall; or one for each tensor, or for each layer."""
    chromosomes: tuple[Literal["attention", "mlp"], ...] = ()
    """Parts of the layers that children get with a split point and an angle of their own; the rest of the model is one
    more. None: the whole model is one."""
    weights: Parametrisation = "direct"
    """What genes mean. `direct`: the sources' weights. `simplex`, `softmax`: shares that sum to one. `signed`: the
    experts' weights, the base taking what is left of one."""
    weight: WeightRange | None = None
    """Interval of the genes; None: [0, 1.5] for direct, [0, 1] for simplex, [-6, 6] for softmax, [-1.5, 1.5] for
    signed."""
    crossover: Literal["auto", "slerp", "slerp_per_segment", "linear"] = "auto"
    """How a child lies between its parents: `slerp` by one angle over the whole chromosome (M2N2's code),
    `slerp_per_segment` by the angle of each side of the split point (its paper), or `linear`. `auto`: slerp for direct
    weights, linear for the others."""
    split: bool = True
    """Whether a child changes the parents' parts at a random split point."""
    noise: NoiseConfig = NoiseConfig()
    """Mutation by seeded noise."""

    @model_validator(mode="after")
    def _consistent(self) -> MixtureConfig:
        if isinstance(self.chunks, int) and not 1 <= self.chunks <= 4096:
            raise ValueError(f"chunks: {self.chunks} of them; write 1 to 4096, tensors or layers")
        if self.weights != "direct" and self.crossover in ("slerp", "slerp_per_segment"):
            raise ValueError(f"crossover: {self.weights} weights would not keep their sum; write crossover: linear")
        if len(set(self.chromosomes)) < len(self.chromosomes):
            raise ValueError("chromosomes: one is named twice; name each once")
        if self.weights == "simplex" and self.bounds[0] < 0:
            raise ValueError("weight: simplex weights are divided by their sum and begin at zero; write low: 0")
        return self

    @property
    def interpolation(self) -> Interpolation:
        """The crossover, with `auto` decided."""
        if self.crossover == "auto":
            return "slerp" if self.weights == "direct" else "linear"
        return self.crossover

    @property
    def bounds(self) -> tuple[float, float]:
        """Interval of the genes."""
        return _BOUNDS[self.weights] if self.weight is None else (self.weight.low, self.weight.high)

    def codec(self, sources: int) -> Codec:
        """Return what turns genes into the weights of that many sources."""
        return Codec(self.weights, sources, *self.bounds)

    def build(self, context: SpaceContext) -> SearchSpace:
        """Return the space over these models."""
        from search_spaces.spaces.mixture import MixtureSpace

        return MixtureSpace(self, context)


Vector = npt.NDArray[Any]


@dataclass(frozen=True)
class Codec:
    """Genes of one chunk to weights of T sources, and back."""

    kind: Parametrisation
    sources: int
    low: float
    high: float

    def decode(self, genes: Vector) -> Vector:
        """Return the weights float64[T]."""
        if self.kind == "simplex":
            return _shares(genes)
        if self.kind == "softmax":
            return _shares(np.exp(genes - genes.max()))
        if self.kind == "signed":
            return np.concatenate([[1.0 - genes.sum()], genes])
        return genes

    def encode(self, weights: Vector) -> Vector:
        """Return genes, in the box, for the weights or for the nearest that can be had."""
        if self.kind == "simplex":
            positive = np.clip(weights, 0.0, None)
            positive = positive if positive.any() else np.ones(self.sources)
            genes = positive * min(1.0, self.high / positive.max())
        elif self.kind == "softmax":
            smallest = weights.max() * np.exp(self.low - self.high) if weights.max() > 0 else 1.0
            logs = np.log(np.clip(weights, smallest, None))
            genes = logs - logs.max() + self.high
        else:
            genes = weights[1:] if self.kind == "signed" else weights
        return np.clip(genes, self.low, self.high)


def _shares(weights: Vector) -> Vector:
    """Divide non-negative weights by their sum, on the grid of `_GRID`; the largest takes what is left.

    Doing it twice gives the same as once, so that encode inverts decode.
    """
    total = weights.sum()
    if total <= 0:
        weights, total = np.ones_like(weights), float(len(weights))
    units = np.rint(weights / total / _GRID)
    units[np.argmax(units)] += np.rint(1 / _GRID) - units.sum()
    shares: Vector = units * _GRID
    return shares
