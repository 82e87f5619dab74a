"""What a search space must know of the models to be built; nothing of it needs their weights in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from search_spaces.recipes.layout import ModelLayout

Span: TypeAlias = tuple[str, int, int]
"""Entries [start, end) of the flattened tensor of that name."""

Chunk: TypeAlias = tuple[Span, ...]
"""A stretch of the parameter order; it may begin and end within a tensor."""

Gram: TypeAlias = npt.NDArray[np.float64]
"""float64[C, T, T]: inner products of the T models' entries, for each of C chunks."""


@dataclass(frozen=True)
class SpaceContext:
    """The models that a space is about.

    Attributes
    ----------
    models
        Name to reference, the base first; T of them.
    layout
        Their tensors by position.
    sizes
        Entries of each tensor, by name.
    dtype, out_dtype
        Written into the recipes: precision of the arithmetic and of the result.
    seed
        Written into the recipes of stochastic methods.
    gram
        Measures chunks of the models, the models in the order of `models`; None where the weights are not at hand,
        which only leaves out what depends on angles.
    squared_norms
        Gives the squared norm of each expert's task vector by its name, or None as above.
    """

    models: Mapping[str, str]
    layout: ModelLayout
    sizes: Mapping[str, int]
    dtype: str | None = "float32"
    out_dtype: str | None = "bfloat16"
    seed: int = 0
    gram: Callable[[tuple[Chunk, ...]], Gram] | None = None
    squared_norms: Callable[[], Mapping[str, float]] | None = None
