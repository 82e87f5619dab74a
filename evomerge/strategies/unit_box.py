"""The unit box: genes scaled to [0, 1], so that one step size suits all of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from search_spaces.spaces.space import Genotype, SearchSpace


class UnitBox:
    """Maps genotypes, float64[..., G], to z = (x - low) / (high - low) in [0, 1] and back."""

    def __init__(self, space: SearchSpace) -> None:
        self.low, self.high = space.low, space.high
        self.width = space.high - space.low

    def to_unit(self, genotype: ArrayLike) -> NDArray[np.float64]:
        """Return the point in the unit box."""
        return (np.asarray(genotype, dtype=np.float64) - self.low) / self.width

    def to_genes(self, unit: ArrayLike) -> Genotype:
        """Return the genotype; coordinates outside of [0, 1] are clipped."""
        genes = self.low + np.clip(np.asarray(unit, dtype=np.float64), 0.0, 1.0) * self.width
        return np.clip(genes, self.low, self.high)
