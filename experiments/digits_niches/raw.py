"""The weights of one small network as genes: evolution from scratch, without source models.

The space of the digits experiment of M2N2 (arXiv 2508.16204): a genotype is the whole parameter vector. Its
points are not merges: `decode` and `encode` raise an error, and a search here scores genotypes directly.
Everything else that a strategy needs is as in any other space.

Spherical interpolation of vectors a and b at angle omega (Shoemake 1985):

    slerp_t(a, b) = (sin((1 - t) omega) a + sin(t omega) b) / sin(omega)

and the crossover of M2N2 (its eq. 2) joins two of them at a random place s of the vector:

    child = [slerp_w(a, b)[:s], slerp_{1-w}(a, b)[s:]],   s ~ U{0..G-1}, w ~ U(0, 1)

The paper takes a separate omega for each part (`angle="part"`), the authors' program that of the whole
vectors for both (`angle="whole"`, the default here, because the published figures come from it).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Literal

import numpy as np

from search_spaces.recipes.errors import RecipeError
from search_spaces.recipes.recipe import Recipe
from search_spaces.spaces.genes import Real
from search_spaces.spaces.space import Genotype, SearchSpace

# Below this sine two vectors point the same way (or opposite ways) and are interpolated linearly.
PARALLEL = 1e-6


class RawWeights(SearchSpace):
    """All parameter vectors of one network, within ``[-bound, bound]``.

    Parameters
    ----------
    length
        Number of weights, G.
    founders
        Networks that a population begins with, float64[G] each; by default the zero vector.
    spread
        Standard deviation of the weights of a random network: `sample` draws them from N(0, spread²).
    mutation
        Standard deviation of what `mutate` adds to every weight.
    split
        Whether crossover joins two interpolations at a random place; else it is one for the whole vector.
    angle
        Which angle SLERP takes: that between the `whole` vectors, or between those of each `part`.
    bound
        Largest absolute weight; for strategies that need a box.

    Raises
    ------
    RecipeError
        If a founder has another shape or is outside of the box.
    """

    def __init__(
        self,
        length: int,
        *,
        founders: Sequence[Genotype] = (),
        spread: float = 0.01,
        mutation: float = 0.01,
        split: bool = True,
        angle: Literal["whole", "part"] = "whole",
        bound: float = 10.0,
    ) -> None:
        self.length = length
        self.spread = spread
        self.mutation = mutation
        self.split = split
        self.angle = angle
        self.bound = bound
        self._founders = tuple(map(self._network, founders)) or (np.zeros(length),)

    @cached_property
    def genes(self) -> tuple[Real, ...]:  # type: ignore[override]  # on demand: there are many
        """One gene per weight."""
        return tuple(
            Real(f"weight[{index}]", -self.bound, self.bound, float(value))
            for index, value in enumerate(self._founders[0])
        )

    @property
    def dimension(self) -> int:
        """Number of weights, G."""
        return self.length

    def decode(self, genotype: Genotype) -> Recipe:
        """Raise an error.

        Raises
        ------
        RecipeError
            Always: raw weights are not a merge.
        """
        raise RecipeError("raw weights are no merge and have no recipe; score the genotype itself")

    def encode(self, recipe: Recipe) -> Genotype:
        """Raise an error.

        Raises
        ------
        RecipeError
            Always: raw weights are not a merge.
        """
        raise RecipeError("raw weights stand for no recipe; search for it in a space of merges, such as mixture")

    def initial_population(self) -> tuple[Genotype, ...]:
        """Return copies of the networks that a population begins with."""
        return tuple(founder.copy() for founder in self._founders)

    def sample(self, rng: np.random.Generator) -> Genotype:
        """Draw a random network, float64[G]."""
        return self._clipped(rng.normal(0.0, self.spread, self.dimension))  # ~ N(0, spread² I)

    def crossover(self, a: Genotype, b: Genotype, rng: np.random.Generator) -> Genotype:
        """Return a child of `a` and `b`, float64[G]; see the head of this file."""
        ratio = rng.random()  # w ~ U(0, 1)
        place = int(rng.integers(self.dimension)) if self.split else self.dimension  # s ~ U{0..G-1}
        whole = slerp_scales(a, b, ratio) if self.angle == "whole" else None
        child = np.empty_like(a)
        for part, t in ((slice(0, place), ratio), (slice(place, None), 1.0 - ratio)):
            if whole is None:
                of_a, of_b = slerp_scales(a[part], b[part], t)
            else:
                of_a, of_b = whole if t == ratio else whole[::-1]  # the scales at 1 - w are those at w, swapped
            np.multiply(a[part], of_a, out=child[part])
            child[part] += of_b * b[part]
        return self._clipped(child)

    def mutate(self, a: Genotype, rng: np.random.Generator) -> Genotype:
        """Return `a` with noise on every weight, float64[G]."""
        noise = rng.standard_normal(self.dimension, dtype=np.float32)  # ~ N(0, I); float32 takes half the time
        return self._clipped(a + self.mutation * noise)

    def _clipped(self, point: Genotype) -> Genotype:
        return np.clip(point, -self.bound, self.bound, out=point)

    def _network(self, weights: Genotype) -> Genotype:
        network = np.array(weights, dtype=np.float64)
        if network.shape != (self.length,):
            raise RecipeError(f"founders: a network has shape {network.shape}; give arrays of shape ({self.length},)")
        if not (np.abs(network) <= self.bound).all():  # true for NaN
            raise RecipeError(f"founders: a weight is outside of [-{self.bound}, {self.bound}]; raise `bound`")
        return network


def slerp_scales(a: Genotype, b: Genotype, t: float) -> tuple[float, float]:
    """Return the factors of `a` and `b` in slerp_t(a, b); (1 - t, t) where they are parallel or one is zero."""
    norms = math.sqrt(float(a @ a) * float(b @ b))
    omega = math.acos(min(1.0, max(-1.0, float(a @ b) / norms))) if norms > 0.0 else 0.0
    sine = math.sin(omega)
    if sine <= PARALLEL:
        return 1.0 - t, t
    return math.sin((1.0 - t) * omega) / sine, math.sin(t * omega) / sine
