"""Parent selection among N individuals: fitness-proportional (roulette) and tournament."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fitness.results import INFEASIBLE


def roulette(weights: NDArray[np.float64], rng: np.random.Generator) -> int:
    """Draw an index with probability proportional to `weights` (float64[N], none negative); uniform if all are zero."""
    cumulative = np.cumsum(weights)
    total = cumulative[-1]
    if not total > 0.0:
        return int(rng.integers(len(weights)))
    # side="right": an index with weight zero has an empty interval and is never drawn.
    return min(int(np.searchsorted(cumulative, rng.random() * total, side="right")), int(np.argmax(cumulative)))


def couple(weights: NDArray[np.float64], rng: np.random.Generator) -> tuple[int, int]:
    """Draw two indices by `roulette` without replacement; the same one twice if there is only one."""
    first = roulette(weights, rng)
    if len(weights) == 1:
        return first, first
    others = np.delete(weights, first)
    second = roulette(others, rng)
    return first, second + (second >= first)


def quality(fitness: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return weights for `roulette` from fitness, both float64[N]: the fitness itself if none is negative.

    Otherwise its difference to the worst. Candidates below a minimum score get weight 0, unless there are no others.
    """
    feasible = fitness > INFEASIBLE
    if not feasible.any():
        return fitness - float(fitness.min())
    return np.where(feasible, fitness - min(0.0, float(fitness[feasible].min())), 0.0)


def tournament(fitness: NDArray[np.float64], size: int, rng: np.random.Generator) -> int:
    """Draw `size` indices with replacement and return the fittest of them, the first drawn on ties."""
    drawn = rng.integers(len(fitness), size=size)
    return int(drawn[np.argmax(fitness[drawn])])
