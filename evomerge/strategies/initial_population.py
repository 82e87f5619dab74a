"""The first candidates of a population: an earlier run's best ones, the space's own, then random merges of both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from evomerge.strategies.base import Genotype
from evomerge.strategies.warm_start import WarmStartPopulation
from search_spaces.spaces.space import SearchSpace

WARM_UP_SHARE = 20
"""`warm_up: auto` spends at most 1/20 of the budget on random merges, as in M2N2's experiments with language models."""


def warm_up_for(places: int, evaluations: int, warm_start: WarmStartPopulation | None) -> int:
    """Return how many random merges to propose after the initial candidates, for `warm_up: auto`.

    Parameters
    ----------
    places
        Size of the population.
    evaluations
        The budget.
    warm_start
        An earlier run's candidates, which take places of their own.
    """
    taken = 0 if warm_start is None else len(warm_start.genotypes)
    return max(0, min(places - taken, evaluations // WARM_UP_SHARE))


def initial_population(space: SearchSpace, warm_start: WarmStartPopulation | None, places: int) -> list[Genotype]:
    """Return the genotypes that a population with this many places starts with, float64[G] each.

    These are the space's own initial population. With a warm start they are the earlier run's candidates, followed by
    as many from the space's own as there are places left.
    """
    own = list(space.initial_population())
    if warm_start is None:
        return own
    former = warm_start.points(space)
    return [*former, *own[: max(0, places - len(former))]]


class Child(NamedTuple):
    """A genotype, and those that it was made of, as genotypes or as ids of candidates."""

    genotype: Genotype
    parents: Sequence[Genotype | int] = ()


class InitialPopulation:
    """The first candidates of a steady-state population: given genotypes, then random merges of them.

    Parameters
    ----------
    space
        Its crossover makes the random merges.
    first
        The first genotypes, float64[G] each; at least one.
    warm_up
        How many random merges follow.
    """

    def __init__(self, space: SearchSpace, first: Sequence[Genotype], warm_up: int) -> None:
        self._space = space
        self._first = first
        self._count = len(first) + warm_up

    def includes(self, identity: int) -> bool:
        """Return whether the candidate with this id belongs to the initial population."""
        return identity < self._count

    def proposed(self, identity: int, rng: np.random.Generator) -> Child:
        """Return the candidate with this id: a given one, or a random merge."""
        if identity < len(self._first):
            return Child(np.array(self._first[identity]))
        return random_merge(self._space, self._first, rng)


def random_merge(space: SearchSpace, parents: Sequence[Genotype], rng: np.random.Generator) -> Child:
    """Return a child of two random parents, or a sample of the space if there are fewer than two parents."""
    if len(parents) < 2:
        return Child(space.sample(rng))
    first, second = (parents[at] for at in rng.choice(len(parents), size=2, replace=False))
    return Child(space.crossover(first, second, rng), (first, second))
