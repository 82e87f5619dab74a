"""Facts about the models that spaces are built from; none needs the weights in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from search_spaces.recipes.layout import ModelLayout

Span: TypeAlias = tuple[str, int, int]
"""A tensor's name and a range [start, end) of its flattened entries."""

Chunk: TypeAlias = tuple[Span, ...]
"""A contiguous part of the parameter order; it may begin and end within a tensor."""

Gram: TypeAlias = npt.NDArray[np.float64]
"""float64[C, T, T]: inner products of the T models' entries, for each of C chunks."""


@dataclass(frozen=True)
class SpaceContext:
    """The models of a space.

    Attributes
    ----------
    models
        Name to reference, the base first; T models.
    layout
        Their tensors by position.
    sizes
        Entries of each tensor, by name.
    dtype, out_dtype
        Written into the recipes: precision of the arithmetic and of the result.
    seed
        Written into the recipes of stochastic methods.
    gram
        Returns the Gram matrices of the models, in the order of `models`, for some chunks. None if the weights are not
        available; then operators that need angles raise.
    squared_norms
        Returns the squared norm of each expert's task vector, by name; None if the weights are not available.
    """

    models: Mapping[str, str]
    layout: ModelLayout
    sizes: Mapping[str, int]
    dtype: str | None = "float32"
    out_dtype: str | None = "bfloat16"
    seed: int = 0
    gram: Callable[[tuple[Chunk, ...]], Gram] | None = None
    squared_norms: Callable[[], Mapping[str, float]] | None = None
