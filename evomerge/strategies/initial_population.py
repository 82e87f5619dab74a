"""What populations begin with: a former run's best candidates and the space's founders, then random merges of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from evomerge.strategies.base import Genotype
from evomerge.strategies.warm_start import Founders
from search_spaces.spaces.space import SearchSpace

# Of the budget, what `warm_up: auto` may spend on random merges: as in M2N2's experiments with language models.
WARM_UP_SHARE = 20


def warm_up_for(places: int, evaluations: int, warm_start: Founders | None) -> int:
    """Return how many random merges suit a population of so many places, such a budget and such founders."""
    taken = 0 if warm_start is None else len(warm_start.genotypes)
    return max(0, min(places - taken, evaluations // WARM_UP_SHARE))


def founders_of(space: SearchSpace, warm_start: Founders | None, places: int) -> list[Genotype]:
    """Return the genotypes that a population of so many places begins with, float64[G] each.

    The space's own founders; with a warm start the former run's candidates, and the space's own in what room is left.
    """
    own = list(space.initial_population())
    if warm_start is None:
        return own
    former = warm_start.points(space)
    return [*former, *own[: max(0, places - len(former))]]


class Opening:
    """The first candidates of a steady-state population.

    Parameters
    ----------
    space
        Gives random merges.
    founders
        The very first; at least one.
    warm_up
        Random merges after them, before the first child is bred.
    """

    def __init__(self, space: SearchSpace, founders: Sequence[Genotype], warm_up: int) -> None:
        self._space = space
        self._founders = founders
        self._count = len(founders) + warm_up

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
