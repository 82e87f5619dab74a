"""What populations begin with: the space's founders (source models), then random merges of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from evomerge.strategies.base import Genotype
from search_spaces.space import SearchSpace

# Of the budget, what `warm_up: auto` may spend on random merges: as in M2N2's experiments with language models.
WARM_UP_SHARE = 20


def warm_up_for(places: int, evaluations: int) -> int:
    """Return how many random merges suit a population of so many places and such a budget."""
    return min(places, evaluations // WARM_UP_SHARE)


def random_merge(space: SearchSpace, founders: Sequence[Genotype], rng: np.random.Generator) -> Genotype:
    """Return a child of two founders drawn at random; a sample of the space where there is only one founder."""
    if len(founders) < 2:
        return space.sample(rng)
    first, second = rng.choice(len(founders), size=2, replace=False)
    return space.crossover(founders[first], founders[second], rng)
