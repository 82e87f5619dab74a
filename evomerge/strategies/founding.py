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


class Opening:
    """The first candidates of a steady-state population.

    Parameters
    ----------
    space
        Gives the founders.
    warm_up
        Random merges after them, before the first child is bred.
    """

    def __init__(self, space: SearchSpace, warm_up: int) -> None:
        self._space = space
        self._founders = space.founders()
        self._count = len(self._founders) + warm_up

    def over(self, identity: int) -> bool:
        """Tell whether the candidate of that id may be bred."""
        return identity >= self._count

    def genotype(self, identity: int, rng: np.random.Generator) -> Genotype:
        """Return the genotype of the candidate of that id: a founder, or a random merge."""
        if identity < len(self._founders):
            return self._founders[identity].copy()
        return random_merge(self._space, self._founders, rng)


def random_merge(space: SearchSpace, founders: Sequence[Genotype], rng: np.random.Generator) -> Genotype:
    """Return a child of two founders drawn at random; a sample of the space where there is only one founder."""
    if len(founders) < 2:
        return space.sample(rng)
    first, second = rng.choice(len(founders), size=2, replace=False)
    return space.crossover(founders[first], founders[second], rng)
